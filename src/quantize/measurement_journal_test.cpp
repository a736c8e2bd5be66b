#include "quantize/measurement_journal.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numbers>

#include "checkpoint/test_support.h"

namespace qw::quantize {
namespace {

using Values = std::vector<double>;

class Journal : public ::testing::Test {
 protected:
  MeasurementJournal open(const std::string& job = "job \"a\"\n") const {
    return {folder_ / "out.measured", job};
  }
  std::string text() const { return read_text_file(file_); }
  void append(std::string_view text) const {
    std::ofstream(file_, std::ios::app | std::ios::binary) << text;
  }
  const TempDir folder_;
  const std::string file_ = folder_ / "out.measured/journal.jsonl";
};

TEST_F(Journal, IsKnownToTheNextRunToTheLastBit) {
  const Values values = {0.1 + 0.2, std::numbers::pi * 1e-17, 1e300, std::nextafter(1, 2), 5e-324,
                         0};
  {
    MeasurementJournal first = open();
    EXPECT_FALSE(first.is_resumed());
    EXPECT_EQ(first.size(), 0u);
    EXPECT_FALSE(first.find("errors of \"x\""));
    first.add("errors of \"x\"", values);
    EXPECT_EQ(first.find("errors of \"x\""), values);
    first.add("none", {});
  }
  {
    MeasurementJournal next = open();
    EXPECT_TRUE(next.is_resumed());
    EXPECT_EQ(next.size(), 2u);
    EXPECT_EQ(next.find("errors of \"x\""), values);
    EXPECT_EQ(next.find("none"), Values());
    EXPECT_FALSE(next.find("other"));
    next.add("other", {std::numeric_limits<double>::quiet_NaN(), 2});
  }
  MeasurementJournal last = open();
  EXPECT_EQ(last.size(), 3u);
  ASSERT_TRUE(last.find("other"));
  EXPECT_TRUE(std::isnan(last.find("other")->front()));
  EXPECT_EQ(last.find("other")->back(), 2);
  last.remove();
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out.measured"));
}

/// However much of a line was written, what comes before it holds, and what comes after it is read.
TEST_F(Journal, GoesOnBehindATornLine) {
  {
    MeasurementJournal first = open();
    first.add("a", {1});
    first.add("b", {2, 3});
  }
  const std::string whole = text();
  const size_t last = whole.rfind('\n', whole.size() - 2) + 1;
  for (size_t size = last; size < whole.size(); ++size) {
    std::filesystem::resize_file(file_, size);
    {
      MeasurementJournal next = open();
      EXPECT_EQ(next.find("a"), Values{1});
      EXPECT_FALSE(next.find("b")) << size;
      EXPECT_EQ(text().size(), last);
      next.add("b", {2, 3});
    }
    EXPECT_EQ(text(), whole);
  }
  // Of a machine that lost its power.
  append(std::string("\0\0\0\n", 4));
  EXPECT_EQ(open().size(), 2u);
  EXPECT_EQ(text(), whole);
}

TEST_F(Journal, OfAnotherJobIsRefused) {
  open().add("a", {1});
  const std::vector<std::string> says = {"expected those of this model, calibration and options",
                                         "another's (remove " + (folder_ / "out.measured")};
  const auto refused = [&](const std::string& job) {
    expect_error(ErrorKind::kInvalidArgument, says, [&] { open(job); });
  };
  refused("b");
  EXPECT_EQ(open().size(), 1u);  // it stays
  append("{}\n{\"of\": \"c\", \"values\": [1]}\n");
  refused("job \"a\"\n");
  for (const char* text : {"", "{\"job\": \"job", "[]\n", "{}\n"}) {
    folder_.write("out.measured/journal.jsonl", text);
    refused("job \"a\"\n");
  }
  // A folder of something else.
  std::filesystem::remove(file_);
  folder_.write("out.measured/mine", "");
  refused("job \"a\"\n");
  EXPECT_TRUE(std::filesystem::exists(folder_ / "out.measured/mine"));
}

}  // namespace
}  // namespace qw::quantize
