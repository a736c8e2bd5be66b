// Rows of the registry for one vector type: all that differs between instruction sets is V.
//
// Level 3 (kernels). Templates, internal linkage.
#pragma once

#include "kernels/cpu/linear_float.h"
#include "kernels/cpu/linear_int8.h"
#include "kernels/linear_table.h"

namespace qw::kernels {
namespace {

/// A gemv of floats is equal to a tile at about 12 rows on Zen 5, November 2026.
constexpr int kFewFloatRows = 8;

template <class V, class L>
constexpr LinearKernel int8_row(LinearLayout layout, IsaLevel level) {
  return {layout,
          ActivationForm::kInt8,
          level,
          static_cast<int>(level),
          kIntPanels<V, L::kWide>,
          V::kFewRows,
          V::kGemvRows,
          gemv_int8<V, L>,
          expand_int8<V, L>,
          tile_int8<V, L::kHalves, kIntMinimum<L>, kValueRun<V, L>>,
          decode_quantised<V, L>,
          quantize_row<V>,
          store_rows<V>};
}

template <class V, class L>
constexpr LinearKernel f32_row(LinearLayout layout, IsaLevel level) {
  return {layout,
          ActivationForm::kF32,
          level,
          static_cast<int>(level),
          V::kTilePanels,
          kFewFloatRows,
          0,
          nullptr,
          expand_f32<V, L>,
          tile_float<V, false>,
          decode_quantised<V, L>,
          nullptr,
          store_rows<V>};
}

template <class V, class D>
constexpr LinearKernel dense_row(LinearLayout layout, IsaLevel level) {
  return {layout,
          ActivationForm::kF32,
          level,
          static_cast<int>(level),
          V::kTilePanels,
          kFewFloatRows,
          kGemvFloatRows,
          gemv_dense<V, D, false>,
          expand_dense<V, D>,
          tile_float<V, false>,
          decode_dense<V, D>,
          nullptr,
          store_rows<V>};
}

template <class V>
constexpr LinearKernel rows_row(IsaLevel level) {
  return {LinearLayout::kRows,
          ActivationForm::kF32,
          level,
          static_cast<int>(level),
          V::kTilePanels,
          kFewFloatRows,
          0,
          nullptr,
          nullptr,
          tile_float<V, false>,
          nullptr,
          nullptr,
          store_rows<V>};
}

template <class V>
constexpr LinearKernel bf16_row(IsaLevel level) {
  return {LinearLayout::kBf16,
          ActivationForm::kBf16,
          level,
          static_cast<int>(level),
          V::kTilePanels,
          kFewFloatRows,
          kGemvFloatRows,
          gemv_dense<V, DenseBf16, true>,
          expand_bf16<V>,
          tile_float<V, true>,
          decode_dense<V, DenseBf16>,
          nullptr,
          store_rows<V>};
}

/// Every quantised layout with 8-bit activations.
template <class V, IsaLevel kLevel, class List = QuantisedLayouts>
struct Int8Rows;
template <class V, IsaLevel kLevel, class... Named>
struct Int8Rows<V, kLevel, LayoutList<Named...>> {
  static constexpr LinearKernel rows[] = {
      int8_row<V, typename Named::Layout>(Named::kName, kLevel)...};
};

/// Everything with f32 activations.
template <class V, IsaLevel kLevel, class List = QuantisedLayouts>
struct FloatRows;
template <class V, IsaLevel kLevel, class... Named>
struct FloatRows<V, kLevel, LayoutList<Named...>> {
  static constexpr LinearKernel rows[] = {
      rows_row<V>(kLevel), dense_row<V, DenseF32>(LinearLayout::kF32, kLevel),
      dense_row<V, DenseF16>(LinearLayout::kF16, kLevel),
      dense_row<V, DenseBf16>(LinearLayout::kBf16, kLevel),
      f32_row<V, typename Named::Layout>(Named::kName, kLevel)...};
};

template <int kCount>
constexpr LinearKernelTable table_of(const LinearKernel (&rows)[kCount]) {
  return {rows, kCount};
}

}  // namespace
}  // namespace qw::kernels
