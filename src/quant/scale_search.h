// Searches for the scales of small groups of values: several are tried, for each the codes are
// rounded and the scale solved by weighted least squares, and the one with the least error is kept.
//
// Level 2 (quant), private to this folder. The searches, their weights and ranges are those of the
// published quantisers (the idea is I. Kawrakow's), so that files come out as good as theirs; sums
// are in f32, in the order of the elements.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "quant/scale_search_ops.h"

namespace qw::ggml {

/// Below this magnitude a group counts as zero.
inline constexpr float kTiny = 1e-15F;

struct ScaleMin {
  float scale = 0.0F;
  float min = 0.0F;  // subtracted: x ~ scale * code - min, min >= 0
};

/// Where importances are given.
constexpr AffineSearch search_with_importance(int max_code) noexcept {
  return {
      .max_code = max_code, .first = -0.9F, .step = 0.05F, .n_steps = 36, .absolute_error = false};
}

/// Scale and minimum for x ~ scale * code - min, code in [0, max_code]. At most kSearchValues.
ScaleMin search_affine(std::span<const float> x, std::span<const float> weights,
                       std::span<int8_t> codes, const AffineSearch& search) noexcept;

/// Scale for x ~ scale * code, code in [-max_code, max_code): nineteen step sizes.
float search_symmetric(std::span<const float> x, std::span<const float> weights, int max_code,
                       std::span<int8_t> codes) noexcept;

/// Scale for x ~ scale * code, code in [-4, 3], weights x^2: the first step size, then coordinate
/// descent on the codes.
float search_by_descent(std::span<const float> x, std::span<int8_t> codes) noexcept;

/// Scale for x ~ scale * code, x >= 0, code in [0, max_code]: nine step sizes, then coordinate
/// descent on the codes.
float search_positive(std::span<const float> x, std::span<const float> weights, int max_code,
                      std::span<int8_t> codes) noexcept;

/// How much errors of elements count, given from outside, for a row.
struct Importance {
  const float* weights = nullptr;  // of the block's elements
  float row_mean_square = 0.0F;    // of the row's values
};

/// weights[i] * sqrt(mean_square + x[i]^2): larger values count more.
template <size_t kSize>
std::array<float, kSize> weigh(const float* x, const float* weights, float mean_square) noexcept {
  std::array<float, kSize> out;
  for (size_t i = 0; i < kSize; ++i)
    out[i] = weights[i] * std::sqrt(mean_square + x[i] * x[i]);
  return out;
}

/// sum of x^2, in order.
float sum_of_squares(std::span<const float> x) noexcept;

}  // namespace qw::ggml
