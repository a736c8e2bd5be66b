// Kernels with 8-bit activations for every quantised layout: gemv for few rows, expand and tile for
// many, and the decoder that serves f32 activations.
//
// Level 3 (kernels). Templates over vector type and layout, internal linkage. Both kernels compute
//   t = float(dot) * scale(w)   (both halves of a block: the second is added by multiply-add)
//   y += t * scale(x);  y += minimum(w) * (scale(x) * sum(x)), half by half
// block by block along k, so that an output element does not depend on which of them made it. The
// integers are exact, however they are split.
#pragma once

#include "kernels/cpu/linear_layouts.h"

namespace qw::kernels {
namespace {

// ---- sums in 16 bits ---------------------------------------------------------------------------

/// Whether a vector type adds products in pairs of 16 bits (Pairs, pair_products, add_pairs)
/// because it has no instruction that sums four products in 32 bits: then widening costs as much as
/// multiplying, and as many groups as fit are added before.
template <class V>
constexpr bool kSumsPairs = requires {
  requires V::kSumsPairs;
};

/// Whether a vector type multiplies wide values and activations as words of 16 bits, two of which
/// an instruction sums in 32: their bytes are signed and unsigned in no order that suits it.
template <class V, bool kWide>
constexpr bool kUsesWords = kWide&& requires {
  requires V::kWideWords;
};

/// Panels of a tile of integers.
template <class V, bool kWide>
constexpr int kIntPanels = [] {
  if constexpr (kUsesWords<V, kWide>) {
    return V::kWordPanels;
  } else {
    return V::kIntPanels;
  }
}();

template <class L>
constexpr int largest_code() {
  if (!L::kTable)
    return L::kLargestCode != 0 ? L::kLargestCode : ((1 << L::kBits) - 1) << L::kCodeTo;
  int largest = 0;
  for (int i = 0; i < 16; ++i)
    largest = L::table[i] > largest ? L::table[i] : largest;
  return largest;
}
/// |code - zero|. Where each lane has its own, the zero point is at most 2^bits: GPTQ's files hold
/// it less one.
template <class L>
constexpr int largest_value() {
  const int code = largest_code<L>(), zero = L::kZeroPerLane ? code + 1 : L::kZero;
  return code - zero > zero ? code - zero : zero;
}

/// What kWide promises of the others: codes are signed bytes too, and no sum of two products
/// exceeds 16 bits.
template <class L>
constexpr bool kIsNarrow = largest_code<L>() <= 127 && 2 * largest_value<L>() * 255 <= 32767;

/// How many groups of products of magnitudes up to `a` and `b` fit a sum of 16 bits, of `groups`.
constexpr int groups_in_16_bits(int a, int b, int groups) {
  while (groups > 1 && groups * 2 * a * b > 32767)
    groups /= 2;
  return groups;
}
template <class V, class L>
constexpr int kCodeRun =
    kSumsPairs<V> && !L::kWide ? groups_in_16_bits(largest_code<L>(), 127, 4) : 1;
/// 0: values so large that dot_values must be told.
template <class V, class L>
constexpr int kValueRun = L::kWide        ? 0
                          : kSumsPairs<V> ? groups_in_16_bits(largest_value<L>(),
                                                              127 + V::kTileOffset, 8 / L::kHalves)
                                          : 1;

// ---- gemv: few rows, codes used straight from the load ------------------------------------------

template <class V, class L, int kRows>
inline void gemv_block(const uint8_t* unit, int64_t block, const ActBlock* x, int64_t stride,
                       typename V::Floats (&sums)[kRows]) {
  static_assert(L::kWide || kIsNarrow<L>);
  typename V::Bytes codes[8];
  unit_codes<L, V>(unit, block, codes);
  constexpr int kBias = L::kWide && V::kSignedWide ? 128 : 0;
  typename V::Floats scales[L::kHalves];
#pragma GCC unroll 2
  for (int h = 0; h < L::kHalves; ++h)
    scales[h] = L::template scale<V>(unit, block, h);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const ActBlock& a = x[r * stride];
    typename V::Ints dots[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      // The zero point: -zero * sum(x), over this half, or over the block in the first half.
      const int32_t total = L::kHalves == 2 ? a.sum[h] : a.total;
      if (h >= L::kHalves) {
        dots[h] = V::zero_ints();
      } else if constexpr (kIntZeroPerLane<L>) {
        dots[h] = V::multiply(L::template zero<V>(unit), V::splat_int(-total));
      } else {
        dots[h] = V::splat_int((kBias - kIntZero<L>)*total);
      }
      if constexpr (kSumsPairs<V> && !L::kWide) {
        constexpr int kRun = kCodeRun<V, L>;
#pragma GCC unroll 4
        for (int j = 4 * h; j < 4 * h + 4; j += kRun) {
          auto pairs = V::pair_products(codes[j], V::group(a.codes, j));
#pragma GCC unroll 4
          for (int i = j + 1; i < j + kRun; ++i)
            pairs = V::add(pairs, V::pair_products(codes[i], V::group(a.codes, i)));
          dots[h] = V::add_pairs(dots[h], pairs);
        }
      } else {
#pragma GCC unroll 4
        for (int j = 4 * h; j < 4 * h + 4; ++j) {
          dots[h] = V::template dot_codes<L::kWide>(dots[h], codes[j], V::group(a.codes, j));
        }
      }
    }
    if constexpr (L::kHalves == 1) dots[0] = V::add(dots[0], dots[1]);
    auto product = V::multiply(V::to_floats(dots[0]), scales[0]);
    if constexpr (L::kHalves == 2)
      product = V::multiply_add(V::to_floats(dots[1]), scales[1], product);
    sums[r] = V::multiply_add(product, V::splat_float(a.scale), sums[r]);
    if constexpr (kIntMinimum<L>) {
#pragma GCC unroll 2
      for (int h = 0; h < L::kHalves; ++h) {
        const float scaled = L::kHalves == 2 ? a.scaled_sum[h] : a.scaled_total;
        sums[r] =
            V::multiply_add(int_minimum<L, V>(unit, block, h), V::splat_float(scaled), sums[r]);
      }
    }
  }
}

template <class V, class L, int kRows>
void gemv_rows(const GemvArgs& args) {
  const int64_t n_blocks = args.w.n_blocks, per_unit = unit_blocks<L>(args.w);
  const auto* x = static_cast<const ActBlock*>(args.x.rows);
  for (int64_t p = 0; p < args.n_panels; ++p) {
    const uint8_t* unit = args.w.data + (args.first_panel + p) * args.w.panel_bytes;
    typename V::Floats sums[kRows];
    for (int r = 0; r < kRows; ++r)
      sums[r] = V::zero_floats();
    for (int64_t done = 0; done < n_blocks; done += per_unit, unit += args.w.unit_bytes) {
      const int64_t end = n_blocks - done < per_unit ? n_blocks - done : per_unit;
      for (int64_t block = 0; block < end; ++block) {
        const uint8_t* ahead = unit + L::kHeader + block * (64 * L::kBits) + kPrefetchBytes;
#pragma GCC unroll 8
        for (int line = 0; line < L::kBits; ++line)
          __builtin_prefetch(ahead + 64 * line, 0, 2);
        gemv_block<V, L, kRows>(unit, block, x + done + block, args.x.stride, sums);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      V::store_floats(args.out + r * args.out_stride + kLanes * p, sums[r]);
    }
  }
}

/// Any number of rows, V::kGemvRows at a time.
template <class V, class L>
void gemv_int8(const GemvArgs& args) noexcept {
  GemvArgs pass = args;
  const auto take = [&](auto rows, int64_t n) {
    rows(pass);
    pass.x.rows = static_cast<const ActBlock*>(pass.x.rows) + n * args.x.stride;
    pass.out += n * args.out_stride;
    pass.x.m -= n;
  };
  constexpr int kRows = V::kGemvRows;
  while (pass.x.m >= kRows)
    take(gemv_rows<V, L, kRows>, kRows);
  if constexpr (kRows > 4) {
    if (pass.x.m >= 4) take(gemv_rows<V, L, 4>, 4);
  }
  if constexpr (kRows > 3) {
    if (pass.x.m == 3) take(gemv_rows<V, L, 3>, 3);
  }
  if constexpr (kRows > 2) {
    if (pass.x.m == 2) take(gemv_rows<V, L, 2>, 2);
  }
  if constexpr (kRows > 1) {
    if (pass.x.m == 1) take(gemv_rows<V, L, 1>, 1);
  }
}

// ---- expand: codes to signed values, once per tile ----------------------------------------------

template <class V, class L>
void expand_int8(const ExpandArgs& args) noexcept {
  constexpr int kPanels = kIntPanels<V, L::kWide>;
  const int64_t per_unit = unit_blocks<L>(args.w);
  for (int64_t b = 0; b < args.n_blocks; ++b) {
    const int64_t unit_index = (args.first_block + b) / per_unit,
                  block = (args.first_block + b) % per_unit;
    for (int64_t p = 0; p < kPanels - args.slot; ++p) {
      const int64_t slot = args.slot + p;
      constexpr int kSize = kUsesWords<V, L::kWide> ? 128 : 64;  // bytes of a group
      uint8_t* values = args.out->values + (b * 8 * kPanels + slot) * kSize;
      const int64_t out_lane = (b * kPanels + slot) * L::kHalves * kLanes;
      if (p >= args.n_panels) {
        for (int j = 0; j < 8; ++j) {
          for (int at = 0; at < kSize; at += 64)
            V::store(values + j * kPanels * kSize + at, V::splat(0));
        }
        for (int h = 0; h < L::kHalves; ++h) {
          V::store_floats(args.out->scales + out_lane + kLanes * h, V::zero_floats());
          V::store_floats(args.out->minimums + out_lane + kLanes * h, V::zero_floats());
          V::store_ints(args.out->start + out_lane + kLanes * h, V::zero_ints());
        }
        continue;
      }
      const uint8_t* unit = args.w.data + (args.first_panel + p) * args.w.panel_bytes +
                            unit_index * args.w.unit_bytes;
      typename V::Bytes codes[8], zero;
      unit_codes<L, V>(unit, block, codes);
      if constexpr (kIntZeroPerLane<L>) {
        zero = V::as_bytes(V::multiply(L::template zero<V>(unit), V::splat_int(0x01010101)));
      } else {
        zero = V::splat(kIntZero<L>);
      }
      typename V::Ints sums[2] = {V::zero_ints(), V::zero_ints()};
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        const auto value = V::subtract(codes[j], zero);
        if constexpr (kSize == 128) {
          V::store(values + j * kPanels * kSize, V::even_words(value));
          V::store(values + j * kPanels * kSize + 64, V::odd_words(value));
        } else {
          V::store(values + j * kPanels * kSize, value);
        }
        if constexpr (V::kTileOffset != 0) {
          const auto offset = V::splat(V::kTileOffset);
          sums[j / 4] = V::template dot_values<L::kWide>(sums[j / 4], offset, value);
        }
      }
      if constexpr (L::kHalves == 1) sums[0] = V::add(sums[0], sums[1]);
#pragma GCC unroll 2
      for (int h = 0; h < L::kHalves; ++h) {
        V::store_floats(args.out->scales + out_lane + kLanes * h,
                        L::template scale<V>(unit, block, h));
        if constexpr (kIntMinimum<L>) {
          V::store_floats(args.out->minimums + out_lane + kLanes * h,
                          int_minimum<L, V>(unit, block, h));
        }
        V::store_ints(args.out->start + out_lane + kLanes * h,
                      V::subtract(V::zero_ints(), sums[h]));
      }
    }
  }
}

// ---- tile: many rows against an expanded chunk --------------------------------------------------

/// dots[r][p] = start[p] + the products of kGroups groups of kRows rows with V::kPassPanels panels.
/// start: kStartStride between panels.
template <class V, int kGroups, int kStartStride, int kRun, int kRows>
inline void tile_dots(const int32_t* start, const uint8_t* values, const uint8_t* const (&x)[kRows],
                      typename V::Ints (&dots)[kRows][V::kPassPanels]) {
  constexpr int kPanels = V::kPassPanels;
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
    const auto first = V::load_ints(start + p * kStartStride);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
      dots[r][p] = first;
  }
#pragma GCC unroll 8
  for (int j = 0; j < kGroups; ++j) {
    typename V::Bytes group[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      group[p] = V::load(values + (j * kIntPanels<V, kRun == 0> + p) * 64);
      V::pin(group[p]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const auto a = V::group(x[r], j);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
        dots[r][p] = V::template dot_values<kRun == 0>(dots[r][p], a, group[p]);
    }
  }
}

/// The same with products added in 16 bits, kRun groups at a time: one panel, whose 6 rows of two
/// registers leave four of 16 for weights, activations and the ones that widen.
template <class V, int kGroups, int kRun, int kRows>
inline void tile_dots_of_pairs(const int32_t* start, const uint8_t* values,
                               const uint8_t* const (&x)[kRows],
                               typename V::Ints (&dots)[kRows][1]) {
  static_assert(V::kPassPanels == 1);
#pragma GCC unroll 8
  for (int first = 0; first < kGroups; first += kRun) {
    typename V::Pairs pairs[kRows];
#pragma GCC unroll 8
    for (int j = first; j < first + kRun; ++j) {
      const auto group = V::load(values + j * kIntPanels<V, false> * 64);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const auto products = V::pair_products(V::group(x[r], j), group);
        pairs[r] = j == first ? products : V::add(pairs[r], products);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
      dots[r][0] = V::add_pairs(first == 0 ? V::load_ints(start) : dots[r][0], pairs[r]);
  }
}

/// The same with words: even columns of a group and then odd ones; x as V::split_words leaves it.
template <class V, int kGroups, int kRows>
inline void tile_dots_of_words(const int32_t* start, const uint8_t* values,
                               const uint8_t* const (&x)[kRows],
                               typename V::Ints (&dots)[kRows][1]) {
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
    dots[r][0] = V::load_ints(start);
#pragma GCC unroll 16
  for (int i = 0; i < 2 * kGroups; ++i) {
    const auto words = V::load(values + (i / 2 * kIntPanels<V, true> * 2 + i % 2) * 64);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      dots[r][0] = V::dot_words(dots[r][0], V::splat4(x[r] + i % 2 * kBlock + i / 2 * 4), words);
    }
  }
}

/// One block of columns of kRows rows and V::kPassPanels panels, of which `first` is the first:
/// sums[r][p] += W . x. The integer sums of one half at a time and the sums over blocks stay in
/// registers where the instruction set has enough of them: with 6 rows and 2 panels, 12 + 12 of 32
/// beside 2 weights and 1 activation, so that 12 dot products cost 8 loads; two halves keep
/// products too, hence kHalvesPassRows. words: the codes of the rows as words, 2 * kChunk bytes
/// apart, where kUsesWords.
template <class V, int kHalves, bool kMinimum, int kRun, int kRows>
inline void tile_block(const ExpandedChunk& w, int64_t b, int first, const ActBlock* x,
                       const uint8_t* words, typename V::Floats (&sums)[kRows][V::kPassPanels]) {
  constexpr int kPanels = V::kPassPanels, kGroups = 8 / kHalves;
  constexpr int kTilePanels = kIntPanels<V, kRun == 0>;
  const int64_t lane = (b * kTilePanels + first) * kHalves * kLanes;
  typename V::Floats products[kRows][kPanels];
#pragma GCC unroll 2
  for (int h = 0; h < kHalves; ++h) {
    typename V::Ints dots[kRows][kPanels];
    const int32_t* start = w.start + lane + h * kLanes;
    constexpr bool kWords = kUsesWords<V, kRun == 0>;
    const uint8_t* values =
        w.values + ((b * 8 + h * kGroups) * kTilePanels + first) * (kWords ? 128 : 64);
    const uint8_t* codes[kRows];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
      codes[r] = (kWords ? words + r * 2 * kChunk : x[r].codes) + 4 * h * kGroups;
    if constexpr (kWords) {
      tile_dots_of_words<V, kGroups>(start, values, codes, dots);
    } else if constexpr (kSumsPairs<V> && kRun > 0) {
      tile_dots_of_pairs<V, kGroups, kRun>(start, values, codes, dots);
    } else {
      tile_dots<V, kGroups, kHalves * kLanes, kRun>(start, values, codes, dots);
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const auto scale = V::load_floats(w.scales + lane + (p * kHalves + h) * kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const auto dot = V::to_floats(dots[r][p]);
        products[r][p] =
            h == 0 ? V::multiply(dot, scale) : V::multiply_add(dot, scale, products[r][p]);
      }
    }
  }
  // The order per element is that of gemv_block.
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
    const float* minimums = w.minimums + lane + p * kHalves * kLanes;
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      auto sum = V::multiply_add(products[r][p], V::splat_float(x[r].scale), sums[r][p]);
      if constexpr (kMinimum && kHalves == 1) {
        sum = V::multiply_add(V::load_floats(minimums), V::splat_float(x[r].scaled_total), sum);
      } else if constexpr (kMinimum) {
        sum = V::multiply_add(V::load_floats(minimums), V::splat_float(x[r].scaled_sum[0]), sum);
        sum = V::multiply_add(V::load_floats(minimums + kLanes), V::splat_float(x[r].scaled_sum[1]),
                              sum);
      }
      sums[r][p] = sum;
    }
  }
}

/// All blocks of a chunk for kRows rows of a group, a pass of panels at a time: the group's
/// activations come from L1 from the second pass on.
template <class V, int kHalves, bool kMinimum, int kRun, int kRows>
void tile_rows(const TileArgs& args, const ActBlock* x, float* out) {
  constexpr int kPanels = V::kPassPanels, kTilePanels = kIntPanels<V, kRun == 0>;
  const int64_t n_blocks = (args.n_columns + kBlock - 1) / kBlock;
  constexpr bool kWords = kUsesWords<V, kRun == 0>;
  alignas(64) uint8_t words[kWords ? kRows * 2 * kChunk : 1];
  if constexpr (kWords) {
    for (int64_t b = 0; b < n_blocks; ++b) {
      for (int r = 0; r < kRows; ++r)
        V::split_words(x[b * kTileRows + r].codes, words + r * 2 * kChunk + b * 2 * kBlock);
    }
  }
  for (int first = 0; first < kTilePanels; first += kPanels) {
    typename V::Floats sums[kRows][kPanels];
    const auto at = [&](int r, int p) { return out + (r * kTilePanels + first + p) * kLanes; };
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
        sums[r][p] = args.first ? V::zero_floats() : V::load_floats(at(r, p));
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
      tile_block<V, kHalves, kMinimum, kRun, kRows>(*args.w, b, first, x + b * kTileRows,
                                                    words + (kWords ? b * 2 * kBlock : 0), sums);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
        V::store_floats(at(r, p), sums[r][p]);
    }
  }
}

template <class V, int kHalves, bool kMinimum, int kRun>
void tile_int8(const TileArgs& args) noexcept {
  constexpr int64_t kRowSums = kIntPanels<V, kRun == 0> * kLanes;
  constexpr int kPass = kHalves == 2 ? V::kHalvesPassRows : V::kPassRows;
  const auto* group =
      static_cast<const ActBlock*>(args.x.rows) + args.first_column / kBlock * kTileRows;
  for (int64_t first = 0; first < args.x.m; first += kTileRows, group += args.x.stride) {
    const int64_t rows = args.x.m - first < kTileRows ? args.x.m - first : kTileRows;
    float* sums = args.sums + first * kRowSums;
    int64_t r = 0;
    const auto run = [&](auto tile, int64_t step) {
      tile(args, group + r, sums + r * kRowSums);
      r += step;
    };
    while (rows - r >= kPass)  // NOLINT(bugprone-infinite-loop): run() adds to r
      run(tile_rows<V, kHalves, kMinimum, kRun, kPass>, kPass);
    if constexpr (kPass > 4) {
      if (rows - r >= 4) run(tile_rows<V, kHalves, kMinimum, kRun, 4>, 4);
    }
    if constexpr (kPass > 2) {
      if (rows - r >= 2) run(tile_rows<V, kHalves, kMinimum, kRun, 2>, 2);
    }
    if (rows - r >= 1) run(tile_rows<V, kHalves, kMinimum, kRun, 1>, 1);
  }
}

// ---- decode: values in f32 ----------------------------------------------------------------------

template <class V, class L, int kByte>
inline void decode_column(const typename V::Bytes& codes, const typename V::Ints& zero,
                          const uint8_t* unit, int64_t block, int half, float* out) {
  const auto code = V::subtract(V::template byte_of_lane<kByte>(codes), zero);
  auto value = V::multiply(L::template scale<V>(unit, block, half), V::to_floats(code));
  if constexpr (L::kMinimum) value = V::add(value, L::template minimum<V>(unit, block, half));
  V::store_floats(out, value);
}

/// Columns of one block of one panel, `stride` floats apart.
template <class V, class L>
inline void decode_block(const uint8_t* unit, int64_t block, float* out, int64_t stride) {
  typename V::Bytes codes[8];
  unit_codes<L, V>(unit, block, codes);
  typename V::Ints zero;
  if constexpr (L::kZeroPerLane) {
    zero = L::template zero<V>(unit);
  } else {
    zero = V::splat_int(L::kZero);
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    const int half = L::kHalves == 2 ? j / 4 : 0;
    float* column = out + 4 * j * stride;
    decode_column<V, L, 0>(codes[j], zero, unit, block, half, column);
    decode_column<V, L, 1>(codes[j], zero, unit, block, half, column + stride);
    decode_column<V, L, 2>(codes[j], zero, unit, block, half, column + 2 * stride);
    decode_column<V, L, 3>(codes[j], zero, unit, block, half, column + 3 * stride);
  }
}

template <class V, class L>
void decode_quantised(const DecodeArgs& args) noexcept {
  const int64_t per_unit = unit_blocks<L>(args.w);
  const uint8_t* panel = args.w.data + args.panel * args.w.panel_bytes;
  for (int64_t b = 0; b < args.n_blocks; ++b) {
    const int64_t index = args.first_block + b;
    decode_block<V, L>(panel + index / per_unit * args.w.unit_bytes, index % per_unit,
                       args.out + b * kBlock * kLanes, kLanes);
  }
}

/// Expands to f32, for tiles that take their activations as they are.
template <class V, class L>
void expand_f32(const ExpandArgs& args) noexcept {
  constexpr int kPanels = V::kTilePanels;
  const int64_t per_unit = unit_blocks<L>(args.w);
  auto* out = reinterpret_cast<float*>(args.out->values);
  for (int64_t b = 0; b < args.n_blocks; ++b) {
    const int64_t index = args.first_block + b;
    for (int64_t p = 0; p < kPanels - args.slot; ++p) {
      float* columns = out + (b * kBlock * kPanels + args.slot + p) * kLanes;
      if (p >= args.n_panels) {
        for (int c = 0; c < kBlock; ++c)
          V::store_floats(columns + c * kPanels * kLanes, V::zero_floats());
        continue;
      }
      const uint8_t* panel = args.w.data + (args.first_panel + p) * args.w.panel_bytes;
      decode_block<V, L>(panel + index / per_unit * args.w.unit_bytes, index % per_unit, columns,
                         kPanels * kLanes);
    }
  }
}

// ---- rounding activations -----------------------------------------------------------------------

/// Blocks that a vector type rounds together (round_blocks); 0: one at a time, as below.
template <class V>
constexpr int kRoundBlocks = [] {
  if constexpr (requires { V::kRoundBlocks; }) {
    return V::kRoundBlocks;
  } else {
    return 0;
  }
}();

template <class V>
void quantize_row(const QuantizeArgs& args) noexcept {
  int64_t begin = 0;
  if constexpr (kRoundBlocks<V> != 0) {
    constexpr int64_t kStep = kRoundBlocks<V> * kBlock;
    for (; begin + kStep <= args.k; begin += kStep) {
      V::round_blocks(args.x + begin, args.for_tile ? V::kTileOffset : 0,
                      args.out + begin / kBlock * args.block_stride, args.block_stride);
    }
  }
  for (; begin < args.k; begin += kBlock) {
    ActBlock& out = args.out[begin / kBlock * args.block_stride];
    const float* x = args.x + begin;
    float padded[kBlock];
    if (args.k - begin < kBlock) {
      for (int i = 0; i < kBlock; ++i)
        padded[i] = begin + i < args.k ? x[i] : 0.0F;
      x = padded;
    }
    const auto low = V::load_floats(x), high = V::load_floats(x + kLanes);
    const int32_t bits = V::largest_bits(low, high);
    float largest;
    __builtin_memcpy(&largest, &bits, 4);
    // Below 2^-100 the reciprocal would leave the range of f32: such a block counts as zero. A
    // value that is not finite must not vanish: it makes the scale NaN.
    const bool finite = bits < 0x7F800000, tiny = !(largest >= 0x1p-100F);
    const float inverse = finite && !tiny ? 127.0F / largest : 0.0F;
    out.scale = !finite ? __builtin_nanf("") : tiny ? 0.0F : largest / 127.0F;
    auto first = V::zero_ints(), second = V::zero_ints();
    if (finite) {
      first = V::nearest(V::multiply(low, V::splat_float(inverse)));
      second = V::nearest(V::multiply(high, V::splat_float(inverse)));
    }
    out.sum[0] = V::sum(first);
    out.sum[1] = V::sum(second);
    out.total = out.sum[0] + out.sum[1];
    out.scaled_sum[0] = out.scale * static_cast<float>(out.sum[0]);
    out.scaled_sum[1] = out.scale * static_cast<float>(out.sum[1]);
    out.scaled_total = out.scale * static_cast<float>(out.total);
    out.unused = 0;
    const int32_t offset = args.for_tile ? V::kTileOffset : 0;
    V::store_low_bytes(out.codes, V::add(first, V::splat_int(offset)));
    V::store_low_bytes(out.codes + kLanes, V::add(second, V::splat_int(offset)));
  }
}

}  // namespace
}  // namespace qw::kernels
