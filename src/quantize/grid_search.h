// Scales and zero points of one group of columns for 64 rows at a time: AutoGPTQ's rule, and a
// search that tries grids and measures the error each leaves.
//
// Level 6 (quantize). Source of the rule: AutoGPTQ 0.7.1, quantizer.py.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/matrix.h"

namespace qw::quantize {

/// A grid for each of 64 rows.
struct Grid {
  float scale[kernels::kGridRows];
  float zero[kernels::kGridRows];
};

struct GridKind {
  int bits = 4;
  bool sym = true;
  float lowest_zero = 1;  // of asymmetric grids

  float highest() const noexcept { return static_cast<float>((1 << bits) - 1); }
};

/// AutoGPTQ's grid of the columns at `columns`, each [kGridRows]:
///   xmin = min(w, 0), xmax = max(w, 0);  sym: xmax = max(-xmin, xmax), xmin = -xmax if xmin < 0
///   xmin = -1, xmax = 1 if both are 0
///   scale = (xmax - xmin) / highest;  zero = sym ? 2^(bits - 1) : round(-xmin / scale)
/// so that a symmetric group without negative weights gets half the scale it needs.
void reference_grid(const GridKind& kind, std::span<const float* const> columns, Grid& out);

/// Some of a group's columns that lie together, and the feedback among them.
struct GridChunk {
  int64_t n_columns = 0;
  const float* w = nullptr;         // [n_columns][kGridRows]
  const float* feedback = nullptr;  // as GridColumns, stride n_columns
};

/// The grid of least error. For each row, of all grids tried, the one with the least
///   sum over chunks of ||(w - q) U^-1||^2
/// where q is what rounding with feedback makes of w on that grid: the very loss that the group
/// adds, up to feedback between chunks. Scales are tried as f16 holds them, so publishing changes
/// nothing. Symmetric ones are tried with both signs: a grid reaches one step further on the side
/// of its code 0. `errors` is scratch of [columns of the largest chunk][kGridRows]. Returns false
/// when a row's scale exceeds f16; `out` is undefined then.
bool search_grid(const GridKind& kind, const kernels::MatrixOps& ops,
                 std::span<const GridChunk> chunks, float* errors, Grid& out);

}  // namespace qw::quantize
