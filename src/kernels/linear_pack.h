// From a published matrix to panels: a permutation of codes and scales, nothing is rounded.
//
// Level 3 (kernels). decode(pack(source)) equals LinearSource::decode_rows bit for bit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/linear_kernel.h"
#include "quant/linear_source.h"

namespace qw::kernels {

/// Raise it with every change by which pack_panels() fills some panel with other bytes than before
/// (a layout in another order, a mended rounding or edge), sizes alike or not: caches of packed
/// weights on disk keep what older programs packed, and ask by this number too.
inline constexpr int64_t kPackerVersion = 1;

/// How a source will be packed.
struct PackPlan {
  LinearLayout layout = LinearLayout::kRows;
  PanelMatrix matrix{};          // without data
  std::vector<int32_t> columns;  // packed column i is the source's columns[i]; empty: i (act-order)
  std::string why_rows;          // for kRows: why no panel layout serves
  int64_t bytes() const { return matrix.n_panels * matrix.panel_bytes; }
};

/// The layout for a source: kRows when none holds its codes exactly.
PackPlan plan_pack(const LinearSource& source);

enum class PackStatus { kOk, kNotFinite, kNotExact };

/// Fills panels [first, first + n_panels) at `data` (64-byte aligned, plan.bytes() in all). Lanes
/// past n add nothing. kNotFinite: a scale is NaN or infinite; kNotExact: a scale is no f16, or a
/// zero no integer, so that only kRows keeps the source exact. Thread safe for disjoint panels.
PackStatus pack_panels(const LinearSource& source, const PackPlan& plan, int64_t first,
                       int64_t n_panels, uint8_t* data);

/// kRows: whether every scale and zero of rows [row, row + n_rows) is finite, and so every weight.
bool scales_are_finite(const LinearSource& source, int64_t row, int64_t n_rows);

}  // namespace qw::kernels
