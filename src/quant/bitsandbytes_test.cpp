// nf4 and fp4 against values that are worked out one at a time, and against bitsandbytes' own.
#include "quant/bitsandbytes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include "base/error.h"
#include "base/half.h"

namespace qw {
namespace {

using testing::HasSubstr;

struct Matrix {
  std::string name = "m";
  int64_t n = 0, k = 0;
  std::vector<float> values;

  LinearSource source() const {
    return LinearSource::of_floats(name, n, k, std::make_shared<std::vector<float>>(values));
  }
};

Matrix random_matrix(int64_t n, int64_t k, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.05F);
  Matrix out;
  out.n = n;
  out.k = k;
  out.values.resize(static_cast<size_t>(n * k));
  for (float& value : out.values)
    value = normal(random);
  return out;
}

LinearSource opened(const Bnb4File& file) {
  const Bnb4File::Views views = file.views("m");
  LinearSource out;
  out.n = file.state.n;
  out.k = file.state.k;
  out.data = open_bnb4(file.state, views.tensors("m"));
  return out;
}

std::vector<float> decoded(const LinearSource& source, int64_t step) {
  std::vector<float> out(static_cast<size_t>(source.n * source.k));
  for (int64_t row = 0; row < source.n; row += step)
    source.decode_rows(row, std::min(step, source.n - row), out.data() + row * source.k);
  return out;
}

float rounded(DType dtype, float value) {
  if (dtype == DType::kBF16) return bf16_to_f32(f32_to_bf16(value));
  return dtype == DType::kF16 ? f16_to_f32(f32_to_f16(value)) : value;
}

/// What every element stands for, straight from the file's arrays.
std::vector<float> by_hand(const Bnb4File& file) {
  const Bnb4State& state = file.state;
  std::vector<float> out(static_cast<size_t>(state.n * state.k));
  for (size_t i = 0; i < out.size(); ++i) {
    const int code = i % 2 == 0 ? file.codes[i / 2] >> 4 : file.codes[i / 2] & 15;
    const size_t block = i / static_cast<size_t>(state.block_size);
    float scale;
    if (state.is_nested) {
      const float nested = file.absmax[block / static_cast<size_t>(state.nested_block_size)];
      const float product = bnb_dynamic_map()[file.absmax_codes[block]] * nested;
      scale = product + state.nested_offset;
    } else {
      scale = file.absmax[block];
    }
    out[i] = rounded(state.dtype, bnb4_levels(state.quant_type)[static_cast<size_t>(code)] * scale);
  }
  return out;
}

double error_of(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i)
    sum += (a[i] - b[i]) * static_cast<double>(a[i] - b[i]);
  return sum;
}

TEST(Bnb4, DecodesWhateverTheShapeTheBlockAndTheType) {
  uint32_t seed = 0;
  for (const auto& [n, k] : {std::pair{4, 64}, {5, 33}, {3, 7}, {1, 1}, {7, 96}, {2, 4097}}) {
    for (const int64_t block : {32, 64, 4096}) {
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        for (const bool nested : {false, true}) {
          const Matrix matrix = random_matrix(n, k, ++seed);
          const Bnb4File file = encode_nf4(
              matrix.source(), {.block_size = block, .double_quant = nested, .dtype = dtype});
          const LinearSource source = opened(file);
          for (const int64_t step : {int64_t{1}, int64_t{3}, int64_t{n}})
            ASSERT_EQ(decoded(source, step), by_hand(file)) << n << " x " << k << " b" << block;
        }
      }
    }
  }
}

TEST(Bnb4, SlicesBeginWithinBlocks) {
  const Bnb4File file = encode_nf4(random_matrix(9, 33, 5).source(), {.block_size = 64});
  const LinearSource source = opened(file);
  const std::vector<float> all = decoded(source, 9), part = decoded(source.slice_rows(4, 8), 2);
  EXPECT_EQ(part, std::vector<float>(all.begin() + 4 * 33, all.begin() + 8 * 33));
}

TEST(Bnb4, ReferenceScalesAreTheLargestMagnitudes) {
  const Matrix matrix = random_matrix(3, 50, 7);
  const Bnb4File file =
      encode_nf4(matrix.source(),
                 {.mode = Nf4Options::Mode::kReference, .block_size = 64, .dtype = DType::kF32});
  ASSERT_EQ(file.absmax.size(), 3U);
  for (size_t b = 0; b < 3; ++b) {
    float largest = 0;
    for (size_t i = 64 * b; i < std::min<size_t>(150, 64 * b + 64); ++i)
      largest = std::max(largest, std::abs(matrix.values[i]));
    EXPECT_EQ(file.absmax[b], largest);
  }
  // The nearest level, found by trying all.
  const std::vector<float> values = by_hand(file);
  for (size_t i = 0; i < values.size(); ++i) {
    const float scale = file.absmax[i / 64];
    for (const float level : bnb4_levels("nf4")) {
      EXPECT_LE(std::abs(matrix.values[i] - values[i]),
                std::abs(matrix.values[i] - level * scale) + 1e-7F * scale);
    }
  }
}

TEST(Bnb4, ZerosStayZero) {
  Matrix matrix;
  matrix.n = 2;
  matrix.k = 40;
  matrix.values.assign(80, 0);
  for (const bool nested : {false, true}) {
    for (const auto mode : {Nf4Options::Mode::kReference, Nf4Options::Mode::kBetter}) {
      const Bnb4File file =
          encode_nf4(matrix.source(), {.mode = mode, .block_size = 64, .double_quant = nested});
      EXPECT_THAT(decoded(opened(file), 2), testing::Each(0.0F));
    }
  }
}

TEST(Bnb4, TheSearchIsNeverWorseAndMostlyBetter) {
  double reference = 0, better = 0;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const Matrix matrix = random_matrix(4, 64, seed);
    const auto error = [&](Nf4Options::Mode mode) {
      const Bnb4File file = encode_nf4(matrix.source(), {.mode = mode, .dtype = DType::kF32});
      return error_of(matrix.values, decoded(opened(file), 4));
    };
    const double one = error(Nf4Options::Mode::kReference),
                 other = error(Nf4Options::Mode::kBetter);
    EXPECT_LE(other, one * (1 + 1e-6));
    reference += one;
    better += other;
  }
  EXPECT_LT(better, 0.95 * reference);
}

TEST(Bnb4, BytesAreWhatIsCounted) {
  for (const bool nested : {false, true}) {
    for (const int64_t k : {31, 64, 1000}) {
      const Bnb4File file =
          encode_nf4(random_matrix(33, k, 1).source(), {.block_size = 32, .double_quant = nested});
      const Bnb4File::Views views = file.views("m");
      size_t bytes = 0;
      for (const RawTensor* tensor : {&views.weight, &views.absmax, &views.quant_map,
                                      &views.nested_absmax, &views.nested_quant_map})
        bytes += tensor->bytes.size();
      EXPECT_EQ(static_cast<int64_t>(bytes), nf4_bytes(33, k, 32, nested));
    }
  }
}

TEST(Bnb4, Fp4HasASignTwoBitsOfExponentAndOneOfFraction) {
  const std::array<float, 16>& levels = bnb4_levels("fp4");
  const std::array<float, 8> twelfths = {0, 0.0625F, 8, 12, 4, 6, 2, 3};
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(levels[i], twelfths[i] / 12.0F);
    EXPECT_EQ(levels[i + 8], -levels[i]);
  }
}

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_NE(error.kind(), ErrorKind::kInternal);
    return error.what();
  }
  return "nothing was thrown";
}

TEST(Bnb4, WrongFilesGetASentence) {
  const Bnb4File file = encode_nf4(random_matrix(4, 64, 1).source(), {.double_quant = true});
  const auto refused = [&](const std::function<void(Bnb4State&, Bnb4File::Views&)>& change) {
    Bnb4State state = file.state;
    Bnb4File::Views views = file.views("q_proj");
    change(state, views);
    return message_of([&] { open_bnb4(state, views.tensors("q_proj")); });
  };
  EXPECT_THAT(refused([](auto& state, auto&) { state.block_size = 96; }),
              HasSubstr("expected a block size of 32, 64"));
  EXPECT_THAT(refused([](auto& state, auto&) { state.k = 66; }),
              HasSubstr("q_proj.weight: expected 132 bytes of codes for 264 weights"));
  EXPECT_THAT(refused([](auto& state, auto&) { state.n = 0; }), HasSubstr("positive sizes"));
  EXPECT_THAT(refused([](auto& state, auto&) { state.n = state.k = int64_t{1} << 40; }),
              HasSubstr("q_proj: expected a product"));
  EXPECT_THAT(refused([](auto&, auto& views) { views.quant_map.shape = Shape{15}; }),
              HasSubstr("q_proj.weight.quant_map: expected 16 values, got shape [15]"));
  EXPECT_THAT(refused([](auto&, auto& views) { views.absmax.shape = Shape{5}; }),
              HasSubstr("q_proj.weight.absmax"));
  EXPECT_THAT(refused([](auto&, auto& views) { views.absmax.dtype = DType::kF32; }),
              HasSubstr("expected u8"));
  EXPECT_THAT(refused([](auto&, auto& views) { views.nested_absmax.name.clear(); }),
              HasSubstr("nested_quant_map: expected this tensor, got none"));
  EXPECT_THAT(refused([](auto& state, auto&) { state.nested_block_size = 0; }),
              HasSubstr("positive nested_blocksize"));
  std::array<float, 16> levels = bnb4_levels("nf4");
  levels[3] = std::nanf("");
  EXPECT_THAT(refused([&](auto&, auto& views) {
                views.quant_map.bytes = std::as_bytes(std::span(levels));
              }),
              HasSubstr("expected finite values"));
}

TEST(Bnb4, WhatCannotBeWrittenGetsASentence) {
  Matrix matrix = random_matrix(2, 64, 1);
  EXPECT_THAT(message_of([&] { encode_nf4(matrix.source(), {.block_size = 48}); }),
              HasSubstr("block size: expected 32, 64"));
  matrix.values[3] = 1e6F;
  EXPECT_THAT(message_of([&] { encode_nf4(matrix.source(), {.dtype = DType::kF16}); }),
              HasSubstr("expected values that f16 can hold, got inf"));
}

}  // namespace
}  // namespace qw
