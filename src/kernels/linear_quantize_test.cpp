// Rounding activations to 8 bits: every instruction set gives what the definition says, however
// many blocks it rounds at once.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/rng.h"
#include "kernels/registry.h"

namespace qw::kernels {
namespace {

constexpr int64_t kWidth = 11 * kBlock - 5;  // blocks by fours, some left, the last one not full

std::vector<float> make_row() {
  std::vector<float> x(kWidth);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(random_normal(7, 11, i)) * std::ldexp(1.0F, static_cast<int>(i % 5));
  return x;
}

/// The definition: docs of ActBlock.
ActBlock rounded_block(const float* x, int64_t n, int offset) {
  ActBlock out{};
  float largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    finite = finite && std::isfinite(x[i]);
    largest = std::max(largest, std::abs(x[i]));
  }
  const bool tiny = largest < 0x1p-100F;
  const float inverse = tiny ? 0.0F : 127.0F / largest;
  out.scale = !finite ? std::numeric_limits<float>::quiet_NaN() : tiny ? 0.0F : largest / 127.0F;
  for (int64_t i = 0; i < kBlock; ++i) {
    const int code = finite && i < n ? static_cast<int>(std::nearbyint(x[i] * inverse)) : 0;
    out.codes[i] = static_cast<uint8_t>(code + offset);
    out.sum[i / (kBlock / 2)] += code;
  }
  out.total = out.sum[0] + out.sum[1];
  out.scaled_sum[0] = out.scale * static_cast<float>(out.sum[0]);
  out.scaled_sum[1] = out.scale * static_cast<float>(out.sum[1]);
  out.scaled_total = out.scale * static_cast<float>(out.total);
  return out;
}

void expect_definition(const LinearKernel& kernel, const std::vector<float>& x, bool for_tile) {
  const auto n = static_cast<int64_t>(x.size()), n_blocks = (n + kBlock - 1) / kBlock,
             stride = int64_t{2};
  std::vector<ActBlock> out(static_cast<size_t>(n_blocks * stride));
  kernel.quantize({x.data(), n, for_tile, out.data(), stride});
  // What a tile adds to its codes is the instruction set's: that of a zero.
  ActBlock zero;
  const std::vector<float> zeros(kBlock);
  kernel.quantize({zeros.data(), kBlock, for_tile, &zero, 1});
  for (int64_t b = 0; b < n_blocks; ++b) {
    const ActBlock& got = out[static_cast<size_t>(b * stride)];
    const ActBlock expected = rounded_block(
        x.data() + b * kBlock, std::min<int64_t>(kBlock, n - b * kBlock), zero.codes[0]);
    SCOPED_TRACE(name_of(kernel) + ", block " + std::to_string(b));
    EXPECT_EQ(std::memcmp(got.codes, expected.codes, kBlock), 0);
    if (std::isnan(expected.scale)) {
      EXPECT_TRUE(std::isnan(got.scale) && std::isnan(got.scaled_sum[0]) &&
                  std::isnan(got.scaled_sum[1]) && std::isnan(got.scaled_total));
    } else {
      EXPECT_EQ(got.scale, expected.scale);
      EXPECT_EQ(got.scaled_sum[0], expected.scaled_sum[0]);
      EXPECT_EQ(got.scaled_sum[1], expected.scaled_sum[1]);
      EXPECT_EQ(got.scaled_total, expected.scaled_total);
    }
    EXPECT_EQ(got.sum[0], expected.sum[0]);
    EXPECT_EQ(got.sum[1], expected.sum[1]);
    EXPECT_EQ(got.total, expected.total);
  }
}

void expect_definition_everywhere(const std::vector<float>& x) {
  for (const LinearKernel* kernel : linear_kernels(detect_isa())) {
    if (kernel->layout != LinearLayout::kQ8_0 || kernel->form != ActivationForm::kInt8) continue;
    expect_definition(*kernel, x, false);
    expect_definition(*kernel, x, true);
  }
}

TEST(LinearQuantize, GivesTheDefinition) {
  expect_definition_everywhere(make_row());
}

TEST(LinearQuantize, TiesGoToEven) {
  std::vector<float> x(kWidth, 0.0F);
  for (size_t b = 0; b < x.size(); b += kBlock) {
    x[b] = 127.0F;  // one unit is 1
    for (size_t i = 1; i < kBlock && b + i < x.size(); ++i)
      x[b + i] = static_cast<float>(i) - 15.5F;
  }
  expect_definition_everywhere(x);
}

TEST(LinearQuantize, TinyAndZeroBlocksAreZero) {
  std::vector<float> x = make_row();
  std::fill_n(x.begin(), kBlock, 0.0F);
  std::fill_n(x.begin() + 2 * kBlock, kBlock, 0x1p-101F);
  std::fill_n(x.begin() + 3 * kBlock, kBlock, -0x1p-100F);  // the least that counts
  expect_definition_everywhere(x);
}

TEST(LinearQuantize, WhatIsNotFiniteMakesItsOwnBlockNaN) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    for (const size_t at :
         {size_t{0}, size_t{45}, size_t{90}, size_t{127}, size_t{9 * kBlock + 1}}) {
      std::vector<float> x = make_row();
      x[at] = value;
      expect_definition_everywhere(x);
    }
  }
}

}  // namespace
}  // namespace qw::kernels
