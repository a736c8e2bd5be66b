// Rates of progress in words.
#include "base/progress.h"

#include <gtest/gtest.h>

namespace qw {
namespace {

TEST(Progress, RatesBelowOneASecondAreTimes) {
  EXPECT_EQ(progress_rate(12.4, ProgressUnit::kItems), "12/s");
  EXPECT_EQ(progress_rate(1, ProgressUnit::kItems), "1/s");
  EXPECT_EQ(progress_rate(0.4, ProgressUnit::kItems), "2.5 s each");
  EXPECT_EQ(progress_rate(0.004, ProgressUnit::kItems), "4m10s each");
  EXPECT_EQ(progress_rate(0.5, ProgressUnit::kTokens), "2.0 s per token");
  EXPECT_EQ(progress_rate(34, ProgressUnit::kTokens), "34 tokens/s");
  EXPECT_EQ(progress_rate(0.5, ProgressUnit::kBytes), "0.0 MB/s");
  EXPECT_EQ(progress_rate(0, ProgressUnit::kItems), "0/s");
}

}  // namespace
}  // namespace qw
