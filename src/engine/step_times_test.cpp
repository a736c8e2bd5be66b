// What a step of a size takes, from the times of others.
#include "engine/step_times.h"

#include <gtest/gtest.h>

namespace qw {
namespace {

TEST(StepTimes, IsTheMedianOfTheLatest) {
  StepTimes times;
  EXPECT_TRUE(times.empty());
  EXPECT_EQ(times.seconds(3), 0);
  times.note(3, 2);
  EXPECT_EQ(times.seconds(3), 2);
  for (const double seconds : {1.0, 100.0, 1.5, 3.0})  // one of them disturbed
    times.note(3, seconds);
  EXPECT_EQ(times.seconds(3), 2);
  for (int i = 0; i < 3; ++i)
    times.note(3, 9);
  EXPECT_EQ(times.seconds(3), 9) << "the early ones are forgotten";
}

TEST(StepTimes, LiesBetweenTheSizesThatWereMet) {
  StepTimes times;
  times.note(2, 10);
  EXPECT_EQ(times.seconds(1), 10);
  EXPECT_EQ(times.seconds(50), 10) << "nothing else is known";
  times.note(6, 14);
  EXPECT_EQ(times.seconds(1), 10);
  EXPECT_DOUBLE_EQ(times.seconds(3), 11);
  EXPECT_DOUBLE_EQ(times.seconds(10), 18) << "on the line";
  times.note(512, 520);
  EXPECT_DOUBLE_EQ(times.seconds(259), 267);
  EXPECT_EQ(times.smallest(), 2);
  EXPECT_EQ(times.largest(), 512);
}

TEST(StepTimes, MoreRowsNeverTakeLess) {
  StepTimes times;
  times.note(1, 50);  // disturbed
  times.note(4, 12);
  EXPECT_EQ(times.seconds(1), 12);
  EXPECT_EQ(times.seconds(2), 12);
  EXPECT_EQ(times.seconds(9), 12) << "nor more, by what is known";
}

TEST(StepTimes, LargeSizesGoTogether) {
  StepTimes times;
  times.note(500, 5);
  times.note(505, 7);  // within a quarter of an octave
  EXPECT_EQ(times.seconds(505), 5) << "the lower of two is their median";
  times.note(1005, 15);
  EXPECT_DOUBLE_EQ(times.seconds(755), 10);
  EXPECT_FALSE(times.is_fresh(31));
}

TEST(StepTimes, AgesInSteps) {
  StepTimes times;
  EXPECT_FALSE(times.is_fresh(1));
  times.note(1, 1);
  EXPECT_TRUE(times.is_fresh(1));
  EXPECT_FALSE(times.is_fresh(2));
  for (int64_t i = 1; i < StepTimes::kFresh; ++i)
    times.note(2, 1);
  EXPECT_TRUE(times.is_fresh(1));
  times.note(2, 1);
  EXPECT_FALSE(times.is_fresh(1));
}

}  // namespace
}  // namespace qw
