// Rows of the registry for one vector type: all that differs between instruction sets is V.
//
// Level 3 (kernels). Templates, internal linkage.
#pragma once

#include "kernels/cpu/linear_float.h"
#include "kernels/cpu/linear_int8.h"
#include "kernels/linear_table.h"

namespace qw::kernels {
namespace {

template <class V, class L>
constexpr LinearKernel int8_row(LinearLayout layout, int level) {
  return {layout,
          ActivationForm::kInt8,
          level,
          level,
          V::kTilePanels,
          gemv_int8<V, L>,
          expand_int8<V, L>,
          tile_int8<V, L::kHalves, kIntMinimum<L>, kValueRun<V, L>>,
          decode_quantised<V, L>,
          quantize_row<V>};
}

template <class V, class L>
constexpr LinearKernel f32_row(LinearLayout layout, int level) {
  return {layout,
          ActivationForm::kF32,
          level,
          level,
          V::kTilePanels,
          nullptr,
          expand_f32<V, L>,
          tile_float<V, false>,
          decode_quantised<V, L>,
          nullptr};
}

template <class V, class D>
constexpr LinearKernel dense_row(LinearLayout layout, int level) {
  return {layout,
          ActivationForm::kF32,
          level,
          level,
          V::kTilePanels,
          gemv_dense<V, D, false>,
          expand_dense<V, D>,
          tile_float<V, false>,
          decode_dense<V, D>,
          nullptr};
}

template <class V>
constexpr LinearKernel rows_row(int level) {
  return {LinearLayout::kRows,
          ActivationForm::kF32,
          level,
          level,
          V::kTilePanels,
          nullptr,
          nullptr,
          tile_float<V, false>,
          nullptr,
          nullptr};
}

template <class V>
constexpr LinearKernel bf16_row(int level) {
  return {LinearLayout::kBf16,
          ActivationForm::kBf16,
          level,
          level,
          V::kTilePanels,
          gemv_dense<V, DenseBf16, true>,
          expand_bf16<V>,
          tile_float<V, true>,
          decode_dense<V, DenseBf16>,
          nullptr};
}

/// All quantised layouts with 8-bit activations.
template <class V, int kLevel>
struct Int8Rows {
  static constexpr LinearKernel rows[] = {
      int8_row<V, LayoutQ4_0>(LinearLayout::kQ4_0, kLevel),
      int8_row<V, LayoutQ4_1>(LinearLayout::kQ4_1, kLevel),
      int8_row<V, LayoutQ5_0>(LinearLayout::kQ5_0, kLevel),
      int8_row<V, LayoutQ5_1>(LinearLayout::kQ5_1, kLevel),
      int8_row<V, LayoutQ8_0>(LinearLayout::kQ8_0, kLevel),
      int8_row<V, LayoutQ2_K>(LinearLayout::kQ2_K, kLevel),
      int8_row<V, LayoutQ3_K>(LinearLayout::kQ3_K, kLevel),
      int8_row<V, LayoutQ4_K>(LinearLayout::kQ4_K, kLevel),
      int8_row<V, LayoutQ5_K>(LinearLayout::kQ5_K, kLevel),
      int8_row<V, LayoutQ6_K>(LinearLayout::kQ6_K, kLevel),
      int8_row<V, LayoutIq4Nl>(LinearLayout::kIq4Nl, kLevel),
      int8_row<V, LayoutIq4Xs>(LinearLayout::kIq4Xs, kLevel),
      int8_row<V, LayoutMxfp4>(LinearLayout::kMxfp4, kLevel),
      int8_row<V, Group<2>>(LinearLayout::kGroup2, kLevel),
      int8_row<V, Group<3>>(LinearLayout::kGroup3, kLevel),
      int8_row<V, Group<4>>(LinearLayout::kGroup4, kLevel),
      int8_row<V, Group<8>>(LinearLayout::kGroup8, kLevel),
      int8_row<V, LayoutGroup4Offset>(LinearLayout::kGroup4Offset, kLevel),
  };
};

/// Everything with f32 activations.
template <class V, int kLevel>
struct FloatRows {
  static constexpr LinearKernel rows[] = {
      rows_row<V>(kLevel),
      dense_row<V, DenseF32>(LinearLayout::kF32, kLevel),
      dense_row<V, DenseF16>(LinearLayout::kF16, kLevel),
      dense_row<V, DenseBf16>(LinearLayout::kBf16, kLevel),
      f32_row<V, LayoutQ4_0>(LinearLayout::kQ4_0, kLevel),
      f32_row<V, LayoutQ4_1>(LinearLayout::kQ4_1, kLevel),
      f32_row<V, LayoutQ5_0>(LinearLayout::kQ5_0, kLevel),
      f32_row<V, LayoutQ5_1>(LinearLayout::kQ5_1, kLevel),
      f32_row<V, LayoutQ8_0>(LinearLayout::kQ8_0, kLevel),
      f32_row<V, LayoutQ2_K>(LinearLayout::kQ2_K, kLevel),
      f32_row<V, LayoutQ3_K>(LinearLayout::kQ3_K, kLevel),
      f32_row<V, LayoutQ4_K>(LinearLayout::kQ4_K, kLevel),
      f32_row<V, LayoutQ5_K>(LinearLayout::kQ5_K, kLevel),
      f32_row<V, LayoutQ6_K>(LinearLayout::kQ6_K, kLevel),
      f32_row<V, LayoutIq4Nl>(LinearLayout::kIq4Nl, kLevel),
      f32_row<V, LayoutIq4Xs>(LinearLayout::kIq4Xs, kLevel),
      f32_row<V, LayoutMxfp4>(LinearLayout::kMxfp4, kLevel),
      f32_row<V, Group<2>>(LinearLayout::kGroup2, kLevel),
      f32_row<V, Group<3>>(LinearLayout::kGroup3, kLevel),
      f32_row<V, Group<4>>(LinearLayout::kGroup4, kLevel),
      f32_row<V, Group<8>>(LinearLayout::kGroup8, kLevel),
      f32_row<V, LayoutGroup4Offset>(LinearLayout::kGroup4Offset, kLevel),
  };
};

template <int kCount>
constexpr LinearKernelTable table_of(const LinearKernel (&rows)[kCount]) {
  return {rows, kCount};
}

}  // namespace
}  // namespace qw::kernels
