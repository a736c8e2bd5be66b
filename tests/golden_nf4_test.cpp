// nf4 as bitsandbytes 0.50.2 makes it, bit for bit: codes, scales, nested codes, dequantised
// values.
//
// Expected values: golden/training/qlora in QIANWEN_SHARED (its README says how they were made).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "base/half.h"
#include "quant/bitsandbytes.h"
#include "support/golden.h"

namespace qw {
namespace {

using test::find_golden;

using Tensors = std::map<std::string, RawTensor>;

template <typename T>
std::vector<T> values_of(const RawTensor& tensor) {
  std::vector<T> out(tensor.bytes.size() / sizeof(T));
  std::memcpy(out.data(), tensor.bytes.data(), tensor.bytes.size());
  return out;
}

std::vector<float> floats_of(const RawTensor& tensor) {
  if (tensor.dtype == DType::kF32) return values_of<float>(tensor);
  std::vector<float> out;
  for (const uint16_t bits : values_of<uint16_t>(tensor))
    out.push_back(bf16_to_f32(bits));
  return out;
}

std::vector<float> decoded(const Bnb4State& state, const Bnb4Tensors& tensors) {
  LinearSource source;
  source.n = state.n;
  source.k = state.k;
  source.data = open_bnb4(state, tensors);
  std::vector<float> out(static_cast<size_t>(state.n * state.k));
  source.decode_rows(0, state.n, out.data());
  return out;
}

class GoldenNf4 : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const auto path = find_golden("training/qlora/nf4.safetensors");
    if (!path) GTEST_SKIP() << "no goldens (QIANWEN_SHARED)";
    tensors_ = test::read_tensors(*path);
    const auto& shape = at("weight").shape;
    options_.mode = Nf4Options::Mode::kReference;
    options_.block_size = std::stoll(GetParam().substr(GetParam().find(".b") + 2));
    options_.dtype = at("weight").dtype;
    state_ = {.quant_type = "nf4",
              .block_size = options_.block_size,
              .dtype = options_.dtype,
              .n = shape[0],
              .k = shape[1]};
  }
  const RawTensor& at(const std::string& name) const {
    return tensors_.at(GetParam() + "." + name);
  }
  bool has(const std::string& name) const { return tensors_.contains(GetParam() + "." + name); }

  Tensors tensors_;
  Nf4Options options_;
  Bnb4State state_;
};

TEST_P(GoldenNf4, Read) {
  if (!has("dequant")) GTEST_SKIP() << "no dequantised values of this one";
  const std::vector<float> expected = floats_of(at("dequant"));
  EXPECT_EQ(decoded(state_, {.module = "m",
                             .weight = &at("codes"),
                             .absmax = &at("absmax"),
                             .quant_map = &tensors_.at("nf4_code")}),
            expected);
}

TEST_P(GoldenNf4, ReadDouble) {
  if (!has("dq.dequant")) GTEST_SKIP() << "no dequantised values of this one";
  state_.is_nested = true;
  state_.nested_offset = floats_of(at("dq.offset")).front();
  EXPECT_EQ(decoded(state_, {.module = "m",
                             .weight = &at("codes"),
                             .absmax = &at("dq.absmax_codes"),
                             .quant_map = &tensors_.at("nf4_code"),
                             .nested_absmax = &at("dq.nested_absmax"),
                             .nested_quant_map = &tensors_.at("dynamic_map")}),
            floats_of(at("dq.dequant")));
}

TEST_P(GoldenNf4, Written) {
  const Bnb4File file = encode_nf4(LinearSource::of_matrix(at("weight")), options_);
  EXPECT_EQ(file.codes, values_of<uint8_t>(at("codes")));
  EXPECT_EQ(file.absmax, floats_of(at("absmax")));
}

TEST_P(GoldenNf4, WrittenDouble) {
  options_.double_quant = true;
  const Bnb4File file = encode_nf4(LinearSource::of_matrix(at("weight")), options_);
  EXPECT_EQ(file.codes, values_of<uint8_t>(at("codes")));
  EXPECT_EQ(file.absmax_codes, values_of<uint8_t>(at("dq.absmax_codes")));
  EXPECT_EQ(file.absmax, floats_of(at("dq.nested_absmax")));
  EXPECT_EQ(file.state.nested_offset, floats_of(at("dq.offset")).front());
}

INSTANTIATE_TEST_SUITE_P(All, GoldenNf4,
                         testing::Values("gate_proj.b64", "random_f32.b64", "random_f32.b128",
                                         "large_f32.b64"),
                         [](const auto& golden) {
                           std::string name = golden.param;
                           std::ranges::replace(name, '.', '_');
                           return name;
                         });

TEST(GoldenNf4Maps, AreTheLibrarys) {
  const auto path = find_golden("training/qlora/nf4.safetensors");
  if (!path) GTEST_SKIP() << "no goldens (QIANWEN_SHARED)";
  const Tensors tensors = test::read_tensors(*path);
  const std::vector<float> map = floats_of(tensors.at("dynamic_map"));
  const std::vector<float> levels = floats_of(tensors.at("nf4_code"));
  EXPECT_TRUE(std::ranges::equal(map, bnb_dynamic_map()));
  EXPECT_TRUE(std::ranges::equal(levels, bnb4_levels("nf4")));
}

}  // namespace
}  // namespace qw
