// Adapters against peft's numbers: live on their base, merged, several together, from GGUF.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <ostream>

#include "base/error.h"
#include "support/golden.h"
#include "support/model_runner.h"

namespace qw::test {

namespace {

using nlohmann::json;

constexpr double kLogits = 5e-4, kGreedyMargin = 0.02;
/// Of 16-bit maths on these bases (golden/models/README.md: 0.66 for the mixture of experts).
constexpr double kLogits16Bit = 1.4;

struct Case {
  std::string adapter, variant;
};

/// For GoogleTest's messages.
void PrintTo(const Case& test_case, std::ostream* out) {
  *out << test_case.adapter << " on " << test_case.variant;
}

class GoldenLora : public testing::TestWithParam<Case> {};

TEST_P(GoldenLora, LogitsAndGreedyTokens) {
  const auto path = find_golden("models/lora/" + GetParam().adapter);
  ASSERT_TRUE(path);
  const json expected = read_json(*path + "/expected.json");
  const std::string base = std::filesystem::path(expected["base"].get<std::string>()).filename();
  const auto base_path = find_golden("models/" + base);
  if (!base_path) GTEST_SKIP() << "base " << base << " is not here";
  auto tensors = read_tensors(*path + "/expected.safetensors");
  ModelRunner runner(*base_path, GetParam().variant);
  runner.adapter = runner.model().add_adapters({{*path, 1.0}});
  const bool exact = is_exact(GetParam().variant);
  for (const json& prompt : expected["prompts"]) {
    const auto got = runner.logits(prompt["input_ids"], prompt["positions"]);
    const auto want = floats_of(tensors.at(prompt["logits"]));
    EXPECT_LE(largest_difference(got, want, runner.vocab()).absolute,
              exact ? kLogits : kLogits16Bit);
    if (!exact) continue;
    // The merged weights give the same: the live deltas are the merge, seen from outside.
    const auto merged = runner.logits(prompt["input_ids"], prompt["merged_positions"]);
    EXPECT_LE(
        largest_difference(merged, floats_of(tensors.at(prompt["merged_logits"])), runner.vocab())
            .absolute,
        kLogits);
    EXPECT_GT(prompt["max_abs_diff_to_base"].get<double>(), 100 * kLogits)
        << "adapter without effect";
  }
  if (!exact) return;
  const json& greedy = expected["greedy"];
  const std::vector<int32_t> tokens = greedy["tokens"];
  const GreedyCheck check =
      compare_greedy(runner.greedy(expected["prompts"][0]["input_ids"], tokens.size()), tokens,
                     greedy["margins"], kGreedyMargin);
  EXPECT_GE(check.agree, check.must_agree);
}

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const std::string& adapter : golden_names("models/lora")) {
    for (const char* variant : {"reference", "cpu_f32", "cpu_f32kv", "cpu"})
      out.push_back({adapter, variant});
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(All, GoldenLora, testing::ValuesIn(cases()), [](const auto& one) {
  return test_name(one.param.adapter + "_" + one.param.variant);
});

class Adapters : public testing::Test {
 protected:
  void SetUp() override {
    const auto base = find_golden("models/dense-mha-tied");
    const auto attention = find_golden("models/lora/attn-r8");
    const auto patterns = find_golden("models/lora/patterns-bf16");
    if (!base || !attention || !patterns) GTEST_SKIP() << "goldens not here";
    runner_ = std::make_unique<ModelRunner>(*base, "reference");
    attention_ = *attention;
    patterns_ = *patterns;
  }
  std::vector<float> with(int32_t adapter) {
    runner_->adapter = adapter;
    return runner_->logits({5, 17, 301, 44, 8}, {4});
  }
  std::unique_ptr<ModelRunner> runner_;
  std::string attention_, patterns_;
};

TEST_F(Adapters, OfOneCombinationDoNotDependOnTheirOrder) {
  Model& model = runner_->model();
  const auto both = with(model.add_adapters({{attention_, 1.0}, {patterns_, 0.5}}));
  const auto turned = with(model.add_adapters({{patterns_, 0.5}, {attention_, 1.0}}));
  const auto first_only = with(model.add_adapters({{attention_, 1.0}}));
  EXPECT_LE(largest_difference(turned, both, runner_->vocab()).absolute, 1e-4);
  EXPECT_GT(largest_difference(first_only, both, runner_->vocab()).absolute, 0.1);
}

TEST_F(Adapters, AddLinearlyAndScaleToNothing) {
  Model& model = runner_->model();
  const auto base = with(-1);
  EXPECT_EQ(with(model.add_adapters({{attention_, 0.0}})), base);
  const auto once = with(model.add_adapters({{attention_, 1.0}}));
  const auto halves = with(model.add_adapters({{attention_, 0.5}, {attention_, 0.5}}));
  EXPECT_LE(largest_difference(halves, once, runner_->vocab()).absolute, 1e-4);
  EXPECT_EQ(with(-1), base) << "an adapter leaked into the base";
}

TEST_F(Adapters, OfAnotherModelAreRefusedByModule) {
  const auto other = find_golden("models/lora/all-linear-rslora-r4");
  const auto experts = find_golden("models/lora/moe-attn-experts");
  if (!other || !experts) GTEST_SKIP() << "goldens not here";
  for (const std::string& path : {*other, *experts}) {
    try {
      runner_->model().add_adapters({{path, 1.0}});
      FAIL() << path << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kCorrupt);
      EXPECT_NE(error.message().find("layers."), std::string::npos) << error.message();
    }
  }
  EXPECT_EQ(runner_->model().add_adapters({{attention_, 1.0}}), 0) << "a failure left a trace";
}

class GoldenGgufLora : public testing::TestWithParam<std::string> {};

TEST_P(GoldenGgufLora, LogitsAndGreedyTokens) {
  const auto expected_path = find_golden("gguf/expected/" + GetParam() + ".json");
  ASSERT_TRUE(expected_path);
  const json expected = read_json(*expected_path);
  const auto base = find_golden("gguf/" + expected["file"].get<std::string>());
  const auto gguf = find_golden("gguf/" + expected["lora"].get<std::string>());
  const auto peft = find_golden("gguf/" + expected["peft"].get<std::string>());
  const auto values = find_golden("gguf/expected/" + GetParam() + ".safetensors");
  if (!base || !gguf || !values) GTEST_SKIP() << "golden not here";
  auto tensors = read_tensors(*values);
  // Expected are the numbers of the peft directory that the GGUF adapter was converted from, which
  // must do the same to a GGUF base; nano-lorafull was rounded to f16 on the way.
  for (const auto& path : {gguf, peft}) {
    if (!path) continue;
    const bool rounded = path == gguf && GetParam() == "nano-lorafull";
    ModelRunner runner(*base, "reference");
    runner.adapter = runner.model().add_adapters({{*path, 1.0}});
    for (const json& prompt : expected["prompts"]) {
      const std::vector<int32_t> ids = prompt["ids"];
      const auto last = static_cast<int32_t>(ids.size() - 1);
      const auto want = floats_of(tensors.at("logits_" + std::to_string(ids.size())));
      EXPECT_LE(largest_difference(runner.logits(ids, {last}), want, runner.vocab()).absolute,
                rounded ? 0.02 : 2e-4);
      if (rounded) continue;
      const std::vector<int32_t> tokens = prompt["greedy"];
      const GreedyCheck check =
          compare_greedy(runner.greedy(ids, tokens.size()), tokens, prompt["margins"], 4e-4);
      EXPECT_GE(check.agree, check.must_agree);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenGgufLora, testing::Values("nano-lora", "nano-lorafull"),
                         [](const auto& one) { return test_name(one.param); });

}  // namespace

}  // namespace qw::test
