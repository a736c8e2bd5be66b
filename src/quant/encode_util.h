// Small parts of every encoder: roundings that are defined for every input, and extreme values.
//
// Level 2 (quant), private to this folder. A plain cast of a NaN or of a value beyond int is
// undefined; encoders can meet both where 1 / d overflows.
#pragma once

#include <cmath>
#include <span>

namespace qw::ggml {

/// Toward zero; 0 for NaN and beyond +-2^22, where no code lies.
inline int to_int(float value) noexcept {
  constexpr float kLimit = 4194304.0F;
  return value > -kLimit && value < kLimit ? static_cast<int>(value) : 0;
}

/// To nearest, ties to even. Adding 1.5 * 2^23 leaves no room for a fraction, so the FPU rounds.
inline int round_even(float value) noexcept {
  constexpr float kShift = 12582912.0F;
  constexpr float kLimit = 4194304.0F;
  return value > -kLimit && value < kLimit ? static_cast<int>((value + kShift) - kShift) : 0;
}

/// To nearest, ties away from zero.
inline int round_away(float value) noexcept {
  return to_int(std::round(value));
}

/// 1 / d, or 0 for 0.
inline float inverse(float d) noexcept {
  return d != 0.0F ? 1.0F / d : 0.0F;
}

/// The first value of largest magnitude, with its sign.
inline float extreme(std::span<const float> x) noexcept {
  float found = 0.0F;
  for (const float value : x) {
    if (std::fabs(value) > std::fabs(found)) found = value;
  }
  return found;
}

}  // namespace qw::ggml
