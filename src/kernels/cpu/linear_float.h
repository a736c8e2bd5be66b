// Kernels with f32 or bf16 activations: dense weights directly, anything else through expand_f32;
// and what stores the results of all kernels.
//
// Level 3 (kernels). Templates over the vector type, internal linkage. Every output element is one
// chain of fused multiply-adds along k (of bf16 pairs with vdpbf16ps), in gemv and tile alike.
#pragma once

#include "kernels/linear_kernel.h"

namespace qw::kernels {
namespace {

// Dense layouts: how vectors of 16 lanes follow each other along k. Rows of kPair hold columns 2c
// and 2c + 1 of a lane in one word.
struct DenseF32 {
  static constexpr int kBytes = 64;  // of one column
  template <class V>
  static void columns(const uint8_t* p, typename V::Floats& even, typename V::Floats& odd) {
    even = V::bits_to_floats(V::as_ints(V::load(p)));
    odd = V::bits_to_floats(V::as_ints(V::load(p + 64)));
  }
};
struct DenseF16 {
  static constexpr int kBytes = 32;
  template <class V>
  static void columns(const uint8_t* p, typename V::Floats& even, typename V::Floats& odd) {
    even = V::widen_f16(p);
    odd = V::widen_f16(p + 32);
  }
};
struct DenseBf16 {
  static constexpr int kBytes = 32;
  template <class V>
  static void columns(const uint8_t* p, typename V::Floats& even, typename V::Floats& odd) {
    const auto pairs = V::load(p);
    even = V::bf16_even(pairs);
    odd = V::bf16_odd(pairs);
  }
};

/// Columns are stored in pairs up to an even count, so only x ends at k.
template <class V, class D, int kRows, int kPanels>
void gemv_float_rows(const GemvArgs& args, int64_t first) {
  const auto* x = static_cast<const float*>(args.x.rows);
  const uint8_t* w[kPanels];
  typename V::Floats sums[kRows][kPanels];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
    w[p] = args.w.data + (args.first_panel + first + p) * args.w.panel_bytes;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      sums[r][p] = V::zero_floats();
  }
  int64_t c = 0;
  for (; c + 2 <= args.w.k; c += 2) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      typename V::Floats even, odd;
      D::template columns<V>(w[p] + c * D::kBytes, even, odd);
      __builtin_prefetch(w[p] + c * D::kBytes + kPrefetchBytes, 0, 2);
      if constexpr (D::kBytes == 64)
        __builtin_prefetch(w[p] + c * D::kBytes + kPrefetchBytes + 64, 0, 2);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const float* row = x + r * args.x.stride + c;
        sums[r][p] = V::multiply_add(even, V::splat_float(row[0]), sums[r][p]);
        sums[r][p] = V::multiply_add(odd, V::splat_float(row[1]), sums[r][p]);
      }
    }
  }
  for (int p = 0; p < kPanels; ++p) {
    typename V::Floats even = V::zero_floats(), odd = even;
    if (c < args.w.k) D::template columns<V>(w[p] + c * D::kBytes, even, odd);
    for (int r = 0; r < kRows; ++r) {
      if (c < args.w.k) {
        sums[r][p] = V::multiply_add(even, V::splat_float(x[r * args.x.stride + c]), sums[r][p]);
      }
      V::store_floats(args.out + r * args.out_stride + kLanes * (first + p), sums[r][p]);
    }
  }
}

#ifdef __AVX512BF16__
template <class V, int kRows, int kPanels>
void gemv_bf16_rows(const GemvArgs& args, int64_t first) {
  const auto* x = static_cast<const uint8_t*>(args.x.rows);
  const uint8_t* w[kPanels];
  typename V::Floats sums[kRows][kPanels];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
    w[p] = args.w.data + (args.first_panel + first + p) * args.w.panel_bytes;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      sums[r][p] = V::zero_floats();
  }
  const int64_t n_pairs = (args.w.k + 1) / 2;
  for (int64_t c = 0; c < n_pairs; ++c) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const auto pairs = V::load(w[p] + 64 * c);
      __builtin_prefetch(w[p] + 64 * c + kPrefetchBytes, 0, 2);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        sums[r][p] = V::dot_bf16(sums[r][p], pairs, V::splat4(x + 4 * (r * args.x.stride + c)));
      }
    }
  }
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) {
      V::store_floats(args.out + r * args.out_stride + kLanes * (first + p), sums[r][p]);
    }
  }
}
#endif

template <class V, class D, bool kBf16, int kRows, int kPanels>
inline void gemv_dense_rows(const GemvArgs& args, int64_t first) {
#ifdef __AVX512BF16__
  if constexpr (kBf16) return gemv_bf16_rows<V, kRows, kPanels>(args, first);
#endif
  if constexpr (!kBf16) gemv_float_rows<V, D, kRows, kPanels>(args, first);
}

/// Several panels at once: one chain of additions per panel and row would wait for itself.
template <class V, class D, bool kBf16, int kRows>
inline void gemv_dense_all(const GemvArgs& args) {
  constexpr int kPanels = V::kTilePanels >= 4 ? 4 : kRows == 1 ? 4 : 2;
  int64_t p = 0;
  for (; p + kPanels <= args.n_panels; p += kPanels)
    gemv_dense_rows<V, D, kBf16, kRows, kPanels>(args, p);
  for (; p < args.n_panels; ++p)
    gemv_dense_rows<V, D, kBf16, kRows, 1>(args, p);
}

constexpr int kGemvFloatRows = 4;  // so many keep their sums in registers

/// Any number of rows, kGemvFloatRows at a time.
template <class V, class D, bool kBf16>
void gemv_dense(const GemvArgs& args) noexcept {
  GemvArgs pass = args;
  const auto take = [&](auto rows, int64_t n) {
    rows(pass);
    pass.x.rows = static_cast<const float*>(pass.x.rows) + n * args.x.stride;  // or bf16 pairs
    pass.out += n * args.out_stride;
    pass.x.m -= n;
  };
  while (pass.x.m >= kGemvFloatRows)
    take(gemv_dense_all<V, D, kBf16, kGemvFloatRows>, kGemvFloatRows);
  if (pass.x.m == 3) take(gemv_dense_all<V, D, kBf16, 3>, 3);
  if (pass.x.m == 2) take(gemv_dense_all<V, D, kBf16, 2>, 2);
  if (pass.x.m == 1) take(gemv_dense_all<V, D, kBf16, 1>, 1);
}

template <class V, class D>
void decode_dense(const DecodeArgs& args) noexcept {
  const uint8_t* panel = args.w.data + args.panel * args.w.panel_bytes;
  const int64_t begin = args.first_block * kBlock;
  const int64_t padded = (args.w.k + 1) / 2 * 2;
  for (int64_t c = 0; c < args.n_blocks * kBlock; c += 2) {
    typename V::Floats even = V::zero_floats(), odd = V::zero_floats();
    if (begin + c < padded) D::template columns<V>(panel + (begin + c) * D::kBytes, even, odd);
    V::store_floats(args.out + c * kLanes, even);
    V::store_floats(args.out + (c + 1) * kLanes, odd);
  }
}

template <class V, class D>
void expand_dense(const ExpandArgs& args) noexcept {
  constexpr int kPanels = V::kTilePanels;
  auto* out = reinterpret_cast<float*>(args.out->values);
  const int64_t begin = args.first_block * kBlock, padded = (args.w.k + 1) / 2 * 2;
  for (int64_t c = 0; c < args.n_blocks * kBlock; c += 2) {
    for (int64_t p = 0; p < kPanels - args.slot; ++p) {
      typename V::Floats even = V::zero_floats(), odd = V::zero_floats();
      if (p < args.n_panels && begin + c < padded) {
        const uint8_t* panel = args.w.data + (args.first_panel + p) * args.w.panel_bytes;
        D::template columns<V>(panel + (begin + c) * D::kBytes, even, odd);
      }
      V::store_floats(out + (c * kPanels + args.slot + p) * kLanes, even);
      V::store_floats(out + ((c + 1) * kPanels + args.slot + p) * kLanes, odd);
    }
  }
}

/// bf16 pairs as they are, panels of a tile side by side.
template <class V>
void expand_bf16(const ExpandArgs& args) noexcept {
  constexpr int kPanels = V::kTilePanels;
  const int64_t begin = args.first_block * (kBlock / 2), n_pairs = (args.w.k + 1) / 2;
  for (int64_t c = 0; c < args.n_blocks * (kBlock / 2); ++c) {
    for (int64_t p = 0; p < kPanels - args.slot; ++p) {
      const bool inside = p < args.n_panels && begin + c < n_pairs;
      const uint8_t* pairs =
          args.w.data + (args.first_panel + p) * args.w.panel_bytes + 64 * (begin + c);
      V::store(args.out->values + (c * kPanels + args.slot + p) * 64,
               inside ? V::load(pairs) : V::splat(0));
    }
  }
}

// ---- tiles
// -----------------------------------------------------------------------------------------

template <class V, int kRows>
void tile_f32_rows(const TileArgs& args, int64_t row) {
  constexpr int kPanels = V::kTilePanels;
  const auto* w = reinterpret_cast<const float*>(args.w->values);
  const auto* x = static_cast<const float*>(args.x.rows) + row * args.x.stride + args.first_column;
  float* out = args.sums + row * kPanels * kLanes;
  typename V::Floats sums[kRows][kPanels];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
      sums[r][p] = args.first ? V::zero_floats() : V::load_floats(out + (r * kPanels + p) * kLanes);
  }
  for (int64_t c = 0; c < args.n_columns; ++c) {
    typename V::Floats column[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
      column[p] = V::load_floats(w + (c * kPanels + p) * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const auto a = V::splat_float(x[r * args.x.stride + c]);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
        sums[r][p] = V::multiply_add(column[p], a, sums[r][p]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
      V::store_floats(out + (r * kPanels + p) * kLanes, sums[r][p]);
  }
}

#ifdef __AVX512BF16__
template <class V, int kRows>
void tile_bf16_rows(const TileArgs& args, int64_t row) {
  constexpr int kPanels = V::kTilePanels;
  const auto* x =
      static_cast<const uint8_t*>(args.x.rows) + 4 * (row * args.x.stride + args.first_column / 2);
  float* out = args.sums + row * kPanels * kLanes;
  typename V::Floats sums[kRows][kPanels];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
      sums[r][p] = args.first ? V::zero_floats() : V::load_floats(out + (r * kPanels + p) * kLanes);
  }
  const int64_t n_pairs = (args.n_columns + 1) / 2;
  for (int64_t c = 0; c < n_pairs; ++c) {
    typename V::Bytes pairs[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
      pairs[p] = V::load(args.w->values + (c * kPanels + p) * 64);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const auto a = V::splat4(x + 4 * (r * args.x.stride + c));
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p)
        sums[r][p] = V::dot_bf16(sums[r][p], pairs[p], a);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
      V::store_floats(out + (r * kPanels + p) * kLanes, sums[r][p]);
  }
}
#endif

template <class V, bool kBf16, int kRows>
inline void tile_float_rows(const TileArgs& args, int64_t row) {
#ifdef __AVX512BF16__
  if constexpr (kBf16) return tile_bf16_rows<V, kRows>(args, row);
#endif
  if constexpr (!kBf16) tile_f32_rows<V, kRows>(args, row);
}

template <class V, bool kBf16>
void tile_float(const TileArgs& args) noexcept {
  int64_t row = 0;
  for (; row + 6 <= args.x.m; row += 6)
    tile_float_rows<V, kBf16, 6>(args, row);
  if (args.x.m - row >= 4) tile_float_rows<V, kBf16, 4>(args, row), row += 4;
  if (args.x.m - row >= 2) tile_float_rows<V, kBf16, 2>(args, row), row += 2;
  if (args.x.m - row >= 1) tile_float_rows<V, kBf16, 1>(args, row);
}

// ---- results -----------------------------------------------------------------------------------

template <class V, bool kBias, bool kAccumulate>
void store_some(const StoreArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    const float* from = args.sums + r * args.stride;
    float* y = args.y + r * args.ldy;
    int64_t i = 0;
    for (; i + kLanes <= args.n; i += kLanes) {
      auto value = V::load_floats(from + i);
      if constexpr (kBias) value = V::add(value, V::load_floats(args.bias + i));
      if constexpr (kAccumulate) value = V::add(V::load_floats(y + i), value);
      V::store_floats(y + i, value);
    }
    for (; i < args.n; ++i) {
      const float value = kBias ? from[i] + args.bias[i] : from[i];
      y[i] = kAccumulate ? y[i] + value : value;
    }
  }
}

template <class V>
void store_rows(const StoreArgs& args) noexcept {
  if (args.bias != nullptr) {
    args.accumulate ? store_some<V, true, true>(args) : store_some<V, true, false>(args);
  } else {
    args.accumulate ? store_some<V, false, true>(args) : store_some<V, false, false>(args);
  }
}

}  // namespace
}  // namespace qw::kernels
