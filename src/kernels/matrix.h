// Products of f32 matrices in registers, and the columns of a quantiser with error feedback: what
// second-order quantisation spends its time in.
//
// Level 3 (kernels). Plain data only: included by files compiled for one instruction set. Blocking,
// packing and threads are whoever calls (quantize/blocked_matrix.h). Source of the tile: Goto and
// van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication".
#pragma once

#include <stdint.h>

namespace qw::kernels {

struct Isa;

/// Rows of a weight matrix that quantise_columns takes at a time; a multiple of every tile_cols.
inline constexpr int kGridRows = 64;

/// Columns that are rounded to a grid one after the other, each with the errors of those before it.
/// For column i = 0, 1, ... of kGridRows rows (r), all arrays [n_columns][kGridRows]:
///   v = w[i][r] + sum over j < i of errors[j][r] * feedback[i * feedback_stride + j]
///   code = clamp(round(v / scale) + zero, 0, highest), ties to even
///   errors[i][r] = (scale * (code - zero) - v) / feedback[i * feedback_stride + i]
///   loss[r] = sum over i of errors[i][r]^2
/// Sums run over j ascending and fuse where the CPU does. scale[i * grid_stride + r], and zero
/// alike: a stride of 0 is one grid for all columns. Scales must not be 0.
struct GridColumns {
  int64_t n_columns = 0;
  const float* w = nullptr;
  const float* feedback = nullptr;  // rows of a lower triangle, diagonal included
  int64_t feedback_stride = 0;
  const float* scale = nullptr;
  const float* zero = nullptr;
  int64_t grid_stride = 0;
  float highest = 0;
  float* codes = nullptr;  // null: not wanted
  float* errors = nullptr;
  float* loss = nullptr;  // [kGridRows]
};

struct MatrixOps {
  const char* name = nullptr;
  int tile_rows = 0, tile_cols = 0;
  /// c[i * c_stride + j] += sign * sum over p < depth of a[p * tile_rows + i] * b[p * b_stride + j]
  /// for i < tile_rows, j < tile_cols; p ascending, fused where the CPU does. `sign` is 1 or -1.
  void (*multiply_tile)(const float* a, const float* b, int64_t b_stride, int64_t depth, float sign,
                        float* c, int64_t c_stride) = nullptr;
  void (*quantise_columns)(const GridColumns& job) = nullptr;
};

/// The best that `isa` allows.
const MatrixOps& matrix_ops(const Isa& isa) noexcept;

}  // namespace qw::kernels
