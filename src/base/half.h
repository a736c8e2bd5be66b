// Scalar conversions between binary32 and the 16-bit floats of checkpoints.
//
// Level 0 (base). Exact in the widening direction; narrowing rounds to nearest, ties to even,
// overflows to infinity, keeps subnormals, and keeps NaN a (quiet) NaN: what the hardware's
// F16C and AVX512-BF16 converters and PyTorch do (hardware BF16 conversion flushes subnormals).
#pragma once

#include <bit>
#include <cstdint>

namespace qw {

inline float bf16_to_f32(uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t f32_to_bf16(float value) noexcept {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

/// Without a branch, so that loops become lanes.
inline float f16_to_f32(uint16_t bits) noexcept {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7FFFu) << 13;
  // Moves the exponent from f16's bias to f32's; subnormals of f16 are ones of f32 before. Exact.
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t infinite = magnitude >= 0x0F800000u ? 0x7F800000u : 0u;  // infinity or NaN
  const uint32_t quiet = magnitude > 0x0F800000u ? 0x00400000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | infinite | quiet | sign);
}

inline uint16_t f32_to_f16(float value) noexcept {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) {
    return static_cast<uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
  }
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7C00u);  // >= 2^16
  if (magnitude < 0x38800000u) {  // below 2^-14: subnormal or zero in f16
    // Adding 0.5 aligns the 2^-24 grid with the last bit of the sum, so the FPU does the rounding.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3F000000u));
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace qw
