// qianwen quantize with a budget: better files than llama-quantize's recipes of the same size, and
// what is promised of sizes and divergences is kept.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <ranges>

#include "support/cli_fixture.h"
#include "support/golden.h"

namespace qw::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::string_view kMeasured = "KL divergence predicted";

/// The bundled model; texts of the kind that it was made for, some to measure with, others to judge
/// by.
class CliBudget : public CliTest {
 protected:
  void SetUp() override {
    CliTest::SetUp();
    std::ifstream in(std::string(QIANWEN_SOURCE_DIR) + "/tests/golden/mini/test_items.jsonl");
    std::string calibration, judged;
    size_t n = 0;
    for (std::string line; std::getline(in, line) && n < 120; ++n) {
      const json item = json::parse(line);
      const std::string text =
          item["prompt"].get<std::string>() + item["expected"].get<std::string>() + "<|im_end|>\n";
      if (n % 3 == 0) {
        judged += text;
      } else {
        calibration += json{{"text", text}}.dump() + "\n";
      }
    }
    calibration_ = write("items.jsonl", calibration);
    judged_ = write("judged.txt", judged);
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  static RunOptions patient() {
    RunOptions options;  // the model is run some fifty times
    options.timeout_s = 600;
    return options;
  }
  Ran quantize(const std::vector<std::string>& more) {
    std::vector<std::string> args = {"quantize", kBundled, "--json"};
    args.insert(args.end(), more.begin(), more.end());
    return qianwen(args, patient());
  }
  /// With a budget, on the calibration; what it said.
  json budget(const std::string& name, const std::vector<std::string>& more) {
    const Ran ran = qianwen(with_budget(name, more), patient());
    EXPECT_EQ(ran.code, 0) << ran.err;
    return json::parse(ran.out, nullptr, false);
  }
  std::vector<std::string> with_budget(const std::string& name,
                                       const std::vector<std::string>& more) const {
    std::vector<std::string> args = {"quantize", kBundled, "--json"};
    args.insert(args.end(), more.begin(), more.end());
    for (const std::string& flag :
         {std::string("--calibration"), calibration_, std::string("--sensitivity-tokens"),
          std::string("256"), std::string("--output"), path(name)})
      args.push_back(flag);
    return args;
  }
  double judge(const std::string& name) {
    const Ran ran = qianwen({"compare", kBundled, path(name), "--file", judged_, "--json"});
    EXPECT_EQ(ran.code, 0) << ran.err;
    return json::parse(ran.out)["kl"]["mean"].get<double>();
  }
  int64_t size(const std::string& name) const {
    return static_cast<int64_t>(std::filesystem::file_size(path(name)));
  }

  std::string calibration_, judged_;
};

TEST_F(CliBudget, BeatsTheRecipesOfTheSameSize) {
  ASSERT_EQ(
      qianwen({"imatrix", kBundled, "--calibration", calibration_, "--output", path("i.gguf")})
          .code,
      0);
  // With the same importances, so that what is compared is the choice of types alone.
  ASSERT_EQ(
      quantize({"--to", "q3_k_m", "--imatrix", path("i.gguf"), "--output", path("a.gguf")}).code,
      0);
  const json said = budget(
      "b.gguf", {"--max-bytes", std::to_string(size("a.gguf")), "--imatrix", path("i.gguf")});
  EXPECT_LE(size("b.gguf"), size("a.gguf"));
  EXPECT_GE(size("b.gguf"), 0.98 * static_cast<double>(size("a.gguf")));
  EXPECT_LT(judge("b.gguf"), 0.8 * judge("a.gguf"));
  // The prediction is of the right size.
  const double measured = said["measured_kl"], predicted = said["predicted_kl"];
  EXPECT_GT(predicted, 0.4 * measured);
  EXPECT_LT(predicted, 2.5 * measured);
}

TEST_F(CliBudget, KeepsADivergence) {
  const json kl = budget("kl.gguf", {"--max-kl", "0.02"});
  EXPECT_LE(kl["measured_kl"], 0.02);
  EXPECT_GE(kl["measured_kl"], 0.015);
  EXPECT_EQ(kl["tensors"].size(), 43u);
}

/// Types that hold the codes of a quantised model cost nothing.
TEST_F(CliBudget, KnowsThatCodesCanBeKept) {
  const auto blocks = find_golden("gguf/files/nano-q4_0.gguf");
  if (!blocks) GTEST_SKIP() << "no golden gguf/files/nano-q4_0.gguf";
  const std::string model = path("gptq");
  ASSERT_EQ(
      qianwen({"convert", *blocks, "--to", "gptq", "--max-error", "0.01", "--output", model}).code,
      0);
  const Ran ran = qianwen({"quantize", model, "--budget", "5bpw", "--calibration", calibration_,
                           "--calibration-tokens", "512", "--sensitivity-tokens", "256", "--output",
                           path("m.gguf"), "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const json said = json::parse(ran.out);
  int n_kept = 0;
  for (const json& tensor : said["tensors"])
    n_kept += tensor["type"] == "q4_0" && tensor["damage"] == 0 ? 1 : 0;
  EXPECT_GE(n_kept, 14) << said["tensors"];
  for (const json& tensor : said["weights"]["tensors"]) {
    if (tensor["from"].get<std::string>().starts_with("int4")) {
      EXPECT_EQ(tensor["exact"], true) << tensor;
    }
  }
}

/// Of a GPTQ directory.
TEST_F(CliBudget, SharesOutTheBitsOfGptq) {
  const auto weights = [&](const std::string& name) {
    return static_cast<int64_t>(
        std::filesystem::file_size(std::filesystem::path(path(name)) / "model.safetensors"));
  };
  ASSERT_EQ(
      quantize({"--to", "gptq-int4", "--calibration", calibration_, "--output", path("a")}).code,
      0);
  const json said = budget("b", {"--to", "gptq", "--max-bytes", std::to_string(weights("a"))});
  EXPECT_LE(weights("b"), weights("a"));
  EXPECT_GE(weights("b"), 0.98 * static_cast<double>(weights("a")));
  EXPECT_EQ(said["groups"].size(), 24u);
  EXPECT_LT(judge("b"), 0.95 * judge("a"));
  const double measured = said["measured_kl"], predicted = said["predicted_kl"];
  EXPECT_GT(predicted, 0.25 * measured);
  EXPECT_LT(predicted, 2.5 * measured);

  // Interrupted while bits are written that come after others were measured.
  const std::vector<std::string> asked = {"--to", "gptq", "--max-kl", "0.02"};
  const auto count = [&](const Ran& ran) {
    return std::ranges::distance(ran.err | std::views::split(kMeasured)) - 1;
  };
  RunOptions interrupt;
  interrupt.timeout_s = 600;
  interrupt.signal_after_output = SIGINT;
  interrupt.signal_after = kMeasured;
  const Ran ended = qianwen(with_budget("c", asked), interrupt);
  EXPECT_EQ(ended.code, 130) << ended.err;
  EXPECT_EQ(count(ended), 1) << ended.err;
  EXPECT_TRUE(std::filesystem::exists(path("c.work/job.json")));
  EXPECT_FALSE(std::filesystem::exists(path("c")));
  const size_t at = ended.err.find(kMeasured);
  const std::string first = ended.err.substr(at, ended.err.find('\n', at) - at);
  const Ran rest = qianwen(with_budget("c", asked), patient());
  ASSERT_EQ(rest.code, 0) << rest.err;
  EXPECT_THAT(rest.err, Not(HasSubstr(first))) << "measured again";
  EXPECT_GE(count(rest), 1);
  const json kl = json::parse(rest.out);
  EXPECT_LE(kl["measured_kl"], 0.02);
  EXPECT_GE(kl["measured_kl"], 0.012);
  for (const char* left : {"c.work", "c.unproven", "c.attempts.json"})
    EXPECT_FALSE(std::filesystem::exists(path(left))) << left;
  expect_failure(quantize({"--to", "gptq", "--output", path("d")}), 2, "--budget");
  expect_failure(
      quantize({"--to", "gptq", "--budget", "4", "--imatrix", "i", "--output", path("d")}), 2,
      "--imatrix");
}

TEST_F(CliBudget, SaysWhatItWouldDoAndWhatItCannot) {
  const std::vector<std::string> few = {"--calibration", calibration_, "--sensitivity-tokens",
                                        "256"};
  const auto with = [&](std::vector<std::string> args) {
    args.insert(args.end(), few.begin(), few.end());
    return quantize(args);
  };
  const Ran dry = with({"--budget", "4.25bpw", "--dry-run"});
  ASSERT_EQ(dry.code, 0) << dry.err;
  const json said = json::parse(dry.out);
  EXPECT_FALSE(said.contains("measured_kl"));
  EXPECT_TRUE(said["output"].is_null());
  EXPECT_LE(said["bits_per_weight"], 4.25);
  EXPECT_GE(said["bits_per_weight"], 4.2);
  double damage = 0;
  for (const json& tensor : said["tensors"])
    damage += tensor["damage"].get<double>();
  EXPECT_NEAR(damage, said["predicted_kl"].get<double>(), 1e-9);
  EXPECT_FALSE(std::filesystem::exists(path("a")));

  expect_failure(with({"--budget", "4.25bpx", "--dry-run"}), 2, "4.25bpw");
  // Before anything is measured.
  for (const std::vector<std::string>& too_small :
       {std::vector<std::string>{"--max-bytes", "1000000"},
        {"--budget", "1"},
        {"--to", "gptq", "--max-bytes", "1000000"},
        {"--to", "gptq", "--budget", "2"}}) {
    std::vector<std::string> args = too_small;
    args.push_back("--dry-run");
    const Ran refused = with(args);
    expect_failure(refused, 2, ": expected at least");
    EXPECT_THAT(refused.last_error_line(), HasSubstr(", got " + args[args.size() - 2]));
    EXPECT_THAT(refused.last_error_line(), HasSubstr(args[args.size() - 3] + ": expected"));
    EXPECT_THAT(refused.err, Not(HasSubstr("measuring")));
  }
  expect_failure(with({"--max-kl", "1e-12", "--to", "q8_0", "--dry-run"}), 2, "--to");
  expect_failure(with({"--budget", "4", "--pure", "--dry-run"}), 2, "--pure");
  expect_failure(with({"--budget", "4", "--group-size", "64", "--dry-run"}), 2, "--group-size");
  expect_failure(quantize({"--dry-run"}), 2, "--budget");
  expect_failure(quantize({"--to", "q8_0", "--sensitivity-tokens", "500", "--dry-run"}), 2,
                 "--sensitivity-tokens");
}

}  // namespace
}  // namespace qw::test
