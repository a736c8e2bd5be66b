// The developers' tool make_model: what it writes in each format opens, runs and gives numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "checkpoint/test_support.h"
#include "support/model_runner.h"
#include "support/process.h"

namespace qw::test {

namespace {

class MakeModel : public testing::TestWithParam<const char*> {};

TEST_P(MakeModel, WritesWhatRuns) {
  const TempDir directory;
  const std::string format = GetParam();
  const bool is_directory =
      format == "bf16" || format == "awq" || format.find("gptq") != std::string::npos;
  const std::string path = directory / (is_directory ? "model" : "model.gguf");
  const Ran made = run_program(
      QIANWEN_MAKE_MODEL, {"--size", "tiny", "--format", format, "--output", path, "--seed", "3"});
  ASSERT_EQ(made.code, 0) << made.err;
  ModelRunner runner(path, "cpu");
  const std::vector<float> logits = runner.logits({5, 9, 1000, 77}, {0, 3});
  const auto [low, high] = std::ranges::minmax(logits);
  EXPECT_GT(high - low, 0.1f) << "the same logit everywhere";
  EXPECT_LT(high - low, 100.0f);
}

INSTANTIATE_TEST_SUITE_P(Published, MakeModel,
                         testing::Values("bf16", "gptq-int4", "gptq-int8", "awq", "q4_0", "q4_k_m",
                                         "q8_0", "q6_k", "gguf-f16", "iq2_xxs"),
                         [](const auto& one) { return test_name(one.param); });

TEST(MakeModelOptions, UnknownOnesAreRefused) {
  const TempDir directory;
  for (const std::vector<std::string>& args :
       {std::vector<std::string>{"--size", "3B"}, {"--size", "tiny", "--format", "q9_9"}}) {
    std::vector<std::string> all = args;
    all.insert(all.end(), {"--output", directory / "model"});
    const Ran ran = run_program(QIANWEN_MAKE_MODEL, all);
    EXPECT_EQ(ran.code, exit_code(ErrorKind::kInvalidArgument));
    EXPECT_NE(ran.err.find(args.back()), std::string::npos) << ran.err;
  }
}

TEST(MakeModelOptions, WrongUsageIsOneSentence) {
  for (const auto& [args, part] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{}, "--output"}, {{"--output", "x", "--layers", "many"}, "--layers"}}) {
    const Ran ran = run_program(QIANWEN_MAKE_MODEL, args);
    EXPECT_EQ(ran.code, exit_code(ErrorKind::kInvalidArgument));
    EXPECT_EQ(ran.out, "");
    EXPECT_EQ(std::ranges::count(ran.err, '\n'), 1) << ran.err;
    EXPECT_TRUE(ran.err.starts_with("make_model: error: [command line] arguments: expected "))
        << ran.err;
    EXPECT_NE(ran.err.find(part), std::string::npos) << ran.err;
  }
  const Ran help = run_program(QIANWEN_MAKE_MODEL, {"--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_NE(help.out.find("--output"), std::string::npos);
}

}  // namespace

}  // namespace qw::test
