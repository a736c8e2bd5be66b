// GPTQ beside AutoGPTQ on one published matrix: its codes as a reference, less error by default.
//
// Expected values: golden/gptq/quantiser_matrix, which is too large to be copied into the project;
// it is looked for in QIANWEN_SHARED (default: ../shared beside the project).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/half.h"
#include "base/mapped_file.h"
#include "checkpoint/safetensors.h"
#include "quant/gptq.h"
#include "quantize/gptq_solver.h"
#include "quantize/test_support.h"

namespace qw::quantize {
namespace {

using test::at;
using test::Floats;
using test::Team;

std::string golden_folder() {
  const char* shared = std::getenv("QIANWEN_SHARED");
  const std::filesystem::path root = shared != nullptr ? shared : QIANWEN_SOURCE_DIR "/../shared";
  return (root / "golden/gptq/quantiser_matrix").string();
}

struct Golden {
  nlohmann::json expected;
  std::map<std::string, RawTensor> tensors;
  int64_t n = 0, k = 0, n_sequences = 0;
  Floats w, x;

  Floats floats(const std::string& name) const {
    const RawTensor& tensor = tensors.at(name);
    Floats out(at(tensor.shape.n_elems()));
    std::memcpy(out.data(), tensor.bytes.data(), tensor.bytes.size());
    return out;
  }
  LinearSource weights() const { return test::matrix(n, k, w); }
};

std::optional<Golden> read_golden() {
  if (!std::filesystem::exists(golden_folder())) return std::nullopt;
  Golden out;
  out.expected = nlohmann::json::parse(read_text_file(golden_folder() + "/expected.json"));
  const auto file = MappedFile::open(golden_folder() + "/tensors.safetensors");
  for (RawTensor& tensor : read_safetensors(file).tensors)
    out.tensors.emplace(tensor.name, tensor);
  out.n = out.expected["out_features"];
  out.k = out.expected["in_features"];
  out.n_sequences = out.expected["sequences"];
  out.w = out.floats("W");
  const RawTensor& x = out.tensors.at("X");
  for (int64_t i = 0; i < x.shape.n_elems(); ++i) {
    uint16_t half;
    std::memcpy(&half, x.bytes.data() + i * 2, 2);
    out.x.push_back(f16_to_f32(half));
  }
  return out;
}

Hessian hessian_of(const Golden& golden, const MatrixTeam& team) {
  Hessian out("golden", golden.k, team);
  const int64_t n_tokens = static_cast<int64_t>(golden.x.size()) / golden.k / golden.n_sequences;
  for (int64_t s = 0; s < golden.n_sequences; ++s)
    out.add(golden.x.data() + s * n_tokens * golden.k, n_tokens, golden.k);
  return out;
}

GptqOptions options_of(const nlohmann::json& golden, GptqOptions::Mode mode) {
  GptqOptions out;
  out.mode = mode;
  out.bits = golden["bits"];
  out.group_size = golden["group_size"];
  out.sym = golden["sym"];
  out.desc_act = golden["desc_act"];
  out.static_groups = golden["static_groups"];
  return out;
}

std::vector<uint8_t> codes_of(const Golden& golden, const std::string& name, int bits) {
  std::vector<uint8_t> out;
  const RawTensor& tensor = golden.tensors.at(name + (bits == 8 ? ".codes" : ".codes4"));
  for (const std::byte byte : tensor.bytes) {
    const auto value = static_cast<uint8_t>(byte);
    if (bits == 8) {
      out.push_back(value);
    } else {
      out.push_back(value & 15);
      out.push_back(value >> 4);
    }
  }
  return out;
}

double largest_relative_difference(const Floats& a, const Floats& b) {
  double out = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double expected = b[i];
    out = std::max(out, std::abs(a[i] - expected) / std::max(std::abs(expected), 1e-30));
  }
  return out;
}

TEST(GptqGolden, HessianIsAutoGptqs) {
  const auto golden = read_golden();
  if (!golden) GTEST_SKIP() << "no " << golden_folder();
  const Team team;
  const Hessian hessian = hessian_of(*golden, team);
  const Floats h = golden->floats("H");
  for (int64_t i = 0; i < golden->k; ++i) {
    for (int64_t j = 0; j < golden->k; ++j) {
      const double bound = 1e-5 * std::sqrt(static_cast<double>(h[at(i * golden->k + i)]) *
                                            static_cast<double>(h[at(j * golden->k + j)]));
      ASSERT_NEAR(hessian.scale() * static_cast<double>(hessian.at(i, j)), h[at(i * golden->k + j)],
                  bound)
          << i << ' ' << j;
    }
  }
}

TEST(GptqGolden, OrderAndFactorAreAutoGptqs) {
  const auto golden = read_golden();
  if (!golden) GTEST_SKIP() << "no " << golden_folder();
  const Team team;
  const Hessian hessian = hessian_of(*golden, team);
  GptqOptions options;
  options.mode = GptqOptions::Mode::kReference;
  options.desc_act = true;
  std::vector<int64_t> order;
  const RawTensor& expected = golden->tensors.at("order_desc_act");
  for (int64_t i = 0; i < golden->k; ++i) {
    if (expected.dtype == DType::kI64) {
      int64_t value;
      std::memcpy(&value, expected.bytes.data() + i * 8, 8);
      order.push_back(value);
    } else {
      int32_t value;
      std::memcpy(&value, expected.bytes.data() + i * 4, 4);
      order.push_back(value);
    }
  }
  const GptqFactor in_order(hessian, options, team);
  EXPECT_EQ(std::vector<int64_t>(in_order.order().begin(), in_order.order().end()), order);

  options.desc_act = false;
  const GptqFactor factor(hessian, options, team);
  EXPECT_EQ(factor.n_dead(), 1);
  const Floats u = golden->floats("Hinv_upper_cholesky");
  for (const GptqFactor::Block& block : factor.blocks()) {
    for (int64_t i = 0; i < block.size(); ++i) {
      const double pivot = u[at((block.begin + i) * golden->k + block.begin + i)];
      for (int64_t j = 0; j <= i; ++j) {
        ASSERT_NEAR(block.feedback[i * block.size() + j],
                    u[at((block.begin + j) * golden->k + block.begin + i)], 1e-4 * pivot)
            << block.begin << ' ' << i << ' ' << j;
      }
    }
  }
}

TEST(GptqGolden, ReferenceModeIsAutoGptq) {
  const auto golden = read_golden();
  if (!golden) GTEST_SKIP() << "no " << golden_folder();
  const Team team;
  const Hessian hessian = hessian_of(*golden, team);
  const double least = golden->expected["float64_agreement_min"].get<double>() - 0.01;
  for (const auto& [name, expected] : golden->expected["cases"].items()) {
    SCOPED_TRACE(name);
    const GptqOptions options = options_of(expected, GptqOptions::Mode::kReference);
    const GptqFactor factor(hessian, options, team);
    const GptqResult result = gptq_quantise(golden->weights(), factor, team);
    const std::vector<uint8_t> codes = codes_of(*golden, name, options.bits);
    ASSERT_EQ(codes.size(), result.matrix->code_values.size());
    int64_t n_equal = 0;
    for (size_t i = 0; i < codes.size(); ++i)
      n_equal += codes[i] == result.matrix->code_values[i];
    EXPECT_GE(static_cast<double>(n_equal) / static_cast<double>(codes.size()), least);
    EXPECT_LE(
        largest_relative_difference(result.matrix->scale_values, golden->floats(name + ".scales")),
        1e-4);
    EXPECT_EQ(result.matrix->zero_values, golden->floats(name + ".zeros"));
    std::vector<int32_t> g_idx(at(golden->k)), groups = result.matrix->group_of;
    std::memcpy(g_idx.data(), golden->tensors.at(name + ".g_idx").bytes.data(), g_idx.size() * 4);
    for (int64_t i = 0; result.matrix->group_of.empty() && i < golden->k; ++i)
      groups.push_back(static_cast<int32_t>(i / result.matrix->group_size));
    EXPECT_EQ(groups, g_idx);
    const double loss = expected["loss"], mse = expected["out_mse"];
    EXPECT_NEAR(result.loss, loss, 0.005 * loss);
    EXPECT_NEAR(test::out_mse(golden->weights(), result.source, golden->x), mse, 0.01 * mse);
  }
}

TEST(GptqGolden, BetterModeHasLessErrorInEveryCaseAndPublishesExactly) {
  const auto golden = read_golden();
  if (!golden) GTEST_SKIP() << "no " << golden_folder();
  const Team team;
  const Hessian hessian = hessian_of(*golden, team);
  std::printf("%-24s %12s %12s %8s\n", "case", "reference", "better", "ratio");
  for (const auto& [name, expected] : golden->expected["cases"].items()) {
    SCOPED_TRACE(name);
    const GptqOptions options = options_of(expected, GptqOptions::Mode::kBetter);
    const GptqFactor factor(hessian, options, team);
    const GptqResult result = gptq_quantise(golden->weights(), factor, team);
    const double mse = test::out_mse(golden->weights(), result.source, golden->x);
    const double reference = expected["out_mse"];
    std::printf("%-24s %12.6f %12.6f %8.3f\n", name.c_str(), reference, mse, mse / reference);
    EXPECT_LT(mse, 0.95 * reference);

    const GptqFile file = publish_gptq(*result.matrix, false, name);
    const GptqFile::Views views = file.views(name);
    const auto opened = open_gptq({options.bits, options.group_size, options.desc_act, options.sym},
                                  views.tensors(name));
    EXPECT_EQ(test::decode(source_of(name, opened)), test::decode(result.source));
  }
}

}  // namespace
}  // namespace qw::quantize
