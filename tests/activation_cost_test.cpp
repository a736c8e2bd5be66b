// What rounding activations to 8 bits costs a trained model: the change of its perplexity.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/bundle.h"
#include "engine/perplexity.h"
#include "support/gguf_from_hf.h"
#include "text/tokenizer.h"

namespace qw {
namespace {

const std::string kRoot = QIANWEN_SOURCE_DIR;

/// The bundled model's own evaluation, questions with answers, one after another.
std::string evaluation_text() {
  std::string text;
  std::ifstream in(kRoot + "/tests/golden/mini/test_items.jsonl");
  for (std::string line; std::getline(in, line);) {
    const auto row = nlohmann::json::parse(line);
    const auto& expected = row["expected"];
    text += row["prompt"].get<std::string>() +
            (expected.is_string() ? expected.get<std::string>() : expected.dump()) + "\n";
  }
  return text;
}

/// Mean negative log-probability of a token, keys and values in f32.
double nll_of(const std::string& path, ActivationMode activations) {
  OpenOptions options;
  options.quiet = true;
  options.engine.kv_type = "f32";
  options.backend.activations = activations;
  const auto loaded = open_model(path, options);
  const auto engine = loaded->make_engine();
  std::vector<int32_t> ids = loaded->tokenizer->encode(evaluation_text());
  ids.resize(std::min<size_t>(ids.size(), 80'000));
  PerplexityOptions windows;
  windows.window = 512;
  return compute_perplexity(*engine, ids, windows).nll;
}

class MiniAccuracyOfInt8 : public testing::TestWithParam<DType> {};

TEST_P(MiniAccuracyOfInt8, CostsBelowAFifthOfAPercentOfPerplexity) {
  const DType type = GetParam();
  const auto path = std::filesystem::temp_directory_path() /
                    (std::to_string(::getpid()) + "-cost-" + std::string(name_of(type)) + ".gguf");
  test::write_gguf_from_hf(kRoot + "/models/qianwen-mini-chat", path.string(), type);
  const double exact = nll_of(path.string(), ActivationMode::kF32),
               rounded = nll_of(path.string(), ActivationMode::kInt8);
  std::filesystem::remove(path);
  const double change = std::exp(rounded - exact) - 1;
  EXPECT_NE(rounded, exact);
  EXPECT_LT(std::abs(change), 0.002);
  RecordProperty("perplexity", std::to_string(std::exp(exact)));
  RecordProperty("change", std::to_string(change));
  std::printf("perplexity %.4f, with 8-bit activations %+.3f %%\n", std::exp(exact), 100 * change);
}

INSTANTIATE_TEST_SUITE_P(Types, MiniAccuracyOfInt8, testing::Values(DType::kQ8_0, DType::kQ4_0),
                         [](const auto& type) { return std::string(name_of(type.param)); });

}  // namespace
}  // namespace qw
