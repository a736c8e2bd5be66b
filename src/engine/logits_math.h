// Arithmetic over one row of logits: fast where the whole vocabulary is touched.
//
// Level 6 (engine). Every function is a fixed number of passes over the row, in a fixed order of
// summation, so that its value depends on the row only. -infinity marks a token that is out.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace qw {

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// e^x within 2 ulp for x <= 0; 0 below -87.3. Written, and here, so that compilers vectorise loops
/// over it (a position-independent library would not inline it from elsewhere).
inline float fast_exp(float x) noexcept {
  // e^x = 2^n e^r with n = round(x log2 e): adding 1.5 * 2^23 rounds, and leaves n in the low bits.
  constexpr float kMagic = 12582912.0f;
  const float shifted = x * 1.44269504f + kMagic;
  const float n = shifted - kMagic;
  // ln 2 in two parts, so that the reduction is exact enough.
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;  // minimax polynomial of e^r on [-ln2/2, ln2/2] (Cephes, expf)
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // Unsigned, so that even NaN wraps instead of overflowing.
  const uint32_t exponent = (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kMagic))
                            << 23;
  // What is too small becomes zero by a mask: a branch or ?: here keeps loops from vectorising.
  const uint32_t mask = 0u - static_cast<uint32_t>(!(x < -87.3f));
  return std::bit_cast<float>((std::bit_cast<uint32_t>(p) + exponent) & mask);
}

/// out[i] = e^(values[i] - max). Returns the sum in double, in order of i within fixed blocks.
/// `out` may be `values` itself.
double exp_all(std::span<const float> values, float max, float* out) noexcept;

/// The first i at which out[0] + ... + out[i], in doubles, passes u times the sum of all, u in [0,
/// 1); rounding at the very end gives the last i whose term is above 0. `out` and the block sums
/// are as exp_all leaves them: blocks are passed over whole.
struct Exponentials {
  std::vector<float> terms;
  std::vector<double> block_sums;
  double sum = 0;
};
/// Fills `e`, whose memory is used again.
void exponentials(std::span<const float> values, float max, Exponentials& e);
size_t find_cumulated(const Exponentials& e, double u) noexcept;

/// The same sum without the terms.
double sum_exp(std::span<const float> values, float max) noexcept;

/// log(sum_i e^values[i]); -infinity when every value is.
double log_sum_exp(std::span<const float> values) noexcept;

/// values[i] -= log_sum_exp(values).
void log_softmax(std::span<float> values) noexcept;

/// The index of the largest value, the lowest one on ties; -1 when empty or all are -infinity.
/// NaN is never the largest.
int32_t argmax(std::span<const float> values) noexcept;

/// Index of the first NaN or +-infinity, or -1.
int64_t find_not_finite(std::span<const float> values) noexcept;

/// Index of the first value that no score may have, NaN or +infinity, or -1.
int64_t find_no_score(std::span<const float> values) noexcept;

/// NaN becomes 0, an infinity the float that is largest in its direction (torch.nan_to_num).
void remove_not_finite(std::span<float> values) noexcept;

/// Indices of the values above `threshold`, or from it on, ascending.
std::vector<uint32_t> indices_above(std::span<const float> values, float threshold);
std::vector<uint32_t> indices_from(std::span<const float> values, float threshold);

/// How many values come before values[i] in descending order, ties by lower index.
int64_t rank_of(std::span<const float> values, size_t i) noexcept;

/// Indices of the k largest values, descending, ties by lower index; fewer when there are fewer.
/// One pass with a heap of k: a row of 152k values and k = 20 takes some ten microseconds.
std::vector<int32_t> top_indices(std::span<const float> values, int64_t k);

/// The k-th largest value (k from 1), counting equal ones apart; the smallest when k is larger.
float kth_largest(std::span<const float> values, int64_t k);

}  // namespace qw
