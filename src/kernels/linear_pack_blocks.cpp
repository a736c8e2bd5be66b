// Level 3 (kernels): see the header.
#include "kernels/linear_pack_blocks.h"

#include <algorithm>
#include <array>
#include <bit>

#include "base/half.h"
#include "kernels/cpu/linear_layouts.h"

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

/// Bit kFrom of the codes of group j becomes bit j of the plane.
template <int kFrom>
void put_bit_plane(const uint8_t* codes, uint8_t* lane) noexcept {
  uint32_t plane = 0;
  for (int j = 0; j < 8; ++j)
    plane |= (word(codes + 4 * j) >> kFrom & 0x01010101U) << j;
  put(lane, plane);
}
template <int kFrom>
void put_two_bit_planes(const uint8_t* codes, uint8_t* lane) noexcept {
  for (int v = 0; v < 2; ++v) {
    uint32_t plane = 0;
    for (int i = 0; i < 4; ++i)
      plane |= (word(codes + 16 * v + 4 * i) >> kFrom & 0x03030303U) << 2 * i;
    put(lane + 64 * v, plane);
  }
}

/// The planes of linear_layouts.h; `block` is the block's first byte.
template <int kBits>
void put_codes(const uint8_t* codes, int lane, uint8_t* block) noexcept {
  uint8_t* out = block + 4 * lane;
  if constexpr (kBits == 8) {
    for (int j = 0; j < 8; ++j)
      put(out + 64 * j, word(codes + 4 * j));
  } else if constexpr (kBits >= 4) {
    for (int v = 0; v < 4; ++v) {
      put(out + 64 * v,
          (word(codes + 4 * v) & 0x0F0F0F0FU) | (word(codes + 16 + 4 * v) & 0x0F0F0F0FU) << 4);
    }
  } else {
    put_two_bit_planes<0>(codes, out);
  }
  if constexpr (kBits == 5) put_bit_plane<4>(codes, out + 256);
  if constexpr (kBits == 3) put_bit_plane<2>(codes, out + 128);
  if constexpr (kBits == 6) put_two_bit_planes<4>(codes, out + 256);
}

template <class L>
void put_block(const uint8_t* codes, int lane, int64_t block, uint8_t* unit) noexcept {
  put_codes<L::kBits>(codes, lane, unit + L::kHeader + block * 64 * L::kBits);
}

void put_f32(uint8_t* header, int lane, F16Bits bits) noexcept {
  const float value = f16_to_f32(bits);
  std::memcpy(header + 4 * lane, &value, 4);
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
  put_f32(unit, lane, in.d);
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
  put_f32(unit, lane, in.d);
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
  put_f32(unit, lane, in.d);
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

PackRow pack_row_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::kQ4_0:
      return pack_block_row<BlockQ4_0>;
    case DType::kQ4_1:
      return pack_block_row<BlockQ4_1>;
    case DType::kQ5_0:
      return pack_block_row<BlockQ5_0>;
    case DType::kQ5_1:
      return pack_block_row<BlockQ5_1>;
    case DType::kQ8_0:
      return pack_block_row<BlockQ8_0>;
    case DType::kQ2_K:
      return pack_block_row<BlockQ2_K>;
    case DType::kQ3_K:
      return pack_block_row<BlockQ3_K>;
    case DType::kQ4_K:
      return pack_block_row<BlockQ4_K>;
    case DType::kQ5_K:
      return pack_block_row<BlockQ5_K>;
    case DType::kQ6_K:
      return pack_block_row<BlockQ6_K>;
    case DType::kIQ4_NL:
      return pack_block_row<BlockIQ4_NL>;
    case DType::kIQ4_XS:
      return pack_block_row<BlockIQ4_XS>;
    case DType::kMXFP4:
      return pack_block_row<BlockMXFP4>;
    default:
      return nullptr;
  }
}

}  // namespace qw::kernels
