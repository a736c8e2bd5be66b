// Whole models from quantised files: GPTQ and AWQ directories, GGUF files of every type.
// Expected are f32 maths with the dequantised weights; the dequantisation itself is tested bit
// for bit elsewhere.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <ostream>

#include "support/golden.h"
#include "support/model_runner.h"
#include "support/routing.h"

namespace qw::test {

namespace {

using nlohmann::json;

constexpr double kLogits = 2e-4, kLogitsRelative = 1e-4;

struct Case {
  std::string name, variant;
};

std::vector<Case> cases_of(const std::vector<std::string>& names) {
  std::vector<Case> out;
  for (const std::string& name : names) {
    for (const char* variant : {"reference", "cpu_f32", "cpu_f32kv", "cpu"})
      out.push_back({name, variant});
  }
  return out;
}

/// For GoogleTest's messages.
void PrintTo(const Case& test_case, std::ostream* out) {
  *out << test_case.name << " on " << test_case.variant;
}

std::string name_of_case(const testing::TestParamInfo<Case>& info) {
  return test_name(info.param.name + "_" + info.param.variant);
}

Difference larger_of(const Difference& a, const Difference& b) {
  return {std::max(a.absolute, b.absolute), std::max(a.relative, b.relative)};
}

/// For docs/accuracy.md: what was measured, in the test's report (--gtest_output=json:FILE).
void record(const Difference& worst, const RoutingCheck& routing) {
  testing::Test::RecordProperty("largest_difference", fmt::format("{:.3g}", worst.absolute));
  testing::Test::RecordProperty("relative_to_range", fmt::format("{:.3g}", worst.relative));
  if (routing.n_flips() == 0) return;
  testing::Test::RecordProperty("flipped_choices", std::to_string(routing.n_flips()));
  testing::Test::RecordProperty("flipped_margin", fmt::format("{:.3g}", routing.largest_margin()));
  testing::Test::RecordProperty("flipped_relative",
                                fmt::format("{:.3g}", routing.of_flipped_rows().relative));
}

/// Steps whose margin is larger than this must give the golden's token: both logits may move by
/// the difference that was seen at the prompts, half as much again for places not looked at.
double greedy_margin(const Difference& worst, bool exact) {
  return exact ? 2 * kLogits : 3 * worst.absolute;
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// ---- GPTQ and AWQ ---------------------------------------------------------------------------

class GoldenGrouped : public testing::TestWithParam<Case> {};

TEST_P(GoldenGrouped, LogitsGreedyTokensAndPerplexity) {
  // Models and expected values may lie in different roots.
  const std::string& name = GetParam().name;
  const json expected = read_json(*find_golden(name + "/expected.json"));
  auto tensors = read_tensors(*find_golden(name + "/expected.safetensors"));
  const auto config = find_golden(name + "/config.json");
  ModelRunner runner(std::filesystem::path(*config).parent_path().string(), GetParam().variant);
  const bool exact = is_exact(GetParam().variant);
  const double bound = exact ? kLogitsRelative : logits_bound(runner.model(), GetParam().variant);
  RoutingCheck routing(runner, GetParam().variant);
  Difference worst;
  for (const auto& [input_name, input] : expected["inputs"].items()) {
    const std::vector<int32_t> ids = input;
    std::vector<int32_t> rows(ids.size());
    std::iota(rows.begin(), rows.end(), 0);
    const Difference d =
        routing.difference(ids, rows, floats_of(tensors.at("logits." + input_name)));
    worst = larger_of(worst, d);
    EXPECT_LE(d.relative, bound) << input_name;
    if (exact) {
      EXPECT_LE(d.absolute, kLogits) << input_name;
    }
  }
  record(worst, routing);
  const json& greedy = expected["greedy"];
  const std::vector<int32_t> tokens = greedy["tokens"];
  const GreedyCheck check = compare_greedy(runner.greedy(greedy["prompt"], tokens.size()), tokens,
                                           greedy["margin_to_second"], greedy_margin(worst, exact));
  EXPECT_GE(check.agree, check.must_agree);
  if (exact) {
    EXPECT_GE(check.must_agree, tokens.size() / 2) << "the margins leave nothing to compare";
  }
  if (!expected.contains("perplexity")) return;
  const json& perplexity = expected["perplexity"];
  std::vector<int32_t> ids;
  if (perplexity.contains("stream_ids")) {
    ids = perplexity["stream_ids"].get<std::vector<int32_t>>();
  } else {
    const std::string stream = perplexity["stream"];  // "../BASE/FILE", seen from the model
    const auto found =
        find_golden((std::filesystem::path(name) / stream).lexically_normal().string());
    ASSERT_TRUE(found) << stream;
    ids = read_json(*found)["ids"].get<std::vector<int32_t>>();
  }
  const double nll = perplexity["quantised"]["mean_nll"];
  EXPECT_NEAR(-mean(runner.logprobs(ids)), nll, exact ? 1e-4 : 0.03);
}

std::vector<std::string> grouped_names() {
  std::vector<std::string> out;
  for (const char* folder : {"gptq", "awq"}) {
    for (const std::string& name : golden_names(folder))
      if (find_golden(std::string(folder) + "/" + name + "/config.json"))
        out.push_back(std::string(folder) + "/" + name);
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(All, GoldenGrouped, testing::ValuesIn(cases_of(grouped_names())),
                         name_of_case);

// ---- GGUF -----------------------------------------------------------------------------------

class GoldenGguf : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    expected_ = read_json(*find_golden("gguf/expected/" + GetParam().name + ".json"));
    const json& where = expected_.contains("parts") ? expected_["parts"][0] : expected_["file"];
    path_ = find_golden("gguf/" + where.get<std::string>());
    if (!path_) GTEST_SKIP() << where << " is not here";
    runner_ = std::make_unique<ModelRunner>(*path_, GetParam().variant);
  }
  bool exact() const { return is_exact(GetParam().variant); }

  json expected_;
  std::optional<std::string> path_;
  std::unique_ptr<ModelRunner> runner_;
};

TEST_P(GoldenGguf, LogitsAndGreedyTokens) {
  const auto values = find_golden("gguf/expected/" + GetParam().name + ".safetensors");
  ASSERT_TRUE(values);
  auto tensors = read_tensors(*values);
  const double bound =
      exact() ? kLogitsRelative : logits_bound(runner_->model(), GetParam().variant);
  RoutingCheck routing(*runner_, GetParam().variant);
  Difference worst;
  for (const json& prompt : expected_["prompts"]) {
    const std::vector<int32_t> ids = prompt["ids"];
    const auto want = floats_of(tensors.at("logits_" + std::to_string(ids.size())));
    const Difference d = routing.difference(ids, {static_cast<int32_t>(ids.size() - 1)}, want);
    worst = larger_of(worst, d);
    EXPECT_LE(d.relative, bound) << ids.size() << " ids";
    if (exact()) {
      EXPECT_LE(d.absolute, kLogits) << ids.size() << " ids";
    }
    const std::vector<int32_t> tokens = prompt["greedy"];
    const GreedyCheck check = compare_greedy(runner_->greedy(ids, tokens.size()), tokens,
                                             prompt["margins"], greedy_margin(worst, exact()));
    EXPECT_GE(check.agree, check.must_agree) << ids.size() << " ids";
  }
  record(worst, routing);
}

// As llama-perplexity counts it: windows of 128 without overlap, the second half of each predicts.
TEST_P(GoldenGguf, Perplexity) {
  const auto ids_path = find_golden("gguf/ppl_tokens.json");
  if (!ids_path || !expected_.contains("perplexity")) GTEST_SKIP() << "no perplexity";
  const std::vector<int32_t> ids = read_json(*ids_path)["ids"];
  const json& want = expected_["perplexity"];
  const auto window = want["n_ctx"].get<size_t>();
  std::vector<double> logprobs;
  for (size_t chunk = 0; chunk < want["chunks"].get<size_t>(); ++chunk) {
    const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(chunk * window);
    const auto part = runner_->logprobs({begin, begin + static_cast<std::ptrdiff_t>(window)});
    logprobs.insert(logprobs.end(), part.begin() + static_cast<std::ptrdiff_t>(window / 2),
                    part.end());
  }
  ASSERT_EQ(logprobs.size(), want["tokens_counted"].get<size_t>());
  const double log_perplexity = std::log(want["transformers_fp32"].get<double>());
  EXPECT_NEAR(-mean(logprobs), log_perplexity, exact() ? 1e-5 : 0.03);
}

std::vector<std::string> gguf_names() {
  std::vector<std::string> names = golden_names("gguf/expected");
  std::erase_if(names, [](const std::string& name) { return name.starts_with("nano-lora"); });
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, GoldenGguf, testing::ValuesIn(cases_of(gguf_names())), name_of_case);

}  // namespace

}  // namespace qw::test
