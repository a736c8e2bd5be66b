// Arithmetic over one row of logits: fast where the whole vocabulary is touched.
//
// Level 6 (engine). Every function is a fixed number of passes over the row, in a fixed order of
// summation, so that its value depends on the row only. -infinity marks a token that is out.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace qw {

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// e^x within 2 ulp for x <= 0; 0 below -87.3. Written so that compilers vectorise loops over it.
float fast_exp(float x) noexcept;

/// out[i] = e^(values[i] - max). Returns the sum in double, in order of i within fixed blocks.
/// `out` may be `values` itself.
double exp_all(std::span<const float> values, float max, float* out) noexcept;

/// log(sum_i e^values[i]); -infinity when every value is.
double log_sum_exp(std::span<const float> values) noexcept;

/// values[i] -= log_sum_exp(values).
void log_softmax(std::span<float> values) noexcept;

/// The index of the largest value, the lowest one on ties; -1 when empty or all are -infinity.
/// NaN is never the largest.
int32_t argmax(std::span<const float> values) noexcept;

/// Index of the first NaN or +-infinity, or -1.
int64_t find_not_finite(std::span<const float> values) noexcept;

/// Indices of the k largest values, descending, ties by lower index; fewer when there are fewer.
/// One pass with a heap of k: a row of 152k values and k = 20 takes some ten microseconds.
std::vector<int32_t> top_indices(std::span<const float> values, int64_t k);

/// The k-th largest value (k from 1), counting equal ones apart; the smallest when k is larger.
float kth_largest(std::span<const float> values, int64_t k);

}  // namespace qw
