// Level 3 (kernels): see the header.
#include "kernels/linear_pack_blocks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "base/half.h"
#include "kernels/cpu/linear_layouts.h"
#include "quant/ggml_grids.h"

namespace qw::kernels {

namespace {

// ---- codes of one block of 32 columns into one lane
// ---------------------------------------------------

uint32_t word(const uint8_t* p) noexcept {
  uint32_t w;
  std::memcpy(&w, p, 4);
  return w;
}
void put(uint8_t* p, uint32_t w) noexcept {
  std::memcpy(p, &w, 4);
}

/// The bits `mask` of each of four codes.
uint32_t bits_of(uint32_t codes, uint32_t mask) noexcept {
  return codes & mask * 0x01010101U;
}

/// The vectors of linear_layouts.h; `block` is the block's first byte. Codes are below 2^kBits.
template <int kBits>
void put_codes(const uint8_t* codes, int lane, uint8_t* block) noexcept {
  uint32_t g[8], planes[kBits] = {};
  for (int j = 0; j < 8; ++j)
    g[j] = word(codes + 4 * j);
  if constexpr (8 % kBits == 0) {
    constexpr int kFields = 8 / kBits;  // 4 bits: groups v, v + 4; otherwise neighbours share
    for (int j = 0; j < 8; ++j) {
      const int v = kBits == 4 ? j % 4 : j / kFields, field = kBits == 4 ? j / 4 : j % kFields;
      planes[v] |= g[j] << (kBits * field);
    }
  } else if constexpr (kBits == 3) {
    planes[0] = g[0] | g[3] << 3 | bits_of(g[6], 3) << 6;
    planes[1] = g[1] | g[4] << 3 | bits_of(g[7], 3) << 6;
    planes[2] = g[2] | g[5] << 3 | bits_of(g[6], 4) << 4 | bits_of(g[7], 4) << 5;
  } else if constexpr (kBits == 5) {
    planes[0] = g[0] | bits_of(g[5], 7) << 5;
    planes[1] = g[1] | bits_of(g[6], 7) << 5;
    planes[2] = g[2] | bits_of(g[7], 7) << 5;
    planes[3] = g[3] | bits_of(g[5], 24) << 2 | bits_of(g[7], 8) << 4;
    planes[4] = g[4] | bits_of(g[6], 24) << 2 | bits_of(g[7], 16) << 3;
  } else {
    static_assert(kBits == 6);
    for (int v = 0; v < 6; ++v)
      planes[v] = g[v] | (g[6 + v / 3] >> (2 * (v % 3)) & 0x03030303U) << 6;
  }
  for (int v = 0; v < kBits; ++v)
    put(block + 64 * v + 4 * lane, planes[v]);
}

template <class L>
void put_block(const uint8_t* codes, int lane, int64_t block, uint8_t* unit) noexcept {
  put_codes<L::kBits>(codes, lane, unit + L::kHeader + block * 64 * L::kBits);
}

void put_f32(uint8_t* header, int lane, float value) noexcept {
  std::memcpy(header + 4 * lane, &value, 4);
}

/// Sets four bits of entry `lane` of 16 words: nibble `index`. They must have been zero.
void put_nibble(uint8_t* words, int lane, size_t index, unsigned bits) noexcept {
  const size_t byte = 4 * static_cast<size_t>(lane) + index / 2;
  words[byte] = static_cast<uint8_t>(words[byte] | bits << (4 * (index % 2)));
}
unsigned get_nibble(const uint8_t* bytes, size_t index) noexcept {
  return bytes[index / 2] >> (4 * (index % 2)) & 15U;
}

/// Nibbles in the order of Q4_0.
void nibbles(const std::array<uint8_t, 16>& qs, uint8_t* codes) noexcept {
  for (size_t i = 0; i < 16; ++i) {
    codes[i] = qs[i] & 15;
    codes[i + 16] = static_cast<uint8_t>(qs[i] >> 4);
  }
}
void add_fifth_bits(const std::array<uint8_t, 4>& qh, uint8_t* codes) noexcept {
  const auto bits = std::bit_cast<uint32_t>(qh);
  for (size_t i = 0; i < 32; ++i)
    codes[i] = static_cast<uint8_t>(codes[i] | (bits >> i & 1) << 4);
}

// ---- one published block into lane `lane` of a unit; false: a scale is not finite
// ------------------------ `part` counts published blocks within the unit.

bool put_in(const BlockQ4_0& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  nibbles(in.qs, codes);
  put_f16(unit + 32 * part, lane, in.d);
  put_block<LayoutQ4_0>(codes, lane, part, unit);
  return is_finite(in.d);
}
bool put_in(const BlockQ4_1& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  nibbles(in.qs, codes);
  put_f16(unit + 32 * part, lane, in.d);
  put_f16(unit + 64 + 32 * part, lane, in.m);
  put_block<LayoutQ4_1>(codes, lane, part, unit);
  return is_finite(in.d) && is_finite(in.m);
}
bool put_in(const BlockQ5_0& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  nibbles(in.qs, codes);
  add_fifth_bits(in.qh, codes);
  put_f16(unit + 32 * part, lane, in.d);
  put_block<LayoutQ5_0>(codes, lane, part, unit);
  return is_finite(in.d);
}
bool put_in(const BlockQ5_1& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  nibbles(in.qs, codes);
  add_fifth_bits(in.qh, codes);
  put_f16(unit + 32 * part, lane, in.d);
  put_f16(unit + 64 + 32 * part, lane, in.m);
  put_block<LayoutQ5_1>(codes, lane, part, unit);
  return is_finite(in.d) && is_finite(in.m);
}
bool put_in(const BlockQ8_0& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  for (size_t i = 0; i < 32; ++i)
    codes[i] = static_cast<uint8_t>(in.qs[i] + 128);
  put_f16(unit + 32 * part, lane, in.d);
  put_block<LayoutQ8_0>(codes, lane, part, unit);
  return is_finite(in.d);
}
bool put_in(const BlockQ8_1& in, int64_t part, int lane, uint8_t* unit) noexcept {
  return put_in(BlockQ8_0{in.d, in.qs}, part, lane, unit);
}
bool put_in(const BlockIQ4_NL& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  nibbles(in.qs, codes);
  put_f16(unit + 32 * part, lane, in.d);
  put_block<LayoutIq4Nl>(codes, lane, part, unit);
  return is_finite(in.d);
}
bool put_in(const BlockMXFP4& in, int64_t part, int lane, uint8_t* unit) noexcept {
  uint8_t codes[32];
  nibbles(in.qs, codes);
  unit[16 * part + lane] = in.e;
  put_block<LayoutMxfp4>(codes, lane, part, unit);
  return true;  // every exponent is a number: 255 is 2^127
}

bool put_in(const BlockNVFP4& in, int64_t, int lane, uint8_t* unit) noexcept {
  for (size_t s = 0; s < 4; ++s) {
    const uint8_t code = in.d[s] == 0x7F ? 0 : in.d[s] & 0x7F;  // 0xFF is a number
    unit[16 * s + static_cast<size_t>(lane)] = code;
  }
  for (size_t b = 0; b < 2; ++b) {
    uint8_t codes[32];
    for (size_t i = 0; i < 32; ++i)
      codes[i] = in.qs[16 * b + i / 16 * 8 + i % 8] >> (i / 8 % 2 * 4) & 15;
    put_block<LayoutNvfp4>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return true;
}
bool put_in(const BlockQ1_0& in, int64_t part, int lane, uint8_t* unit) noexcept {
  put_f16(unit + 32 * part, lane, in.d);
  for (size_t b = 0; b < 4; ++b) {
    uint8_t codes[32];
    for (size_t i = 0; i < 32; ++i)
      codes[i] = in.qs[4 * b + i / 8] >> (i % 8) & 1;
    put_block<LayoutQ1_0>(codes, lane, 4 * part + static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}
bool put_in(const BlockQ2_0& in, int64_t part, int lane, uint8_t* unit) noexcept {
  put_f16(unit + 32 * part, lane, in.d);
  for (size_t b = 0; b < 2; ++b) {
    uint8_t codes[32];
    for (size_t i = 0; i < 32; ++i)
      codes[i] = in.qs[8 * b + i / 4] >> (2 * (i % 4)) & 3;
    put_block<LayoutQ2_0>(codes, lane, 2 * part + static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}

/// Header of Q4_K and Q5_K.
void put_k4_header(F16Bits d, F16Bits dmin, const std::array<uint8_t, 12>& packed, int lane,
                   uint8_t* unit) noexcept {
  put_f16(unit, lane, d);
  put_f16(unit + 32, lane, dmin);
  const K4Scales scales = unpack_k4_scales(packed);
  for (size_t s = 0; s < 8; ++s) {
    unit[64 + 16 * s + static_cast<size_t>(lane)] = scales.scale[s];
    unit[192 + 16 * s + static_cast<size_t>(lane)] = scales.min[s];
  }
}
bool put_in(const BlockQ4_K& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_k4_header(in.d, in.dmin, in.scales, lane, unit);
  for (size_t c = 0; c < 4; ++c) {
    uint8_t low[32], high[32];
    for (size_t i = 0; i < 32; ++i) {
      low[i] = in.qs[32 * c + i] & 15;
      high[i] = static_cast<uint8_t>(in.qs[32 * c + i] >> 4);
    }
    put_block<LayoutQ4_K>(low, lane, static_cast<int64_t>(2 * c), unit);
    put_block<LayoutQ4_K>(high, lane, static_cast<int64_t>(2 * c + 1), unit);
  }
  return is_finite(in.d) && is_finite(in.dmin);
}
bool put_in(const BlockQ5_K& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_k4_header(in.d, in.dmin, in.scales, lane, unit);
  for (size_t c = 0; c < 4; ++c) {
    uint8_t low[32], high[32];
    for (size_t i = 0; i < 32; ++i) {
      const int q = in.qs[32 * c + i], h = in.qh[i];
      low[i] = static_cast<uint8_t>((q & 15) | (h >> (2 * c) & 1) << 4);
      high[i] = static_cast<uint8_t>(q >> 4 | (h >> (2 * c + 1) & 1) << 4);
    }
    put_block<LayoutQ5_K>(low, lane, static_cast<int64_t>(2 * c), unit);
    put_block<LayoutQ5_K>(high, lane, static_cast<int64_t>(2 * c + 1), unit);
  }
  return is_finite(in.d) && is_finite(in.dmin);
}
bool put_in(const BlockQ6_K& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, f16_to_f32(in.d));
  for (size_t s = 0; s < 16; ++s) {
    unit[64 + 16 * s + static_cast<size_t>(lane)] = static_cast<uint8_t>(in.scales[s]);
  }
  for (size_t b = 0; b < 8; ++b) {  // 32 elements: half h, plane p
    const size_t h = b / 4, p = b % 4;
    uint8_t codes[32];
    for (size_t i = 0; i < 32; ++i) {
      const int low = in.ql[64 * h + 32 * (p % 2) + i] >> (4 * (p / 2)) & 15;
      const int high = in.qh[32 * h + i] >> (2 * p) & 3;
      codes[i] = static_cast<uint8_t>(low | high << 4);
    }
    put_block<LayoutQ6_K>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}
bool put_in(const BlockQ3_K& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, f16_to_f32(in.d));
  const std::array<int8_t, 16> scales = unpack_q3_k_scales(in.scales);
  for (size_t s = 0; s < 16; ++s) {
    unit[64 + 16 * s + static_cast<size_t>(lane)] = static_cast<uint8_t>(scales[s]);
  }
  for (size_t b = 0; b < 8; ++b) {
    const size_t h = b / 4, p = b % 4;
    uint8_t codes[32];
    for (size_t i = 0; i < 32; ++i) {
      const int low = in.qs[32 * h + i] >> (2 * p) & 3, high = in.hmask[i] >> (4 * h + p) & 1;
      codes[i] = static_cast<uint8_t>(low | high << 2);
    }
    put_block<LayoutQ3_K>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}
bool put_in(const BlockQ2_K& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f16(unit, lane, in.d);
  put_f16(unit + 32, lane, in.dmin);
  for (size_t s = 0; s < 16; ++s)
    unit[64 + 16 * s + static_cast<size_t>(lane)] = in.scales[s];
  for (size_t b = 0; b < 8; ++b) {
    const size_t h = b / 4, p = b % 4;
    uint8_t codes[32];
    for (size_t i = 0; i < 32; ++i)
      codes[i] = in.qs[32 * h + i] >> (2 * p) & 3;
    put_block<LayoutQ2_K>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d) && is_finite(in.dmin);
}
bool put_in(const BlockIQ4_XS& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, f16_to_f32(in.d));
  const std::array<int8_t, 8> scales = unpack_iq4_xs_scales(in);
  for (size_t b = 0; b < 8; ++b) {
    unit[64 + 16 * b + static_cast<size_t>(lane)] = static_cast<uint8_t>(scales[b]);
    std::array<uint8_t, 16> qs;
    std::copy_n(in.qs.begin() + 16 * static_cast<std::ptrdiff_t>(b), 16, qs.begin());
    uint8_t codes[32];
    nibbles(qs, codes);
    put_block<LayoutIq4Xs>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}

// ---- codebook types: points of the grids become codes -------------------------------------------

uint8_t iq2_code(int magnitude, bool minus) noexcept {  // of 8, 25, 43
  return static_cast<uint8_t>((magnitude > 8) + (magnitude > 25) + 4 * minus);
}
uint8_t iq3_xxs_code(int magnitude, bool minus) noexcept {  // of 4, 12, ... 52, 62
  return static_cast<uint8_t>(magnitude / 8 + 8 * minus);
}
uint8_t iq3_s_code(int magnitude, bool minus) noexcept {  // of 1, 3, ... 15
  return static_cast<uint8_t>((15 + (minus ? -magnitude : magnitude)) / 2);
}

template <class Point, class Code>
void put_point(const Point& point, unsigned signs, Code code, uint8_t* codes) noexcept {
  for (size_t j = 0; j < point.size(); ++j)
    codes[j] = code(point[j], (signs >> j & 1) != 0);
}

bool put_in(const BlockIQ2_XXS& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, f16_to_f32(in.d) * 0.125F);  // d (0.5 + s) / 4 = d / 8 (2 s + 1)
  for (size_t b = 0; b < 8; ++b) {
    const uint8_t* indices = in.qs.data() + 8 * b;
    const uint32_t signs_and_scale = word(indices + 4);
    put_nibble(unit + 64, lane, b, signs_and_scale >> 28);
    uint8_t codes[32];
    for (size_t g = 0; g < 4; ++g) {
      put_point(kIq2XxsGrid[indices[g]], iq_signs(signs_and_scale >> (7 * g)), iq2_code,
                codes + 8 * g);
    }
    put_block<LayoutIq2<1>>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}

/// IQ2_XS and IQ2_S; put_group(g, codes) for each eight columns.
template <class PutGroup>
void put_iq2(F16Bits d, const uint8_t* scales, PutGroup put_group, int lane,
             uint8_t* unit) noexcept {
  put_f32(unit, lane, f16_to_f32(d) * 0.125F);
  for (size_t s = 0; s < 16; ++s)
    put_nibble(unit + 64 + 64 * (s % 2), lane, s / 2, get_nibble(scales, s));
  for (size_t b = 0; b < 8; ++b) {
    uint8_t codes[32];
    for (size_t g = 0; g < 4; ++g)
      put_group(4 * b + g, codes + 8 * g);
    put_block<LayoutIq2<2>>(codes, lane, static_cast<int64_t>(b), unit);
  }
}
bool put_in(const BlockIQ2_XS& in, int64_t, int lane, uint8_t* unit) noexcept {
  const auto put_group = [&](size_t g, uint8_t* codes) {
    put_point(kIq2XsGrid[in.qs[g] & 511U], iq_signs(in.qs[g] >> 9), iq2_code, codes);
  };
  put_iq2(in.d, in.scales.data(), put_group, lane, unit);
  return is_finite(in.d);
}
bool put_in(const BlockIQ2_S& in, int64_t, int lane, uint8_t* unit) noexcept {
  const auto put_group = [&](size_t g, uint8_t* codes) {
    const unsigned high = in.qh[g / 4] >> (2 * (g % 4)) & 3U;
    put_point(kIq2SGrid[in.qs[g] | high << 8], in.signs[g], iq2_code, codes);
  };
  put_iq2(in.d, in.scales.data(), put_group, lane, unit);
  return is_finite(in.d);
}

bool put_in(const BlockIQ3_XXS& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, f16_to_f32(in.d) * 0.25F);  // d (0.5 + s) / 2 = d / 4 (2 s + 1)
  for (size_t b = 0; b < 8; ++b) {
    const uint32_t signs_and_scale = word(in.scales_and_signs.data() + 4 * b);
    put_nibble(unit + 64, lane, b, signs_and_scale >> 28);
    uint8_t codes[32];
    for (size_t g = 0; g < 8; ++g) {
      const unsigned signs = iq_signs(signs_and_scale >> (7 * (g / 2))) >> (4 * (g % 2));
      put_point(kIq3XxsGrid[in.qs[8 * b + g]], signs, iq3_xxs_code, codes + 4 * g);
    }
    put_block<LayoutIq3Xxs>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}
bool put_in(const BlockIQ3_S& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, f16_to_f32(in.d));
  for (size_t b = 0; b < 8; ++b) {
    put_nibble(unit + 64, lane, b, get_nibble(in.scales.data(), b));
    uint8_t codes[32];
    for (size_t g = 0; g < 8; ++g) {
      const unsigned high = in.qh[b] >> g & 1U;
      put_point(kIq3SGrid[in.qs[8 * b + g] | high << 8], get_nibble(in.signs.data(), 8 * b + g),
                iq3_s_code, codes + 4 * g);
    }
    put_block<LayoutIq3S>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}

uint8_t iq1_code(int level, bool) noexcept {
  return static_cast<uint8_t>(level + 1);
}
bool put_in(const BlockIQ1_S& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, f16_to_f32(in.d) * 0.125F);
  for (size_t b = 0; b < 8; ++b) {
    const unsigned qh = in.qh[b];
    put_nibble(unit + 64, lane, b, (qh >> 12 & 7U) | (~qh >> 15 & 1U) << 3);
    uint8_t codes[32];
    for (size_t g = 0; g < 4; ++g)
      put_point(kIq1Grid[in.qs[4 * b + g] | (qh >> (3 * g) & 7U) << 8], 0, iq1_code, codes + 8 * g);
    put_block<LayoutIq1<1>>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}
bool put_in(const BlockIQ1_M& in, int64_t, int lane, uint8_t* unit) noexcept {
  const F16Bits d = iq1_m_scale(in);
  put_f32(unit, lane, f16_to_f32(d) * 0.125F);
  for (size_t s = 0; s < 16; ++s)
    put_nibble(unit + 64 + 64 * (s % 2), lane, s / 2, in.scales[s / 4] >> (3 * (s % 4)) & 7U);
  for (size_t b = 0; b < 8; ++b) {
    uint8_t codes[32];
    unsigned shifts = 0;
    for (size_t g = 0; g < 4; ++g) {
      const unsigned qh = get_nibble(in.qh.data(), 4 * b + g);
      put_point(kIq1Grid[in.qs[4 * b + g] | (qh & 7U) << 8], 0, iq1_code, codes + 8 * g);
      shifts |= (~qh >> 3 & 1U) << g;
    }
    put_nibble(unit + 192, lane, b, shifts);
    put_block<LayoutIq1<2>>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(d);
}

bool put_in(const BlockQ8_K& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, in.d);
  for (size_t b = 0; b < 8; ++b) {
    uint8_t codes[32];
    for (size_t i = 0; i < 32; ++i)
      codes[i] = static_cast<uint8_t>(in.qs[32 * b + i] + 128);
    put_block<LayoutQ8_K>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return std::isfinite(in.d * 128.0F);  // and so every weight
}
bool put_in(const BlockTQ2_0& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, f16_to_f32(in.d));
  for (size_t b = 0; b < 8; ++b) {
    uint8_t codes[32];
    for (size_t i = 0; i < 32; ++i)
      codes[i] = in.qs[32 * (b / 4) + i] >> (2 * (b % 4)) & 3;
    put_block<LayoutTernary>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}
bool put_in(const BlockTQ1_0& in, int64_t, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, f16_to_f32(in.d));
  uint8_t codes[kSuperBlock];
  uint8_t* next = codes;
  // A byte is a fraction of 256 in base 3: times 3, the next digit stands above its eight bits.
  const auto digits = [&](const uint8_t* bytes, size_t n_bytes, size_t n_digits) {
    for (size_t i = 0; i < n_bytes; ++i) {
      unsigned rest = bytes[i];
      for (size_t digit = 0; digit < n_digits; ++digit) {
        next[digit * n_bytes + i] = static_cast<uint8_t>(3 * rest >> 8);
        rest = 3 * rest & 255;
      }
    }
    next += n_bytes * n_digits;
  };
  digits(in.qs.data(), 32, 5);
  digits(in.qs.data() + 32, 16, 5);
  digits(in.qh.data(), 4, 4);
  for (int64_t b = 0; b < 8; ++b)
    put_block<LayoutTernary>(codes + 32 * b, lane, b, unit);
  return is_finite(in.d);
}

template <class Block>
bool pack_block_row(const std::byte* row, int64_t n_blocks, int64_t per_unit, int lane,
                    int64_t unit_bytes, uint8_t* panel) noexcept {
  bool finite = true;
  for (int64_t i = 0; i < n_blocks; ++i) {
    const auto block = load_block<Block>(row + i * static_cast<int64_t>(sizeof(Block)));
    finite &= put_in(block, i % per_unit, lane, panel + i / per_unit * unit_bytes);
  }
  return finite;
}

}  // namespace

void put_codes(int bits, const uint8_t* codes, int lane, uint8_t* block) noexcept {
  switch (bits) {
    case 2:
      return put_codes<2>(codes, lane, block);
    case 3:
      return put_codes<3>(codes, lane, block);
    case 4:
      return put_codes<4>(codes, lane, block);
    case 5:
      return put_codes<5>(codes, lane, block);
    case 6:
      return put_codes<6>(codes, lane, block);
    default:
      return put_codes<8>(codes, lane, block);
  }
}

BlockPacking block_packing_of(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0:
      return {LinearLayout::kQ4_0, pack_block_row<BlockQ4_0>};
    case DType::kQ4_1:
      return {LinearLayout::kQ4_1, pack_block_row<BlockQ4_1>};
    case DType::kQ5_0:
      return {LinearLayout::kQ5_0, pack_block_row<BlockQ5_0>};
    case DType::kQ5_1:
      return {LinearLayout::kQ5_1, pack_block_row<BlockQ5_1>};
    case DType::kQ8_0:
      return {LinearLayout::kQ8_0, pack_block_row<BlockQ8_0>};
    case DType::kQ8_1:
      return {LinearLayout::kQ8_0, pack_block_row<BlockQ8_1>};
    case DType::kQ2_K:
      return {LinearLayout::kQ2_K, pack_block_row<BlockQ2_K>};
    case DType::kQ3_K:
      return {LinearLayout::kQ3_K, pack_block_row<BlockQ3_K>};
    case DType::kQ4_K:
      return {LinearLayout::kQ4_K, pack_block_row<BlockQ4_K>};
    case DType::kQ5_K:
      return {LinearLayout::kQ5_K, pack_block_row<BlockQ5_K>};
    case DType::kQ6_K:
      return {LinearLayout::kQ6_K, pack_block_row<BlockQ6_K>};
    case DType::kQ8_K:
      return {LinearLayout::kQ8_K, pack_block_row<BlockQ8_K>};
    case DType::kIQ1_S:
      return {LinearLayout::kIq1S, pack_block_row<BlockIQ1_S>};
    case DType::kIQ1_M:
      return {LinearLayout::kIq1M, pack_block_row<BlockIQ1_M>};
    case DType::kIQ2_XXS:
      return {LinearLayout::kIq2Xxs, pack_block_row<BlockIQ2_XXS>};
    case DType::kIQ2_XS:
      return {LinearLayout::kIq2Xs, pack_block_row<BlockIQ2_XS>};
    case DType::kIQ2_S:
      return {LinearLayout::kIq2Xs, pack_block_row<BlockIQ2_S>};
    case DType::kIQ3_XXS:
      return {LinearLayout::kIq3Xxs, pack_block_row<BlockIQ3_XXS>};
    case DType::kIQ3_S:
      return {LinearLayout::kIq3S, pack_block_row<BlockIQ3_S>};
    case DType::kIQ4_NL:
      return {LinearLayout::kIq4Nl, pack_block_row<BlockIQ4_NL>};
    case DType::kIQ4_XS:
      return {LinearLayout::kIq4Xs, pack_block_row<BlockIQ4_XS>};
    case DType::kTQ1_0:
      return {LinearLayout::kTernary, pack_block_row<BlockTQ1_0>};
    case DType::kTQ2_0:
      return {LinearLayout::kTernary, pack_block_row<BlockTQ2_0>};
    case DType::kMXFP4:
      return {LinearLayout::kMxfp4, pack_block_row<BlockMXFP4>};
    case DType::kNVFP4:
      return {LinearLayout::kNvfp4, pack_block_row<BlockNVFP4>};
    case DType::kQ1_0:
      return {LinearLayout::kQ1_0, pack_block_row<BlockQ1_0>};
    case DType::kQ2_0:
      return {LinearLayout::kQ2_0, pack_block_row<BlockQ2_0>};
    default:
      break;
  }
  QW_CHECK(false, "{} is no type of blocks", name_of(dtype));
}

}  // namespace qw::kernels
