// Small parts of every encoder: roundings that are defined for every input, and extreme values.
//
// Level 2 (quant), private to this folder. A plain cast of a NaN or of a value beyond int is
// undefined; encoders can meet both where 1 / d overflows.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>

namespace qw::ggml {

/// The value where |value| < 2^22, else (NaN too) 0. Without a branch, so that loops become lanes.
inline float in_range(float value) noexcept {
  return std::fabs(value) < 4194304.0F ? value : 0.0F;
}

/// Toward zero; 0 for NaN and beyond +-2^22, where no code lies.
inline int to_int(float value) noexcept {
  return static_cast<int>(in_range(value));
}

/// To nearest, ties to even. Adding 1.5 * 2^23 leaves no room for a fraction, so the FPU rounds.
inline int round_even(float value) noexcept {
  constexpr float kShift = 12582912.0F;
  return static_cast<int>((in_range(value) + kShift) - kShift);
}

/// To nearest, ties away from zero.
inline int round_away(float value) noexcept {
  const float inside = in_range(value);
  const int whole = static_cast<int>(inside);
  const float rest = inside - static_cast<float>(whole);  // exact
  return whole + (rest >= 0.5F ? 1 : 0) - (rest <= -0.5F ? 1 : 0);
}

/// Largest magnitude; of finite values. Their bits are in the order of magnitudes, and a maximum of
/// integers may be taken in any order.
inline float largest_magnitude(std::span<const float> x) noexcept {
  int32_t most = 0;
  for (const float value : x)
    most = std::max(most, std::bit_cast<int32_t>(value) & 0x7FFFFFFF);
  return std::bit_cast<float>(most);
}

/// 1 / d, or 0 for 0.
inline float inverse(float d) noexcept {
  return d != 0.0F ? 1.0F / d : 0.0F;
}

/// The first value of largest magnitude, with its sign; NaN counts for nothing.
inline float extreme(std::span<const float> x) noexcept {
  const float most = largest_magnitude(x);
  const auto found = std::ranges::find_if(x, [&](float v) { return std::fabs(v) == most; });
  if (found != x.end()) return most == 0.0F ? 0.0F : *found;
  float largest = 0.0F;  // there is a NaN
  for (const float value : x) {
    if (std::fabs(value) > std::fabs(largest)) largest = value;
  }
  return largest;
}

}  // namespace qw::ggml
