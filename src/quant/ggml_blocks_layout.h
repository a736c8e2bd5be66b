// GGML block formats: the bytes of one block, as structs, and how packed fields unpack.
//
// Level 2 (quant). These are facts of the file format (ggml-common.h of August 2026),
// little-endian, without padding. Blocks lie unaligned in files: copy one out (load_block) before
// reading fields. Formulas are in docs/formats.md; the decoders beside this file are their
// reference.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace qw {

static_assert(std::endian::native == std::endian::little,
              "blocks are read as little-endian structs");

/// IEEE binary16 as stored; base/half.h widens it.
using F16Bits = uint16_t;

inline constexpr int kSuperBlock = 256;  // elements of a k-quant, IQ or ternary block

// --- 32 elements, one scale -----------------------------------------------------------------
// Nibble order of every 32-element type: low nibble of qs[j] is element j, high nibble is j + 16.

struct BlockQ4_0 {  // x = d * (q - 8)
  F16Bits d;
  std::array<uint8_t, 16> qs;
};
struct BlockQ4_1 {  // x = d * q + m
  F16Bits d, m;
  std::array<uint8_t, 16> qs;
};
struct BlockQ5_0 {  // x = d * (q - 16); bit j of qh (little-endian) is the fifth bit of element j
  F16Bits d;
  std::array<uint8_t, 4> qh;
  std::array<uint8_t, 16> qs;
};
struct BlockQ5_1 {  // x = d * q + m
  F16Bits d, m;
  std::array<uint8_t, 4> qh;
  std::array<uint8_t, 16> qs;
};
struct BlockQ8_0 {  // x = d * q
  F16Bits d;
  std::array<int8_t, 32> qs;
};
struct BlockQ8_1 {  // x = d * q; s = d * sum(q), for dot products with types that have a minimum
  F16Bits d, s;
  std::array<int8_t, 32> qs;
};

// --- k-quants: 256 elements, sub-blocks of 16 or 32 with quantised scales -----------------------

struct BlockQ2_K {  // sub-block s of 16: x = d * (scales[s] & 15) * q - dmin * (scales[s] >> 4)
  std::array<uint8_t, 16> scales;
  std::array<uint8_t, 64> qs;  // element 128h + 32p + i: bits 2p, 2p + 1 of qs[32h + i]
  F16Bits d, dmin;
};
struct BlockQ3_K {                 // sub-block s of 16: x = d * (scale6(s) - 32) * (q - 4)
  std::array<uint8_t, 32> hmask;   // bit 4h + p of hmask[i]: third bit of element 128h + 32p + i
  std::array<uint8_t, 64> qs;      // low two bits, order of Q2_K
  std::array<uint8_t, 12> scales;  // 16 x 6 bits: unpack_q3_k_scales
  F16Bits d;
};
struct BlockQ4_K {  // sub-block s of 32: x = d * scale(s) * q - dmin * min(s)
  F16Bits d, dmin;
  std::array<uint8_t, 12> scales;  // 8 x (6-bit scale, 6-bit minimum): unpack_k4_scales
  std::array<uint8_t, 128> qs;     // element 64c + i: low nibble of qs[32c + i]; 64c + 32 + i: high
};
struct BlockQ5_K {  // as Q4_K with a fifth bit
  F16Bits d, dmin;
  std::array<uint8_t, 12> scales;
  std::array<uint8_t, 32> qh;  // bit s of qh[i]: fifth bit of element 32s + i
  std::array<uint8_t, 128> qs;
};
struct BlockQ6_K {              // sub-block s of 16: x = d * scales[s] * (q - 32)
  std::array<uint8_t, 128> ql;  // element 128h + 32p + i: nibble p / 2 of ql[64h + 32(p % 2) + i]
  std::array<uint8_t, 64> qh;   // its upper bits: bits 2p, 2p + 1 of qh[32h + i]
  std::array<int8_t, 16> scales;
  F16Bits d;
};
struct BlockQ8_K {  // x = d * q; an activation format, never in files
  float d;
  std::array<int8_t, 256> qs;
  std::array<int16_t, 16> bsums;  // sum of each 16 codes
};

// --- IQ: codebook indices, see ggml_grids.h -----------------------------------------------------

struct BlockIQ2_XXS {  // per 32: four 8-bit grid indices, then four 7-bit sign indices and a 4-bit
                       // scale
  F16Bits d;
  std::array<uint8_t, 64> qs;
};
struct BlockIQ2_XS {  // per 8: 9-bit grid index, 7-bit sign index; per 16: 4-bit scale
  F16Bits d;
  std::array<uint16_t, 32> qs;
  std::array<uint8_t, 8> scales;
};
struct BlockIQ2_S {  // per 8: 10-bit grid index (qs, two bits in qh), 8 sign bits; per 16: 4-bit
                     // scale
  F16Bits d;
  std::array<uint8_t, 32> qs;
  std::array<uint8_t, 32> signs;
  std::array<uint8_t, 8> qh;
  std::array<uint8_t, 8> scales;
};
struct BlockIQ3_XXS {  // per 4: 8-bit grid index; per 32: four 7-bit sign indices and a 4-bit scale
  F16Bits d;
  std::array<uint8_t, 64> qs;
  std::array<uint8_t, 32> scales_and_signs;  // eight little-endian u32
};
struct BlockIQ3_S {  // per 4: 9-bit grid index (qs, one bit in qh); per 8: 8 sign bits; per 32:
                     // 4-bit scale
  F16Bits d;
  std::array<uint8_t, 64> qs;
  std::array<uint8_t, 8> qh;
  std::array<uint8_t, 32> signs;
  std::array<uint8_t, 4> scales;
};
struct BlockIQ1_S {  // per 8: 11-bit grid index (qs, three bits in qh); per 32: 3-bit scale, sign
                     // of delta
  F16Bits d;
  std::array<uint8_t, 32> qs;
  std::array<uint16_t, 8> qh;
};
struct BlockIQ1_M {  // per 8: 11-bit grid index, sign of delta; per 16: 3-bit scale; d is in the
                     // scales
  std::array<uint8_t, 32> qs;
  std::array<uint8_t, 16> qh;
  std::array<uint16_t, 4>
      scales;  // 3-bit scales in bits 0..11, bits 12..15 are a quarter of d each
};
struct BlockIQ4_NL {  // x = d * kIq4Values[q]; nibble order of Q4_0
  F16Bits d;
  std::array<uint8_t, 16> qs;
};
struct BlockIQ4_XS {  // sub-block s of 32: x = d * (scale6(s) - 32) * kIq4Values[q]; nibbles as
                      // Q4_0
  F16Bits d;
  uint16_t scales_h;                // two bits per sub-block
  std::array<uint8_t, 4> scales_l;  // a nibble per sub-block
  std::array<uint8_t, 128> qs;
};

// --- ternary and 4-bit floats --------------------------------------------------------------------

struct BlockTQ1_0 {  // x = d * (t - 1); base-3 digits t, five to a byte of qs, four to a byte of qh
  std::array<uint8_t, 48> qs;
  std::array<uint8_t, 4> qh;
  F16Bits d;
};
struct BlockTQ2_0 {  // x = d * (q - 1); order of Q2_K
  std::array<uint8_t, 64> qs;
  F16Bits d;
};
struct BlockMXFP4 {  // x = e8m0(e) / 2 * kE2m1Doubled[q]; nibble order of Q4_0
  uint8_t e;
  std::array<uint8_t, 16> qs;
};
struct BlockNVFP4 {  // sub-block s of 16: x = ue4m3(d[s]) / 2 * kE2m1Doubled[q]
  std::array<uint8_t, 4> d;
  std::array<uint8_t, 32> qs;  // element 16s + i: low nibble of qs[8s + i]; 16s + 8 + i: high
};
struct BlockQ1_0 {  // 128 elements: x = bit ? d : -d; bit i % 8 of qs[i / 8]
  F16Bits d;
  std::array<uint8_t, 16> qs;
};
struct BlockQ2_0 {  // 64 elements: x = d * (q - 1); bits 2(i % 4).. of qs[i / 4]
  F16Bits d;
  std::array<uint8_t, 16> qs;
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34 && sizeof(BlockQ8_1) == 36);
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210 && sizeof(BlockQ8_K) == 292);
static_assert(sizeof(BlockIQ2_XXS) == 66 && sizeof(BlockIQ2_XS) == 74 && sizeof(BlockIQ2_S) == 82);
static_assert(sizeof(BlockIQ3_XXS) == 98 && sizeof(BlockIQ3_S) == 110 && sizeof(BlockIQ1_S) == 50);
static_assert(sizeof(BlockIQ1_M) == 56 && sizeof(BlockIQ4_NL) == 18 && sizeof(BlockIQ4_XS) == 136);
static_assert(sizeof(BlockTQ1_0) == 54 && sizeof(BlockTQ2_0) == 66 && sizeof(BlockMXFP4) == 17);
static_assert(sizeof(BlockNVFP4) == 36 && sizeof(BlockQ1_0) == 18 && sizeof(BlockQ2_0) == 18);

/// The block at `bytes` (any alignment).
template <typename Block>
Block load_block(const std::byte* bytes) noexcept {
  Block block;
  std::memcpy(&block, bytes, sizeof(Block));
  return block;
}

/// Scales and minimums (0..63) of the eight sub-blocks of Q4_K and Q5_K. The first four are the low
/// six bits of bytes 0..3 and 4..7; the last four have their low nibbles in bytes 8..11 and their
/// upper two bits on top of bytes 0..7.
struct K4Scales {
  std::array<uint8_t, 8> scale, min;
};
inline K4Scales unpack_k4_scales(const std::array<uint8_t, 12>& packed) noexcept {
  K4Scales out;
  for (size_t s = 0; s < 4; ++s) {
    const int scale = packed[s], min = packed[s + 4], low = packed[s + 8];
    out.scale[s] = static_cast<uint8_t>(scale & 63);
    out.min[s] = static_cast<uint8_t>(min & 63);
    out.scale[s + 4] = static_cast<uint8_t>((low & 15) | (scale >> 6) << 4);
    out.min[s + 4] = static_cast<uint8_t>((low >> 4) | (min >> 6) << 4);
  }
  return out;
}

inline std::array<uint8_t, 12> pack_k4_scales(const K4Scales& scales) noexcept {
  std::array<uint8_t, 12> out;
  for (size_t s = 0; s < 4; ++s) {
    out[s] = static_cast<uint8_t>(scales.scale[s] | scales.scale[s + 4] >> 4 << 6);
    out[s + 4] = static_cast<uint8_t>(scales.min[s] | scales.min[s + 4] >> 4 << 6);
    out[s + 8] = static_cast<uint8_t>((scales.scale[s + 4] & 15) | (scales.min[s + 4] & 15) << 4);
  }
  return out;
}

/// Scales (-32..31) of the sixteen sub-blocks of Q3_K: low nibbles in bytes 0..7 (sub-blocks 0..7
/// low, 8..15 high), upper two bits of sub-block s in bits 2(s / 4).. of byte 8 + s % 4.
inline std::array<int8_t, 16> unpack_q3_k_scales(const std::array<uint8_t, 12>& packed) noexcept {
  std::array<int8_t, 16> out;
  for (size_t s = 0; s < 16; ++s) {
    const int low = s < 8 ? packed[s] & 15 : packed[s - 8] >> 4;
    const int high = packed[8 + s % 4] >> (2 * (s / 4)) & 3;
    out[s] = static_cast<int8_t>((low | high << 4) - 32);
  }
  return out;
}

inline std::array<uint8_t, 12> pack_q3_k_scales(const std::array<int8_t, 16>& scales) noexcept {
  std::array<uint8_t, 12> out{};
  for (size_t s = 0; s < 16; ++s) {
    const int six = scales[s] + 32;
    out[s % 8] |= static_cast<uint8_t>((six & 15) << (4 * (s / 8)));
    out[8 + s % 4] |= static_cast<uint8_t>(six >> 4 << (2 * (s / 4)));
  }
  return out;
}

/// Scales (-32..31) of the eight sub-blocks of IQ4_XS.
inline std::array<int8_t, 8> unpack_iq4_xs_scales(const BlockIQ4_XS& block) noexcept {
  std::array<int8_t, 8> out;
  for (size_t s = 0; s < 8; ++s) {
    const int low = block.scales_l[s / 2] >> (4 * (s % 2)) & 15;
    const int high = block.scales_h >> (2 * s) & 3;
    out[s] = static_cast<int8_t>((low | high << 4) - 32);
  }
  return out;
}

/// d of IQ1_M: its four nibbles are the upper nibbles of the scale words, lowest first.
inline F16Bits iq1_m_scale(const BlockIQ1_M& block) noexcept {
  unsigned bits = 0;
  for (size_t i = 0; i < 4; ++i)
    bits |= static_cast<unsigned>(block.scales[i] >> 12) << (4 * i);
  return static_cast<F16Bits>(bits);
}

/// The sixteen levels of IQ4_NL and IQ4_XS.
inline constexpr std::array<int8_t, 16> kIq4Values = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                      1,    13,   25,  38,  53,  69,  89,  113};

/// Twice the value of each E2M1 code (sign, two exponent bits, one mantissa bit).
inline constexpr std::array<int8_t, 16> kE2m1Doubled = {0, 1,  2,  3,  4,  6,  8,  12,
                                                        0, -1, -2, -3, -4, -6, -8, -12};

/// Half the value of an E8M0 scale: 2^(e - 128), exact also where it is subnormal in f32.
inline float e8m0_half(uint8_t e) noexcept {
  const uint32_t bits = e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23;
  return std::bit_cast<float>(bits);
}

/// Half the value of an unsigned E4M3 scale (bias 7, bit 7 ignored). 0x7F, NaN in the standard, is
/// 0; the other codes of exponent 15 are numbers.
inline float ue4m3_half(uint8_t code) noexcept {
  if (code == 0x7F) return 0.0F;
  const int exponent = code >> 3 & 15;
  const auto mantissa = static_cast<float>(code & 7);
  if (exponent == 0) return mantissa * 0x1p-10F;
  return (8.0F + mantissa) * std::bit_cast<float>(static_cast<uint32_t>(exponent - 11 + 127) << 23);
}

}  // namespace qw
