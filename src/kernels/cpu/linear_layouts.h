// The layouts of quantised weights: how a panel of 16 output rows lies in memory, and what it
// means.
//
// Level 3 (kernels). Templates over the vector type of simd_*.h, internal linkage.
//
// A panel is a row of units; a unit is a header (scales of its blocks, one value per lane) and then
// 64 * bits bytes of codes for each block of 32 columns. A vector of 64 bytes holds four
// consecutive columns for each of 16 lanes: column 4j + i of a block is byte i of every lane in
// "group" j, so that broadcasting four activations feeds one integer dot product. Codes are cut
// into planes:
//   4 bits: vector v has group v in the low nibbles and group v + 4 in the high ones
//   2 bits: bits 2(j % 4).. of vector j / 4;  1 bit: bit j of one vector;  8 bits: vector j
//   5 = 4 + 1, 6 = 4 + 2, 3 = 2 + 1 bits, lower plane first.
// A layout says:  value = scale(unit, block, half) * (code - zero) + minimum(unit, block, half).
#pragma once

#include "kernels/linear_kernel.h"

namespace qw::kernels {
namespace {

/// Bit j of `plane` becomes bit kTo of group j.
template <class V, int kTo>
inline void add_bit_plane(typename V::Bytes plane, typename V::Bytes (&codes)[8]) {
  const auto mask = V::splat(1 << kTo);
  const auto put = [&](int j, typename V::Bytes shifted) {
    codes[j] = V::bit_or(codes[j], V::bit_and(shifted, mask));
  };
  if constexpr (kTo == 4) {
    put(0, V::template shift_left<4>(plane));
    put(1, V::template shift_left<3>(plane));
    put(2, V::template shift_left<2>(plane));
    put(3, V::template shift_left<1>(plane));
    put(4, plane);
    put(5, V::template shift_right<1>(plane));
    put(6, V::template shift_right<2>(plane));
    put(7, V::template shift_right<3>(plane));
  } else {
    static_assert(kTo == 2);
    put(0, V::template shift_left<2>(plane));
    put(1, V::template shift_left<1>(plane));
    put(2, plane);
    put(3, V::template shift_right<1>(plane));
    put(4, V::template shift_right<2>(plane));
    put(5, V::template shift_right<3>(plane));
    put(6, V::template shift_right<4>(plane));
    put(7, V::template shift_right<5>(plane));
  }
}

/// Codes of one block, group by group.
template <class V, int kBits>
inline void load_codes(const uint8_t* p, typename V::Bytes (&codes)[8]) {
  using Bytes = typename V::Bytes;
  if constexpr (kBits == 8) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j)
      codes[j] = V::load(p + 64 * j);
  } else if constexpr (kBits >= 4) {
    const Bytes low = V::splat(15);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Bytes pair = V::load(p + 64 * v);
      codes[v] = V::bit_and(pair, low);
      codes[v + 4] = V::bit_and(V::template shift_right<4>(pair), low);
    }
  } else {
    const Bytes low = V::splat(3);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const Bytes four = V::load(p + 64 * v);
      codes[4 * v] = V::bit_and(four, low);
      codes[4 * v + 1] = V::bit_and(V::template shift_right<2>(four), low);
      codes[4 * v + 2] = V::bit_and(V::template shift_right<4>(four), low);
      codes[4 * v + 3] = V::bit_and(V::template shift_right<6>(four), low);
    }
  }
  if constexpr (kBits == 5) add_bit_plane<V, 4>(V::load(p + 256), codes);
  if constexpr (kBits == 3) add_bit_plane<V, 2>(V::load(p + 128), codes);
  if constexpr (kBits == 6) {
    const Bytes mask = V::splat(0x30);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const Bytes four = V::load(p + 256 + 64 * v);
      codes[4 * v] = V::bit_or(codes[4 * v], V::bit_and(V::template shift_left<4>(four), mask));
      codes[4 * v + 1] =
          V::bit_or(codes[4 * v + 1], V::bit_and(V::template shift_left<2>(four), mask));
      codes[4 * v + 2] = V::bit_or(codes[4 * v + 2], V::bit_and(four, mask));
      codes[4 * v + 3] =
          V::bit_or(codes[4 * v + 3], V::bit_and(V::template shift_right<2>(four), mask));
    }
  }
}

/// What most layouts share.
struct LayoutBase {
  static constexpr int kHalves = 1;            // scales per block of 32 columns
  static constexpr int kZero = 0;              // subtracted from every code
  static constexpr bool kZeroPerLane = false;  // ... or zero(unit) is
  static constexpr bool kMinimum = false;      // minimum() is added to every value
  static constexpr bool kWide = false;         // |code - zero| or the code may exceed 63
  static constexpr bool kTable = false;        // stored codes index `table`, which gives the code
  static constexpr const uint8_t* table = nullptr;
};

/// kQ4_0, kQ5_0, kQ8_0 (codes are q + 128), and the table types: two blocks to a unit, f16 scales.
template <int kCodeBits, int kCodeZero>
struct ScaledPairs : LayoutBase {
  static constexpr int kBits = kCodeBits, kUnitBlocks = 2, kHeader = 64, kZero = kCodeZero;
  static constexpr bool kWide = kCodeBits == 8;
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t block, int) {
    return V::widen_f16(unit + 32 * block);
  }
};
using LayoutQ4_0 = ScaledPairs<4, 8>;
using LayoutQ5_0 = ScaledPairs<5, 16>;
using LayoutQ8_0 = ScaledPairs<8, 128>;

/// The levels of IQ4_NL and IQ4_XS, and E2M1 doubled, moved up so that none is negative.
alignas(16) constexpr uint8_t kIq4Table[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                               129, 141, 153, 166, 181, 197, 217, 241};
alignas(16) constexpr uint8_t kE2m1Table[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                                12, 11, 10, 9,  8,  6,  4,  0};

struct LayoutIq4Nl : ScaledPairs<4, 128> {
  static constexpr bool kWide = true, kTable = true;
  static constexpr const uint8_t* table = kIq4Table;
};

/// kQ4_1, kQ5_1: two blocks to a unit, f16 scale and minimum.
template <int kCodeBits>
struct ScaledPairsMin : LayoutBase {
  static constexpr int kBits = kCodeBits, kUnitBlocks = 2, kHeader = 128;
  static constexpr bool kMinimum = true;
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t block, int) {
    return V::widen_f16(unit + 32 * block);
  }
  template <class V>
  static typename V::Floats minimum(const uint8_t* unit, int64_t block, int) {
    return V::widen_f16(unit + 64 + 32 * block);
  }
};
using LayoutQ4_1 = ScaledPairsMin<4>;
using LayoutQ5_1 = ScaledPairsMin<5>;

/// Four blocks to a unit, one E8M0 exponent each.
struct LayoutMxfp4 : LayoutBase {
  static constexpr int kBits = 4, kUnitBlocks = 4, kHeader = 64, kZero = 12;
  static constexpr bool kTable = true;
  static constexpr const uint8_t* table = kE2m1Table;
  /// 2^(e - 128): 2^(e - 1 - 127) as f32 bits; e < 2 is subnormal: 2^-127 * 2^(e - 1) = bits << e.
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t block, int) {
    int32_t bits[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int32_t e = unit[16 * block + i];
      bits[i] = e < 2 ? 0x00200000 << e : (e - 1) << 23;
    }
    return V::bits_to_floats(V::load_ints(bits));
  }
};

/// kQ4_K, kQ5_K: f16 d, dmin; u8 scale and minimum per block (0..63).
///   value = (d * scale) * code - dmin * min
template <int kCodeBits>
struct SuperMin : LayoutBase {
  static constexpr int kBits = kCodeBits, kUnitBlocks = 8, kHeader = 320;
  static constexpr bool kMinimum = true;
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t block, int) {
    return V::multiply(V::widen_f16(unit), V::to_floats(V::widen_u8(unit + 64 + 16 * block)));
  }
  template <class V>
  static typename V::Floats minimum(const uint8_t* unit, int64_t block, int) {
    const auto positive =
        V::multiply(V::widen_f16(unit + 32), V::to_floats(V::widen_u8(unit + 192 + 16 * block)));
    return V::subtract(V::zero_floats(), positive);
  }
};
using LayoutQ4_K = SuperMin<4>;
using LayoutQ5_K = SuperMin<5>;

/// kQ6_K, kQ3_K: f32 d; s8 scale per 16 columns.  value = (d * scale) * (code - zero)
template <int kCodeBits, int kCodeZero>
struct SuperHalves : LayoutBase {
  static constexpr int kBits = kCodeBits, kUnitBlocks = 8, kHeader = 320, kHalves = 2,
                       kZero = kCodeZero;
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t block, int half) {
    return V::multiply(V::bits_to_floats(V::as_ints(V::load(unit))),
                       V::to_floats(V::widen_s8(unit + 64 + 16 * (2 * block + half))));
  }
};
using LayoutQ6_K = SuperHalves<6, 32>;
using LayoutQ3_K = SuperHalves<3, 4>;

/// f16 d, dmin; scale in the low, minimum in the high nibble of a byte per 16 columns.
struct LayoutQ2_K : LayoutBase {
  static constexpr int kBits = 2, kUnitBlocks = 8, kHeader = 320, kHalves = 2;
  static constexpr bool kMinimum = true;
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t block, int half) {
    return V::multiply(V::widen_f16(unit), V::to_floats(nibble<V, 0>(unit, 2 * block + half)));
  }
  template <class V>
  static typename V::Floats minimum(const uint8_t* unit, int64_t block, int half) {
    const auto positive =
        V::multiply(V::widen_f16(unit + 32), V::to_floats(nibble<V, 4>(unit, 2 * block + half)));
    return V::subtract(V::zero_floats(), positive);
  }

 private:
  template <class V, int kShift>
  static typename V::Ints nibble(const uint8_t* unit, int64_t sub) {
    const auto bytes = V::as_bytes(V::widen_u8(unit + 64 + 16 * sub));
    return V::as_ints(V::bit_and(V::template shift_right<kShift>(bytes), V::splat(15)));
  }
};

/// f32 d; s8 scale per block.
struct LayoutIq4Xs : LayoutBase {
  static constexpr int kBits = 4, kUnitBlocks = 8, kHeader = 192, kZero = 128;
  static constexpr bool kWide = true, kTable = true;
  static constexpr const uint8_t* table = kIq4Table;
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t block, int) {
    return V::multiply(V::bits_to_floats(V::as_ints(V::load(unit))),
                       V::to_floats(V::widen_s8(unit + 64 + 16 * block)));
  }
};

/// GPTQ and AWQ: a unit is one group; f16 scale, u16 zero.  value = scale * (code - zero)
template <int kCodeBits>
struct Group : LayoutBase {
  static constexpr int kBits = kCodeBits, kUnitBlocks = 0,
                       kHeader = 64;  // 0: PanelMatrix::unit_blocks
  static constexpr bool kZeroPerLane = true, kWide = kCodeBits == 8;
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t, int) {
    return V::widen_f16(unit);
  }
  template <class V>
  static typename V::Ints zero(const uint8_t* unit) {
    return V::widen_u16(unit + 32);
  }
};

/// AWQ GEMV_FAST: f16 scale, f16 offset.  value = scale * code + offset
struct LayoutGroup4Offset : LayoutBase {
  static constexpr int kBits = 4, kUnitBlocks = 0, kHeader = 64;
  static constexpr bool kMinimum = true;
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t, int) {
    return V::widen_f16(unit);
  }
  template <class V>
  static typename V::Floats minimum(const uint8_t* unit, int64_t, int) {
    return V::widen_f16(unit + 32);
  }
};

// ---- what the kernels ask of any layout --------------------------------------------------------

/// Integer form: value * x summed as scale * (dot(code - z, x)) + minimum * sum(x). Eight-bit codes
/// with a zero per lane have no exact 8-bit difference, so there z = 128 and the rest is a minimum.
template <class L>
constexpr bool kIntZeroPerLane = L::kZeroPerLane && !L::kWide;
template <class L>
constexpr bool kIntMinimum = L::kMinimum || (L::kZeroPerLane && L::kWide);
template <class L>
constexpr int kIntZero = L::kZeroPerLane&& L::kWide ? 128 : L::kZero;

template <class L, class V>
inline typename V::Floats int_minimum(const uint8_t* unit, int64_t block, int half) {
  if constexpr (L::kZeroPerLane) {
    const auto zero = V::subtract(V::splat_int(128), L::template zero<V>(unit));
    return V::multiply(L::template scale<V>(unit, block, half), V::to_floats(zero));
  } else {
    return L::template minimum<V>(unit, block, half);
  }
}

/// Codes of block `block` of a unit, looked up where the layout has a table.
template <class L, class V>
inline void unit_codes(const uint8_t* unit, int64_t block, typename V::Bytes (&codes)[8]) {
  load_codes<V, L::kBits>(unit + L::kHeader + block * (64 * L::kBits), codes);
  if constexpr (L::kTable) {
    const auto table = V::repeat16(L::table);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j)
      codes[j] = V::lookup(table, codes[j]);
  }
}

template <class L>
inline int64_t unit_blocks(const PanelMatrix& w) {
  return L::kUnitBlocks != 0 ? L::kUnitBlocks : w.unit_blocks;
}

}  // namespace
}  // namespace qw::kernels
