// Cutting samples into sequences: nothing is dropped for its length, and what is left out is said.
#include "quantize/calibration.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "checkpoint/test_support.h"

namespace qw::quantize {
namespace {

std::vector<int32_t> counting(int n, int first = 0) {
  std::vector<int32_t> out(static_cast<size_t>(n));
  std::iota(out.begin(), out.end(), first);
  return out;
}

TEST(Calibration, LongSamplesAreCutAndShortOnesStayWhole) {
  const CalibrationSet set =
      cut_calibration({counting(230), {}, counting(7, 1000)}, {.length = 100});
  ASSERT_EQ(set.sequences.size(), 4u);
  EXPECT_EQ(set.sequences[0], counting(100));
  EXPECT_EQ(set.sequences[2], counting(30, 200));
  EXPECT_EQ(set.sequences[3], counting(7, 1000));
  EXPECT_EQ(set.n_samples, 3);
  EXPECT_EQ(set.n_tokens, 237);
  EXPECT_EQ(set.summary(), "all 237 tokens of 3 samples, in 4 sequences");
}

TEST(Calibration, MoreThanWantedIsLeftOutEvenly) {
  const CalibrationSet set = cut_calibration({counting(4000)}, {.length = 50, .max_tokens = 1000});
  EXPECT_EQ(set.n_tokens, 1000);
  EXPECT_EQ(set.n_tokens_given, 4000);
  ASSERT_EQ(set.sequences.size(), 20u);
  for (size_t i = 0; i < 20; ++i) {  // one of every four
    EXPECT_GE(set.sequences[i].front(), static_cast<int32_t>(200 * i));
    EXPECT_LT(set.sequences[i].front(), static_cast<int32_t>(200 * (i + 1)));
  }
  EXPECT_EQ(set.summary(), "1000 of 4000 tokens of 1 sample, in 20 sequences");
  EXPECT_EQ(cut_calibration({counting(4000)}, {.length = 50, .max_tokens = 0}).n_tokens, 4000);
}

TEST(Calibration, UnevenSequencesStayBelowTheLimit) {
  std::vector<std::vector<int32_t>> samples;
  for (int i = 0; i < 300; ++i)
    samples.push_back(counting(1 + i * 37 % 90));
  const CalibrationSet set = cut_calibration(samples, {.length = 64, .max_tokens = 2000});
  EXPECT_LE(set.n_tokens, 2000);
  EXPECT_GT(set.n_tokens, 1900);
}

TEST(Calibration, TooLittleIsRefused) {
  expect_error(ErrorKind::kInvalidArgument, {"128 tokens", "got 127 in 1 samples"},
               [] { cut_calibration({counting(127)}, {}); });
  expect_error(ErrorKind::kInvalidArgument, {"got 0 in 0"}, [] { cut_calibration({}, {}); });
  // Of what is used, not of what is given.
  expect_error(ErrorKind::kInvalidArgument, {"at least 128", "got 127"},
               [] { cut_calibration({counting(4000)}, {.length = 50, .max_tokens = 127}); });
  expect_error(ErrorKind::kInvalidArgument, {"at least 128", "got 130, within which 100 do"},
               [] { cut_calibration({counting(4000)}, {.length = 50, .max_tokens = 130}); });
  EXPECT_EQ(cut_calibration({counting(6400)}, {.length = 64, .max_tokens = 128}).n_tokens, 128);
  expect_error(ErrorKind::kInvalidArgument, {"length"},
               [] { cut_calibration({counting(500)}, {.length = 1}); });
}

TEST(Calibration, NameTellsSetsApart) {
  const CalibrationSet whole = cut_calibration({counting(200)}, {.length = 200});
  const CalibrationSet cut = cut_calibration({counting(200)}, {.length = 100});
  EXPECT_NE(calibration_name(whole), calibration_name(cut));
  EXPECT_EQ(calibration_name(cut),
            calibration_name(cut_calibration({counting(100), counting(100, 100)}, {})));
}

TEST(Calibration, BuiltInSetIsLinesOfTextsAndChats) {
  std::istringstream lines{std::string(default_calibration())};
  int n_texts = 0, n_chats = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.empty()) continue;
    const auto json = nlohmann::json::parse(line);
    n_texts += json.contains("text") ? 1 : 0;
    n_chats += json.contains("messages") ? 1 : 0;
    ASSERT_EQ(json.size(), 1u);
  }
  EXPECT_GT(n_texts, 20);
  EXPECT_GT(n_chats, 5);
}

}  // namespace
}  // namespace qw::quantize
