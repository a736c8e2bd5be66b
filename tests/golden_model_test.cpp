// Every checkpoint of golden/models against the numbers that Transformers gives: logits, values
// inside the layers, greedy tokens, log-probabilities, routing, inverse frequencies.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <ostream>

#include "model/rope.h"
#include "support/golden.h"
#include "support/model_runner.h"
#include "support/routing.h"
#include "support/tiny_checkpoint.h"

namespace qw::test {

namespace {

using nlohmann::json;

/// Bounds of golden/models/README.md for f32 maths, and the bound on logits.
constexpr double kLogits = 5e-4, kLogitsRelative = 1e-4, kTrace = 2e-4, kLogprob = 1e-4;
constexpr double kGreedyMargin = 0.02;

struct Case {
  std::string model, variant;
};

/// For GoogleTest's messages.
void PrintTo(const Case& test_case, std::ostream* out) {
  *out << test_case.model << " on " << test_case.variant;
}

class GoldenModel : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto path = find_golden("models/" + GetParam().model);
    ASSERT_TRUE(path);
    path_ = *path;
    expected_ = read_json(path_ + "/expected.json");
    tensors_ = read_tensors(path_ + "/expected.safetensors");
    runner_ = std::make_unique<ModelRunner>(path_, GetParam().variant);
    exact_ = is_exact(GetParam().variant);
  }

  /// The part of expected.json that holds the prompts: sliding-window models are judged by the
  /// documented meaning (windows per layer), not by that of one library release.
  const json& prompts() const {
    return expected_.contains("per_layer_window") ? expected_["per_layer_window"]["prompts"]
                                                  : expected_["prompts"];
  }
  bool by_layer() const { return expected_.contains("per_layer_window"); }

  /// Largest logit difference that is allowed: f32 maths, or twice what 16-bit activations do to
  /// the same model in torch (see docs/accuracy.md).
  double logit_tolerance() const {
    if (exact_) return kLogits;
    double worst = 0.1;
    for (const char* key : {"difference_to_bfloat16_maths", "difference_to_float16_maths"}) {
      if (!expected_.contains(key)) continue;
      for (const auto& [prompt, values] : expected_[key].items())
        worst = std::max(worst, values["max_abs_diff"].get<double>());
    }
    return 2 * worst;
  }

  std::string path_;
  json expected_;
  std::map<std::string, RawTensor> tensors_;
  std::unique_ptr<ModelRunner> runner_;
  bool exact_ = true;
};

TEST_P(GoldenModel, LogitsOfEveryPrompt) {
  const std::string& variant = GetParam().variant;
  const double bound = exact_ ? kLogitsRelative : logits_bound(runner_->model(), variant);
  RoutingCheck routing(*runner_, variant);
  Difference worst;
  for (const json& prompt : prompts()) {
    const Difference d = routing.difference(prompt["input_ids"], prompt["positions"],
                                            floats_of(tensors_.at(prompt["logits"])));
    EXPECT_LE(d.absolute, logit_tolerance()) << prompt["name"];
    EXPECT_LE(d.relative, bound) << prompt["name"];
    worst = {std::max(worst.absolute, d.absolute), std::max(worst.relative, d.relative)};
  }
  RecordProperty("largest_difference", fmt::format("{:.3g}", worst.absolute));
  RecordProperty("relative_to_range", fmt::format("{:.3g}", worst.relative));
  RecordProperty("flipped_choices", std::to_string(routing.n_flips()));
  RecordProperty("flipped_margin", fmt::format("{:.3g}", routing.largest_margin()));
  RecordProperty("flipped_relative", fmt::format("{:.3g}", routing.of_flipped_rows().relative));
}

class GoldenTrace : public GoldenModel {};

TEST_P(GoldenTrace, ValuesInsideTheLayers) {
  Recorder recorder;
  for (const json& prompt : expected_["prompts"]) {
    if (prompt["name"] == expected_["trace"]["prompt"])
      runner_->logits(prompt["input_ids"], {}, &recorder);
  }
  for (const auto& [name, shape] : expected_["trace"]["tensors"].items()) {
    const auto found = recorder.values().find(name.substr(std::string("trace.").size()));
    ASSERT_NE(found, recorder.values().end()) << name;
    const auto want = floats_of(tensors_.at(name));
    EXPECT_LE(largest_difference(found->second, want, static_cast<int64_t>(want.size())).absolute,
              kTrace)
        << name;
  }
}

TEST_P(GoldenModel, GreedyTokens) {
  const json& source = by_layer() ? expected_["per_layer_window"] : expected_;
  if (!source.contains("greedy")) GTEST_SKIP() << "no greedy run";
  std::vector<int32_t> prompt;
  for (const json& p : prompts())
    if (p["name"] == "len17") prompt = p["input_ids"].get<std::vector<int32_t>>();
  const double tolerance = exact_ ? kGreedyMargin : 2 * logit_tolerance();
  const auto check = [&](const json& want, bool recompute) {
    const std::vector<int32_t> tokens = want["tokens"];
    const GreedyCheck result = compare_greedy(runner_->greedy(prompt, tokens.size(), recompute),
                                              tokens, want["margins"], tolerance);
    EXPECT_GE(result.agree, result.must_agree);
    if (exact_) {
      EXPECT_EQ(result.must_agree, tokens.size());
    }
  };
  check(source["greedy"], false);
  if (source.contains("greedy_full_recompute")) check(source["greedy_full_recompute"], true);
}

TEST_P(GoldenModel, LogProbabilitiesOfAGivenText) {
  const json& source = by_layer() ? expected_["per_layer_window"] : expected_;
  if (!source.contains("teacher_forced")) GTEST_SKIP() << "no teacher-forced run";
  const json& forced = source["teacher_forced"];
  const std::vector<double> got = runner_->logprobs(forced["input_ids"]);
  const std::vector<double> want = forced["logprobs"];
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_NEAR(got[i], want[i], exact_ ? kLogprob : 2 * logit_tolerance()) << i;
  const double nll =
      -std::accumulate(got.begin(), got.end(), 0.0) / static_cast<double>(got.size());
  EXPECT_NEAR(nll, forced["mean_nll"].get<double>(), exact_ ? 1e-5 : 0.05);
}

class GoldenRouting : public GoldenModel {};

TEST_P(GoldenRouting, ExpertsAndTheirWeights) {
  Recorder recorder;
  for (const json& prompt : expected_["prompts"]) {
    if (prompt["name"] == "len17") runner_->logits(prompt["input_ids"], {}, &recorder);
  }
  const MoeConfig& moe = *runner_->model().config().moe;
  for (const auto& [layer, want] : expected_["moe"].items()) {
    const auto& logits = recorder.values().at(layer + ".router_logits");
    const auto n = static_cast<size_t>(moe.n_experts);
    for (size_t t = 0; t < want["experts"].size(); ++t) {
      std::vector<size_t> order(n);
      std::iota(order.begin(), order.end(), size_t{0});
      const float* row = logits.data() + t * n;
      std::ranges::sort(order, [&](size_t a, size_t b) { return row[a] > row[b]; });
      order.resize(static_cast<size_t>(moe.top_k));
      EXPECT_EQ(order, want["experts"][t].get<std::vector<size_t>>()) << layer << " token " << t;
    }
  }
}

class GoldenRope : public GoldenModel {};

TEST_P(GoldenRope, InverseFrequencies) {
  const json& rope = expected_["rope"];
  const Rope table(runner_->model().config());
  EXPECT_FLOAT_EQ(table.attention_scaling(), rope["attention_scaling"].get<float>());
  const auto compare = [&](const json& want, int64_t length) {
    const std::vector<float> got = table.inverse_frequencies(length);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      const float w = want[i].get<float>();  // two units in the last place: torch's own pow
      EXPECT_NEAR(got[i], w, static_cast<double>(w) * 2.4e-7) << length << " " << i;
    }
  };
  if (rope.contains("inv_freq")) compare(rope["inv_freq"], 1);
  if (rope.contains("inv_freq_by_sequence_length")) {
    for (const auto& [length, want] : rope["inv_freq_by_sequence_length"].items())
      compare(want, std::stoll(length));
  }
}

// The same network in the containers of torch.save.
class GoldenTorchFile : public testing::TestWithParam<std::string> {};

TEST_P(GoldenTorchFile, EqualsTheSafetensorsModel) {
  const auto path = find_golden("models/" + GetParam());
  const auto base = find_golden("models/dense-mha-tied");
  if (!path || !base) GTEST_SKIP() << "golden not here";
  const json expected = read_json(*base + "/expected.json");
  auto tensors = read_tensors(*base + "/expected.safetensors");
  ModelRunner runner(*path, "reference");
  for (const json& prompt : expected["prompts"]) {
    const auto got = runner.logits(prompt["input_ids"], prompt["positions"]);
    EXPECT_LE(
        largest_difference(got, floats_of(tensors.at(prompt["logits"])), runner.vocab()).absolute,
        kLogits);
  }
}

// What a rounded KV cache costs, with the family's heads of 128; the bounds of docs/accuracy.md.
class KvTypes : public testing::TestWithParam<std::tuple<DType, double>> {};

TEST_P(KvTypes, StayWithinTheirBound) {
  const auto [type, bound] = GetParam();
  const TinyCheckpoint checkpoint(TinyShape{.tied = true,
                                            .hidden = 256,
                                            .intermediate = 512,
                                            .vocab = 512,
                                            .n_heads = 2,
                                            .n_kv_heads = 1});
  const std::string path = checkpoint.write();
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 64; ++i)
    ids.push_back(i * 37 % 512);
  const std::vector<int32_t> rows = {0, 15, 31, 47, 63};
  const auto want = ModelRunner(path, "reference").logits(ids, rows);
  for (const char* variant : {"reference", "cpu_f32"}) {
    ModelRunner runner(path, variant, type);
    const auto got = runner.logits(ids, rows);
    const Difference d = largest_difference(got, want, runner.vocab());
    EXPECT_LE(d.relative, bound) << variant;
    EXPECT_GT(d.relative, bound / 100) << variant << ": was nothing rounded?";
    RecordProperty(variant, std::to_string(d.relative));
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, KvTypes,
    testing::Values(std::tuple(DType::kF16, 1e-3), std::tuple(DType::kBF16, 0.01),
                    std::tuple(DType::kQ8_0, 0.02), std::tuple(DType::kQ4_0, 0.3)),
    [](const auto& one) { return std::string(name_of(std::get<0>(one.param))); });

/// Every model whose expected.json has `key` (all of them when it is empty), on these backends.
std::vector<Case> cases(const std::string& key, const std::vector<std::string>& variants) {
  std::vector<Case> out;
  for (const std::string& model : golden_names("models")) {
    const json expected = read_json(*find_golden("models/" + model + "/expected.json"));
    if (!key.empty() && !expected.contains(key)) continue;
    // Traces of sliding-window models were made with windows on every layer.
    if (key == "trace" && expected.contains("per_layer_window")) continue;
    for (const std::string& variant : variants)
      out.push_back({model, variant});
  }
  return out;
}

const auto kCaseName = [](const auto& one) {
  return test_name(one.param.model + "_" + one.param.variant);
};

INSTANTIATE_TEST_SUITE_P(All, GoldenModel,
                         testing::ValuesIn(cases("", {"reference", "cpu_f32", "cpu_f32kv", "cpu"})),
                         kCaseName);
INSTANTIATE_TEST_SUITE_P(All, GoldenTrace,
                         testing::ValuesIn(cases("trace", {"reference", "cpu_f32"})), kCaseName);
INSTANTIATE_TEST_SUITE_P(All, GoldenRouting,
                         testing::ValuesIn(cases("moe", {"reference", "cpu_f32"})), kCaseName);
INSTANTIATE_TEST_SUITE_P(All, GoldenRope, testing::ValuesIn(cases("rope", {"reference"})),
                         kCaseName);
INSTANTIATE_TEST_SUITE_P(All, GoldenTorchFile,
                         testing::Values("bin-zip", "bin-legacy", "bin-sharded"),
                         [](const auto& one) { return one.param.substr(4); });

}  // namespace

}  // namespace qw::test
