// The layouts of quantised weights: how a panel of 16 output rows lies in memory, and what it
// means.
//
// Level 3 (kernels). Templates over the vector type of simd_*.h, internal linkage.
//
// A panel is a row of units; a unit is a header (scales of its blocks, one value per lane) and then
// 64 * bits bytes of codes for each block of 32 columns. A vector of 64 bytes holds four
// consecutive columns for each of 16 lanes: column 4j + i of a block is byte i of every lane in
// "group" j, so that broadcasting four activations feeds one integer dot product. Eight groups of
// codes lie in as many vectors P0, P1, ... as a code has bits; fields of a byte, lowest first:
//   1 bit:  groups 0 .. 7                     2 bits: P0 groups 0 .. 3, P1 groups 4 .. 7
//   4 bits: Pv groups v, v + 4                8 bits: Pv group v
//   3 bits: Pv groups v, v + 3, then two bits: P0 and P1 the low ones of groups 6 and 7, P2 the
//           third bit of each
//   5 bits: Pv group v, then three bits: P0, P1, P2 the low ones of groups 5, 6, 7; P3 and P4 the
//           upper two of groups 5 and 6, and the fourth and fifth bit of group 7
//   6 bits: Pv group v, then two bits: P0 to P2 those of group 6, P3 to P5 those of group 7
// A whole code per field costs a shift and a mask; only what is left over is put together.
// A layout says:  value = scale(unit, block, half) * (code - zero) + minimum(unit, block, half).
#pragma once

#include "kernels/linear_kernel.h"

namespace qw::kernels {
namespace {

/// Bits of every byte moved up by kBy (down by -kBy); those that `mask` has.
template <class V, int kBy>
inline typename V::Bytes field(typename V::Bytes bytes, typename V::Bytes mask) {
  if constexpr (kBy > 0) {
    return V::bit_and(V::template shift_left<kBy>(bytes), mask);
  } else if constexpr (kBy < 0) {
    return V::bit_and(V::template shift_right<-kBy>(bytes), mask);
  } else {
    return V::bit_and(bytes, mask);
  }
}

/// Codes of 1, 2 or 4 bits: whole fields. They come out moved up by kTo bits.
template <class V, int kBits, int kTo>
inline void load_even_fields(const uint8_t* p, typename V::Bytes (&codes)[8]) {
  const auto mask = V::splat(((1 << kBits) - 1) << kTo);
#pragma GCC unroll 4
  for (int v = 0; v < kBits; ++v) {
    const auto plane = V::load(p + 64 * v);
    if constexpr (kBits == 4) {
      codes[v] = field<V, kTo>(plane, mask);
      codes[v + 4] = field<V, kTo - 4>(plane, mask);
    } else if constexpr (kBits == 2) {
      codes[4 * v] = field<V, kTo>(plane, mask);
      codes[4 * v + 1] = field<V, kTo - 2>(plane, mask);
      codes[4 * v + 2] = field<V, kTo - 4>(plane, mask);
      codes[4 * v + 3] = field<V, kTo - 6>(plane, mask);
    } else {
      codes[0] = field<V, kTo>(plane, mask);
      codes[1] = field<V, kTo - 1>(plane, mask);
      codes[2] = field<V, kTo - 2>(plane, mask);
      codes[3] = field<V, kTo - 3>(plane, mask);
      codes[4] = field<V, kTo - 4>(plane, mask);
      codes[5] = field<V, kTo - 5>(plane, mask);
      codes[6] = field<V, kTo - 6>(plane, mask);
      codes[7] = field<V, kTo - 7>(plane, mask);
    }
  }
}

/// Codes of 3, 5 or 6 bits: a field per vector, and groups made of what is left.
template <class V, int kBits>
inline void load_odd_fields(const uint8_t* p, typename V::Bytes (&codes)[8]) {
  typename V::Bytes plane[kBits];
  const auto mask = V::splat((1 << kBits) - 1);
#pragma GCC unroll 6
  for (int v = 0; v < kBits; ++v) {
    plane[v] = V::load(p + 64 * v);
    codes[v] = V::bit_and(plane[v], mask);
    if constexpr (kBits == 3) codes[v + 3] = field<V, -3>(plane[v], mask);
  }
  if constexpr (kBits == 3) {
    const auto low = V::splat(3), third = V::splat(4);
    codes[6] = V::bit_or(field<V, -6>(plane[0], low), field<V, -4>(plane[2], third));
    codes[7] = V::bit_or(field<V, -6>(plane[1], low), field<V, -5>(plane[2], third));
  } else if constexpr (kBits == 5) {
    const auto low = V::splat(7), high = V::splat(24);
    codes[5] = V::bit_or(field<V, -5>(plane[0], low), field<V, -2>(plane[3], high));
    codes[6] = V::bit_or(field<V, -5>(plane[1], low), field<V, -2>(plane[4], high));
    codes[7] = V::bit_or(
        field<V, -5>(plane[2], low),
        V::bit_or(field<V, -4>(plane[3], V::splat(8)), field<V, -3>(plane[4], V::splat(16))));
  } else {
    const auto low = V::splat(3), middle = V::splat(12), high = V::splat(48);
#pragma GCC unroll 2
    for (int g = 0; g < 2; ++g) {
      codes[6 + g] = V::bit_or(
          field<V, -6>(plane[3 * g], low),
          V::bit_or(field<V, -4>(plane[3 * g + 1], middle), field<V, -2>(plane[3 * g + 2], high)));
    }
  }
}

/// Codes of one block, group by group, moved up by kTo bits.
template <class V, int kBits, int kTo>
inline void load_codes(const uint8_t* p, typename V::Bytes (&codes)[8]) {
  static_assert(kTo == 0 || kBits <= 4);
  if constexpr (kBits == 8) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j)
      codes[j] = V::load(p + 64 * j);
  } else if constexpr (kBits == 3 || kBits > 4) {
    load_odd_fields<V, kBits>(p, codes);
  } else {
    load_even_fields<V, kBits, kTo>(p, codes);
  }
}

/// 16 floats of a header.
template <class V>
inline typename V::Floats header_f32(const uint8_t* p) {
  return V::bits_to_floats(V::as_ints(V::load(p)));
}

/// -x, of zeros too: a + negative(b) has the bits of a - b.
template <class V>
inline typename V::Floats negative(typename V::Floats x) {
  return V::subtract(V::splat_float(-0.0F), x);
}

/// Of 16 words of a header, those bits of nibble `index` that `mask` has.
template <class V>
inline typename V::Ints header_nibble(const uint8_t* words, int64_t index, int32_t mask) {
  const auto down = V::shift_right(V::as_ints(V::load(words)), static_cast<int>(4 * index));
  return V::as_ints(V::bit_and(V::as_bytes(down), V::as_bytes(V::splat_int(mask))));
}

/// What most layouts share.
struct LayoutBase {
  static constexpr int kHalves = 1;            // scales per block of 32 columns
  static constexpr int kZero = 0;              // subtracted from every code
  static constexpr bool kZeroPerLane = false;  // ... or zero(unit) is
  static constexpr bool kMinimum = false;      // minimum() is added to every value
  static constexpr bool kWide = false;         // the code may exceed 127, or |code - zero| 64
  static constexpr int kCodeTo = 0;          // the code is the stored one moved up by so many bits
  static constexpr int kLargestCode = 0;     // where its bits could hold more
  static constexpr bool kSharedBit = false;  // ... and bit 1 of it is added by add_shared_bit()
  static constexpr bool kTable = false;      // stored codes index `table`, which gives the code
  static constexpr const uint8_t* table = nullptr;
};

/// kQ4_0, kQ5_0, kQ8_0 (codes are q + 128), kQ2_0 and the table types: a unit has two f16 scales,
/// of kRun blocks each.
template <int kCodeBits, int kCodeZero, int kRun = 1>
struct ScaledPairs : LayoutBase {
  static constexpr int kBits = kCodeBits, kUnitBlocks = 2 * kRun, kHeader = 64, kZero = kCodeZero;
  static constexpr bool kWide = kCodeBits == 8;
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t block, int) {
    return V::widen_f16(unit + 32 * (block / kRun));
  }
};
using LayoutQ4_0 = ScaledPairs<4, 8>;
using LayoutQ5_0 = ScaledPairs<5, 16>;
using LayoutQ8_0 = ScaledPairs<8, 128>;
using LayoutQ2_0 = ScaledPairs<2, 1, 2>;

/// d or -d: the bit is twice itself, minus 1.
struct LayoutQ1_0 : ScaledPairs<1, 1, 4> {
  static constexpr int kCodeTo = 1;
};

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
  /// 2^(e - 128) as bits of f32: (e - 1) << 23, but (e + 1) << 21 where it is subnormal, for e of 0
  /// and 1: the larger of the two as signed integers.
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t block, int) {
    const auto e = V::widen_u8(unit + 16 * block);
    const auto normal = V::subtract(V::template shift_left<23>(e), V::splat_int(1 << 23));
    const auto subnormal = V::add(V::template shift_left<21>(e), V::splat_int(1 << 21));
    return V::bits_to_floats(V::maximum(normal, subnormal));
  }
};

/// Two blocks to a unit; a UE4M3 scale of seven bits per 16 columns, of which the value is half:
/// (8 + m) * 2^(e - 11), or m * 2^-10 for e = 0, which f32 has with the same bits 119 binades
/// lower.
struct LayoutNvfp4 : LayoutBase {
  static constexpr int kBits = 4, kUnitBlocks = 2, kHeader = 64, kHalves = 2, kZero = 12;
  static constexpr bool kTable = true;
  static constexpr const uint8_t* table = kE2m1Table;
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t block, int half) {
    const auto bits = V::template shift_left<20>(V::widen_u8(unit + 16 * (2 * block + half)));
    return V::multiply(V::bits_to_floats(bits), V::splat_float(0x1p119F));
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
    return negative<V>(positive);
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
    return V::multiply(header_f32<V>(unit),
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
    return negative<V>(positive);
  }

 private:
  template <class V, int kShift>
  static typename V::Ints nibble(const uint8_t* unit, int64_t sub) {
    const auto bytes = V::as_bytes(V::widen_u8(unit + 64 + 16 * sub));
    return V::as_ints(V::bit_and(V::template shift_right<kShift>(bytes), V::splat(15)));
  }
};

/// One f32 scale for 256 columns: kTernary (TQ1_0, TQ2_0), kQ8_K (codes are q + 128).
template <int kCodeBits, int kCodeZero>
struct SuperPlain : LayoutBase {
  static constexpr int kBits = kCodeBits, kUnitBlocks = 8, kHeader = 64, kZero = kCodeZero;
  static constexpr bool kWide = kCodeBits == 8;
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t, int) {
    return header_f32<V>(unit);
  }
};
using LayoutTernary = SuperPlain<2, 1>;
using LayoutQ8_K = SuperPlain<8, 128>;

/// The codebook types. Points of the grids are looked up when a matrix is packed; what is kept is a
/// code per column. f32 d, which holds the power of two of the type, and a nibble s per block or
/// per half, eight to a word:
///   value = (d * (2 s + 1)) * (code - zero)
/// These products are exact in f32 (11, 5 and 6 bits), so that it does not matter that the
/// references multiply in other orders.
template <int kCodeBits, int kCodeZero, int kScales, int kScaleMask>
struct OddScales : LayoutBase {
  static constexpr int kBits = kCodeBits, kUnitBlocks = 8, kHeader = 64 + 64 * kScales,
                       kHalves = kScales, kZero = kCodeZero;
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t block, int half) {
    const auto d = header_f32<V>(unit);
    const auto s = header_nibble<V>(unit + 64 + 64 * half, block, kScaleMask);
    return V::multiply_add(V::to_floats(s), V::add(d, d), d);
  }
};

/// Magnitudes of the grids by index, and above them the same with a minus sign, all moved up.
alignas(16) constexpr uint8_t kIq2Table[16] = {51, 68, 86, 43, 35, 18, 0, 43};
alignas(16) constexpr uint8_t kIq3Table[16] = {66, 74, 82, 90, 98, 106, 114, 124,
                                               58, 50, 42, 34, 26, 18,  10,  0};

/// kIq2Xxs (a scale per 32 columns) and kIq2Xs (per 16): sign and index of 8, 25, 43.
template <int kScales>
struct LayoutIq2 : OddScales<3, 43, kScales, 15> {
  static constexpr bool kTable = true;
  static constexpr const uint8_t* table = kIq2Table;
};

/// Sign and index of 4, 12, ... 52, 62.
struct LayoutIq3Xxs : OddScales<4, 62, 1, 15> {
  static constexpr bool kTable = true;
  static constexpr const uint8_t* table = kIq3Table;
};

/// -15, -13, ... 15 are twice a code of four bits, minus 15.
struct LayoutIq3S : OddScales<4, 15, 1, 15> {
  static constexpr int kCodeTo = 1;
};

/// -1, 0, 1 with a shift of -1/8 or 1/8, in eighths: 8 (stored code - 1) + 2 (shift bit) - 1.
/// kIq1S: a shift per block, in the fourth bit of its scale. kIq1M: a scale per half, a shift per
/// eight columns in words of their own.
template <int kScales>
struct LayoutIq1 : OddScales<2, 9, kScales, 7> {
  static constexpr bool kPerGroup = kScales == 2;
  static constexpr int kCodeTo = 3, kLargestCode = 18, kHeader = kPerGroup ? 256 : 128;
  static constexpr bool kSharedBit = true;
  template <class V>
  static void add_shared_bit(const uint8_t* unit, int64_t block, typename V::Bytes (&codes)[8]) {
    const auto bits =
        V::repeat_low_byte(header_nibble<V>(unit + (kPerGroup ? 192 : 64), block, 15));
    const auto two = V::splat(2);
    if constexpr (kPerGroup) {
      add<V>(field<V, 1>(bits, two), codes[0], codes[1]);
      add<V>(field<V, 0>(bits, two), codes[2], codes[3]);
      add<V>(field<V, -1>(bits, two), codes[4], codes[5]);
      add<V>(field<V, -2>(bits, two), codes[6], codes[7]);
    } else {
      const auto shift = field<V, -2>(bits, two);
#pragma GCC unroll 4
      for (int j = 0; j < 8; j += 2)
        add<V>(shift, codes[j], codes[j + 1]);
    }
  }

 private:
  template <class V>
  static void add(typename V::Bytes bit, typename V::Bytes& first, typename V::Bytes& second) {
    first = V::bit_or(first, bit);
    second = V::bit_or(second, bit);
  }
};

/// f32 d; s8 scale per block.
struct LayoutIq4Xs : LayoutBase {
  static constexpr int kBits = 4, kUnitBlocks = 8, kHeader = 192, kZero = 128;
  static constexpr bool kWide = true, kTable = true;
  static constexpr const uint8_t* table = kIq4Table;
  template <class V>
  static typename V::Floats scale(const uint8_t* unit, int64_t block, int) {
    return V::multiply(header_f32<V>(unit), V::to_floats(V::widen_s8(unit + 64 + 16 * block)));
  }
};

/// GPTQ and AWQ: a unit is one group; f16 scale, u16 zero.  value = scale * (code - zero)
template <int kCodeBits>
struct Group : LayoutBase {
  static constexpr int kBits = kCodeBits, kHeader = 64;
  static constexpr int kUnitBlocks = 0;  // PanelMatrix::unit_blocks says it
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

/// Codes of block `block` of a unit.
template <class L, class V>
inline void unit_codes(const uint8_t* unit, int64_t block, typename V::Bytes (&codes)[8]) {
  load_codes<V, L::kBits, L::kCodeTo>(unit + L::kHeader + block * (64 * L::kBits), codes);
  if constexpr (L::kSharedBit) L::template add_shared_bit<V>(unit, block, codes);
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

// ---- all of them --------------------------------------------------------------------------------

template <LinearLayout kEnumerator, class L>
struct NamedLayout {
  static constexpr LinearLayout kName = kEnumerator;
  using Layout = L;
};
template <class... Named>
struct LayoutList {};

/// Every quantised layout: the registry's rows and the packer's sizes are made from this list.
using QuantisedLayouts = LayoutList<
    NamedLayout<LinearLayout::kQ4_0, LayoutQ4_0>, NamedLayout<LinearLayout::kQ4_1, LayoutQ4_1>,
    NamedLayout<LinearLayout::kQ5_0, LayoutQ5_0>, NamedLayout<LinearLayout::kQ5_1, LayoutQ5_1>,
    NamedLayout<LinearLayout::kQ8_0, LayoutQ8_0>, NamedLayout<LinearLayout::kQ2_K, LayoutQ2_K>,
    NamedLayout<LinearLayout::kQ3_K, LayoutQ3_K>, NamedLayout<LinearLayout::kQ4_K, LayoutQ4_K>,
    NamedLayout<LinearLayout::kQ5_K, LayoutQ5_K>, NamedLayout<LinearLayout::kQ6_K, LayoutQ6_K>,
    NamedLayout<LinearLayout::kQ8_K, LayoutQ8_K>, NamedLayout<LinearLayout::kIq1S, LayoutIq1<1>>,
    NamedLayout<LinearLayout::kIq1M, LayoutIq1<2>>,
    NamedLayout<LinearLayout::kIq2Xxs, LayoutIq2<1>>,
    NamedLayout<LinearLayout::kIq2Xs, LayoutIq2<2>>,
    NamedLayout<LinearLayout::kIq3Xxs, LayoutIq3Xxs>, NamedLayout<LinearLayout::kIq3S, LayoutIq3S>,
    NamedLayout<LinearLayout::kIq4Nl, LayoutIq4Nl>, NamedLayout<LinearLayout::kIq4Xs, LayoutIq4Xs>,
    NamedLayout<LinearLayout::kTernary, LayoutTernary>,
    NamedLayout<LinearLayout::kMxfp4, LayoutMxfp4>, NamedLayout<LinearLayout::kNvfp4, LayoutNvfp4>,
    NamedLayout<LinearLayout::kQ1_0, LayoutQ1_0>, NamedLayout<LinearLayout::kQ2_0, LayoutQ2_0>,
    NamedLayout<LinearLayout::kGroup2, Group<2>>, NamedLayout<LinearLayout::kGroup3, Group<3>>,
    NamedLayout<LinearLayout::kGroup4, Group<4>>, NamedLayout<LinearLayout::kGroup8, Group<8>>,
    NamedLayout<LinearLayout::kGroup4Offset, LayoutGroup4Offset>>;

}  // namespace
}  // namespace qw::kernels
