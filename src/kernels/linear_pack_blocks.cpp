// Level 3 (kernels): see the header. Types whose codes are bits of their blocks: 16 rows at once.
#include "kernels/linear_pack_blocks.h"

#include <cmath>
#include <cstddef>

#include "base/error.h"
#include "base/half.h"
#include "kernels/cpu/linear_layouts.h"
#include "kernels/linear_pack_codebook.h"

namespace qw::kernels {

namespace {

// ---- fields -------------------------------------------------------------------------------------

/// Every bit of four, of a word's lowest, into the lowest of a byte.
Words spread_bits(const Words& w) noexcept {
  const Words four = w & 15;
  return bits_of(four | four << 7 | (four << 14 | four << 21), 1);
}
/// Every pair of bits of four, of a word's lowest byte, into the lowest of a byte.
Words spread_pairs(const Words& w) noexcept {
  const Words four = w & 255;
  return bits_of(four | four << 6 | (four << 12 | four << 18), 3);
}

/// f16 at `offset` of every row into an f16 header. False: one is not finite.
bool put_f16s(const Rows& rows, size_t offset, uint8_t* header) noexcept {
  bool finite = true;
  for (int lane = 0; lane < kLanes; ++lane) {
    F16Bits bits;
    std::memcpy(&bits, rows[lane] + offset, 2);
    put_f16(header, lane, bits);
    finite &= is_finite(bits);
  }
  return finite;
}
/// The same, widened to f32.
bool put_widened(const Rows& rows, size_t offset, uint8_t* header) noexcept {
  bool finite = true;
  for (int lane = 0; lane < kLanes; ++lane) {
    F16Bits bits;
    std::memcpy(&bits, rows[lane] + offset, 2);
    const float value = f16_to_f32(bits);
    std::memcpy(header + 4 * lane, &value, 4);
    finite &= is_finite(bits);
  }
  return finite;
}

/// Sixteen bytes at `offset` of every row into rows of a byte for every lane.
void put_sixteen(const Rows& rows, size_t offset, uint8_t* header) noexcept {
  Words words[4];
  read_words<4>(rows, offset, words);
  for (int j = 0; j < 4; ++j)
    put_bytes(words[j], header + 64 * j);
}

/// Codes of the type with nibbles in the order of Q4_0 at `offset`.
void read_nibbles(const Rows& rows, size_t offset, Words* groups) noexcept {
  Words words[4];
  read_words<4>(rows, offset, words);
  for (int j = 0; j < 4; ++j) {
    groups[j] = bits_of(words[j], 15);
    groups[j + 4] = bits_of(words[j] >> 4, 15);
  }
}
void add_fifth_bits(const Words& bits, Words* groups) noexcept {
  for (int j = 0; j < 8; ++j)
    groups[j] = groups[j] | spread_bits(bits >> (4 * j)) << 4;
}
/// 32 signed bytes at `offset`, moved to 0 .. 255.
void read_signed(const Rows& rows, size_t offset, Words* groups) noexcept {
  read_words<8>(rows, offset, groups);
  for (int j = 0; j < 8; ++j)
    groups[j] = groups[j] ^ 0x80808080U;
}

template <class L>
uint8_t* block_at(uint8_t* unit, int64_t block) noexcept {
  return unit + L::kHeader + block * 64 * L::kBits;
}

// ---- one published block of 16 rows into a unit; false: a scale is not finite -------------------

// `part` counts published blocks within the unit.

template <class Block>
struct Packer;  // static bool put(const Rows& rows, int64_t part, uint8_t* unit)

/// d and nibbles.
template <class Block, class L>
struct NibblePacker {
  static bool put(const Rows& rows, int64_t part, uint8_t* unit) noexcept {
    Words groups[8];
    read_nibbles(rows, offsetof(Block, qs), groups);
    put_planes<L::kBits>(groups, block_at<L>(unit, part));
    return put_f16s(rows, offsetof(Block, d), unit + 32 * part);
  }
};
template <>
struct Packer<BlockQ4_0> : NibblePacker<BlockQ4_0, LayoutQ4_0> {};
template <>
struct Packer<BlockIQ4_NL> : NibblePacker<BlockIQ4_NL, LayoutIq4Nl> {};

template <>
struct Packer<BlockQ4_1> {
  static bool put(const Rows& rows, int64_t part, uint8_t* unit) noexcept {
    const bool d = NibblePacker<BlockQ4_1, LayoutQ4_1>::put(rows, part, unit);
    return put_f16s(rows, offsetof(BlockQ4_1, m), unit + 64 + 32 * part) && d;
  }
};

/// d, nibbles and fifth bits.
template <class Block, class L>
struct FifthBitPacker {
  static bool put(const Rows& rows, int64_t part, uint8_t* unit) noexcept {
    Words groups[8];
    read_nibbles(rows, offsetof(Block, qs), groups);
    add_fifth_bits(read_word(rows, offsetof(Block, qh)), groups);
    put_planes<5>(groups, block_at<L>(unit, part));
    return put_f16s(rows, offsetof(Block, d), unit + 32 * part);
  }
};
template <>
struct Packer<BlockQ5_0> : FifthBitPacker<BlockQ5_0, LayoutQ5_0> {};
template <>
struct Packer<BlockQ5_1> {
  static bool put(const Rows& rows, int64_t part, uint8_t* unit) noexcept {
    const bool d = FifthBitPacker<BlockQ5_1, LayoutQ5_1>::put(rows, part, unit);
    return put_f16s(rows, offsetof(BlockQ5_1, m), unit + 64 + 32 * part) && d;
  }
};

template <class Block>
struct SignedPacker {
  static bool put(const Rows& rows, int64_t part, uint8_t* unit) noexcept {
    Words groups[8];
    read_signed(rows, offsetof(Block, qs), groups);
    put_planes<8>(groups, block_at<LayoutQ8_0>(unit, part));
    return put_f16s(rows, offsetof(Block, d), unit + 32 * part);
  }
};
template <>
struct Packer<BlockQ8_0> : SignedPacker<BlockQ8_0> {};
template <>
struct Packer<BlockQ8_1> : SignedPacker<BlockQ8_1> {};

template <>
struct Packer<BlockMXFP4> {
  static bool put(const Rows& rows, int64_t part, uint8_t* unit) noexcept {
    Words groups[8];
    read_nibbles(rows, offsetof(BlockMXFP4, qs), groups);
    put_planes<4>(groups, block_at<LayoutMxfp4>(unit, part));
    for (int lane = 0; lane < kLanes; ++lane)
      unit[16 * part + lane] = static_cast<uint8_t>(rows[lane][offsetof(BlockMXFP4, e)]);
    return true;  // every exponent is a number: 255 is 2^127
  }
};

template <>
struct Packer<BlockNVFP4> {
  static bool put(const Rows& rows, int64_t, uint8_t* unit) noexcept {
    for (size_t s = 0; s < 4; ++s) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const auto d = static_cast<uint8_t>(rows[lane][offsetof(BlockNVFP4, d) + s]);
        unit[16 * s + static_cast<size_t>(lane)] = d == 0x7F ? 0 : d & 0x7F;  // 0xFF is a number
      }
    }
    Words words[8];
    read_words<8>(rows, offsetof(BlockNVFP4, qs), words);
    for (int b = 0; b < 2; ++b) {
      Words groups[8];
      for (int j = 0; j < 8; ++j)
        groups[j] = bits_of(words[4 * b + j / 4 * 2 + j % 2] >> (j / 2 % 2 * 4), 15);
      put_planes<4>(groups, block_at<LayoutNvfp4>(unit, b));
    }
    return true;
  }
};

template <>
struct Packer<BlockQ1_0> {
  static bool put(const Rows& rows, int64_t part, uint8_t* unit) noexcept {
    Words words[4];
    read_words<4>(rows, offsetof(BlockQ1_0, qs), words);
    for (int b = 0; b < 4; ++b) {
      Words groups[8];
      for (int j = 0; j < 8; ++j)
        groups[j] = spread_bits(words[b] >> (4 * j));
      put_planes<1>(groups, block_at<LayoutQ1_0>(unit, 4 * part + b));
    }
    return put_f16s(rows, offsetof(BlockQ1_0, d), unit + 32 * part);
  }
};
template <>
struct Packer<BlockQ2_0> {
  static bool put(const Rows& rows, int64_t part, uint8_t* unit) noexcept {
    Words words[4];
    read_words<4>(rows, offsetof(BlockQ2_0, qs), words);
    for (int b = 0; b < 2; ++b) {
      Words groups[8];
      for (int j = 0; j < 8; ++j)
        groups[j] = spread_pairs(words[2 * b + j / 4] >> (8 * (j % 4)));
      put_planes<2>(groups, block_at<LayoutQ2_0>(unit, 2 * part + b));
    }
    return put_f16s(rows, offsetof(BlockQ2_0, d), unit + 32 * part);
  }
};

/// Header of Q4_K and Q5_K: d, dmin, and unpack_k4_scales of 16 rows.
template <class Block>
bool put_k4_header(const Rows& rows, uint8_t* unit) noexcept {
  static_assert(offsetof(Block, scales) == 4);
  Words words[4];  // of the block's first 16 bytes
  read_words<4>(rows, 0, words);
  const Words &scale = words[1], &min = words[2], &low = words[3];
  put_bytes(bits_of(scale, 63), unit + 64);
  put_bytes(bits_of(low, 15) | bits_of(scale >> 6, 3) << 4, unit + 128);
  put_bytes(bits_of(min, 63), unit + 192);
  put_bytes(bits_of(low >> 4, 15) | bits_of(min >> 6, 3) << 4, unit + 256);
  const bool d = put_f16s(rows, offsetof(Block, d), unit);
  return put_f16s(rows, offsetof(Block, dmin), unit + 32) && d;
}
template <>
struct Packer<BlockQ4_K> {
  static bool put(const Rows& rows, int64_t, uint8_t* unit) noexcept {
    for (int c = 0; c < 4; ++c) {
      Words words[8], low[8], high[8];
      read_words<8>(rows, offsetof(BlockQ4_K, qs) + 32 * static_cast<size_t>(c), words);
      for (int j = 0; j < 8; ++j) {
        low[j] = bits_of(words[j], 15);
        high[j] = bits_of(words[j] >> 4, 15);
      }
      put_planes<4>(low, block_at<LayoutQ4_K>(unit, 2 * c));
      put_planes<4>(high, block_at<LayoutQ4_K>(unit, 2 * c + 1));
    }
    return put_k4_header<BlockQ4_K>(rows, unit);
  }
};
template <>
struct Packer<BlockQ5_K> {
  static bool put(const Rows& rows, int64_t, uint8_t* unit) noexcept {
    Words fifth[8];
    read_words<8>(rows, offsetof(BlockQ5_K, qh), fifth);
    for (int c = 0; c < 4; ++c) {
      Words words[8], low[8], high[8];
      read_words<8>(rows, offsetof(BlockQ5_K, qs) + 32 * static_cast<size_t>(c), words);
      for (int j = 0; j < 8; ++j) {
        low[j] = bits_of(words[j], 15) | bits_of(fifth[j] >> (2 * c), 1) << 4;
        high[j] = bits_of(words[j] >> 4, 15) | bits_of(fifth[j] >> (2 * c + 1), 1) << 4;
      }
      put_planes<5>(low, block_at<LayoutQ5_K>(unit, 2 * c));
      put_planes<5>(high, block_at<LayoutQ5_K>(unit, 2 * c + 1));
    }
    return put_k4_header<BlockQ5_K>(rows, unit);
  }
};

template <>
struct Packer<BlockQ6_K> {
  static bool put(const Rows& rows, int64_t, uint8_t* unit) noexcept {
    for (int h = 0; h < 2; ++h) {  // halves of 128 elements
      const auto half = static_cast<size_t>(h);
      Words low[16], high[8];
      read_words<16>(rows, offsetof(BlockQ6_K, ql) + 64 * half, low);
      read_words<8>(rows, offsetof(BlockQ6_K, qh) + 32 * half, high);
      for (int p = 0; p < 4; ++p) {
        Words groups[8];
        for (int j = 0; j < 8; ++j) {
          groups[j] = bits_of(low[8 * (p % 2) + j] >> (4 * (p / 2)), 15) |
                      bits_of(high[j] >> (2 * p), 3) << 4;
        }
        put_planes<6>(groups, block_at<LayoutQ6_K>(unit, 4 * h + p));
      }
    }
    put_sixteen(rows, offsetof(BlockQ6_K, scales), unit + 64);
    return put_widened(rows, offsetof(BlockQ6_K, d), unit);
  }
};

/// Two low bits of every code in the order of Q2_K at `offset`: put(b, groups) for each 32 columns.
template <class Put>
void read_pairs(const Rows& rows, size_t offset, Put put) noexcept {
  for (int h = 0; h < 2; ++h) {
    Words words[8];
    read_words<8>(rows, offset + 32 * static_cast<size_t>(h), words);
    for (int p = 0; p < 4; ++p) {
      Words groups[8];
      for (int j = 0; j < 8; ++j)
        groups[j] = bits_of(words[j] >> (2 * p), 3);
      put(4 * h + p, groups);
    }
  }
}
template <>
struct Packer<BlockQ3_K> {
  static bool put(const Rows& rows, int64_t, uint8_t* unit) noexcept {
    Words third[8];
    read_words<8>(rows, offsetof(BlockQ3_K, hmask), third);
    read_pairs(rows, offsetof(BlockQ3_K, qs), [&](int b, Words* groups) {
      for (int j = 0; j < 8; ++j)
        groups[j] = groups[j] | bits_of(third[j] >> b, 1) << 2;
      put_planes<3>(groups, block_at<LayoutQ3_K>(unit, b));
    });
    for (int lane = 0; lane < kLanes; ++lane) {
      std::array<uint8_t, 12> packed;
      std::memcpy(packed.data(), rows[lane] + offsetof(BlockQ3_K, scales), packed.size());
      const std::array<int8_t, 16> scales = unpack_q3_k_scales(packed);
      for (size_t s = 0; s < 16; ++s)
        unit[64 + 16 * s + static_cast<size_t>(lane)] = static_cast<uint8_t>(scales[s]);
    }
    return put_widened(rows, offsetof(BlockQ3_K, d), unit);
  }
};
template <>
struct Packer<BlockQ2_K> {
  static bool put(const Rows& rows, int64_t, uint8_t* unit) noexcept {
    read_pairs(rows, offsetof(BlockQ2_K, qs), [&](int b, const Words* groups) {
      put_planes<2>(groups, block_at<LayoutQ2_K>(unit, b));
    });
    put_sixteen(rows, offsetof(BlockQ2_K, scales), unit + 64);
    const bool d = put_f16s(rows, offsetof(BlockQ2_K, d), unit);
    return put_f16s(rows, offsetof(BlockQ2_K, dmin), unit + 32) && d;
  }
};
template <>
struct Packer<BlockTQ2_0> {
  static bool put(const Rows& rows, int64_t, uint8_t* unit) noexcept {
    read_pairs(rows, offsetof(BlockTQ2_0, qs), [&](int b, const Words* groups) {
      put_planes<2>(groups, block_at<LayoutTernary>(unit, b));
    });
    return put_widened(rows, offsetof(BlockTQ2_0, d), unit);
  }
};

template <>
struct Packer<BlockIQ4_XS> {
  static bool put(const Rows& rows, int64_t, uint8_t* unit) noexcept {
    for (int b = 0; b < 8; ++b) {
      Words groups[8];
      read_nibbles(rows, offsetof(BlockIQ4_XS, qs) + 16 * static_cast<size_t>(b), groups);
      put_planes<4>(groups, block_at<LayoutIq4Xs>(unit, b));
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto scales = unpack_iq4_xs_scales(load_block<BlockIQ4_XS>(rows[lane]));
      for (size_t s = 0; s < 8; ++s)
        unit[64 + 16 * s + static_cast<size_t>(lane)] = static_cast<uint8_t>(scales[s]);
    }
    return put_widened(rows, offsetof(BlockIQ4_XS, d), unit);
  }
};

template <>
struct Packer<BlockQ8_K> {
  static bool put(const Rows& rows, int64_t, uint8_t* unit) noexcept {
    for (int b = 0; b < 8; ++b) {
      Words groups[8];
      read_signed(rows, offsetof(BlockQ8_K, qs) + 32 * static_cast<size_t>(b), groups);
      put_planes<8>(groups, block_at<LayoutQ8_K>(unit, b));
    }
    bool finite = true;
    for (int lane = 0; lane < kLanes; ++lane) {
      float d;
      std::memcpy(&d, rows[lane] + offsetof(BlockQ8_K, d), 4);
      std::memcpy(unit + 4 * lane, &d, 4);
      finite &= std::isfinite(d * 128.0F);  // and so every weight
    }
    return finite;
  }
};

template <class Block>
bool pack_panel(const BlockPanel& in, uint8_t* panel) noexcept {
  return pack_units<Block>(in, panel, Packer<Block>::put);
}

}  // namespace

BlockPacking block_packing_of(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0:
      return {LinearLayout::kQ4_0, pack_panel<BlockQ4_0>};
    case DType::kQ4_1:
      return {LinearLayout::kQ4_1, pack_panel<BlockQ4_1>};
    case DType::kQ5_0:
      return {LinearLayout::kQ5_0, pack_panel<BlockQ5_0>};
    case DType::kQ5_1:
      return {LinearLayout::kQ5_1, pack_panel<BlockQ5_1>};
    case DType::kQ8_0:
      return {LinearLayout::kQ8_0, pack_panel<BlockQ8_0>};
    case DType::kQ8_1:
      return {LinearLayout::kQ8_0, pack_panel<BlockQ8_1>};
    case DType::kQ2_K:
      return {LinearLayout::kQ2_K, pack_panel<BlockQ2_K>};
    case DType::kQ3_K:
      return {LinearLayout::kQ3_K, pack_panel<BlockQ3_K>};
    case DType::kQ4_K:
      return {LinearLayout::kQ4_K, pack_panel<BlockQ4_K>};
    case DType::kQ5_K:
      return {LinearLayout::kQ5_K, pack_panel<BlockQ5_K>};
    case DType::kQ6_K:
      return {LinearLayout::kQ6_K, pack_panel<BlockQ6_K>};
    case DType::kQ8_K:
      return {LinearLayout::kQ8_K, pack_panel<BlockQ8_K>};
    case DType::kIQ4_NL:
      return {LinearLayout::kIq4Nl, pack_panel<BlockIQ4_NL>};
    case DType::kIQ4_XS:
      return {LinearLayout::kIq4Xs, pack_panel<BlockIQ4_XS>};
    case DType::kTQ2_0:
      return {LinearLayout::kTernary, pack_panel<BlockTQ2_0>};
    case DType::kMXFP4:
      return {LinearLayout::kMxfp4, pack_panel<BlockMXFP4>};
    case DType::kNVFP4:
      return {LinearLayout::kNvfp4, pack_panel<BlockNVFP4>};
    case DType::kQ1_0:
      return {LinearLayout::kQ1_0, pack_panel<BlockQ1_0>};
    case DType::kQ2_0:
      return {LinearLayout::kQ2_0, pack_panel<BlockQ2_0>};
    default:
      break;
  }
  const auto packing = codebook_packing_of(dtype);
  QW_CHECK(packing.has_value(), "{} is no type of blocks", name_of(dtype));
  return *packing;
}

}  // namespace qw::kernels
