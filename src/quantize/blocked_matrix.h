// Products, factors and inverses of large f32 matrices in blocks that stay in the caches, on a team
// of threads: the arithmetic below the quantisers.
//
// Level 6 (quantize). Row-major; one kernel per instruction set (kernels/matrix.h), everything else
// is packing and order. The order of every sum depends on the sizes only, so results are the same
// bits for any number of threads. Source: Goto and van de Geijn 2008 (packing); Golub and Van Loan,
// Matrix Computations, 4.2 (Cholesky by blocks).
#pragma once

#include <cstdint>
#include <vector>

#include "base/function_ref.h"
#include "base/thread_pool.h"
#include "kernels/matrix.h"

namespace qw::quantize {

/// Who computes. Both must outlive whatever holds this.
struct MatrixTeam {
  ThreadPool* pool = nullptr;  // null: the calling thread alone
  const kernels::MatrixOps* ops = nullptr;

  /// body(i) for every i in [0, n_items), on the team.
  void for_each(int64_t n_items, FunctionRef<void(int64_t)> body) const;
};

/// Rows and columns of blocks: multiples of every tile (6 rows; 4, 16 or 64 columns).
inline constexpr int64_t kBlockRows = 96;
inline constexpr int64_t kBlockCols = 384;
inline constexpr int64_t kFactorBlock = 192;  // columns that are factored at a time

/// A matrix A [n, depth] for multiply_tile: tiles of `width` rows, in a tile depth by depth. Rows
/// past n are zeros. A(i, p) = from[i * row_stride + p * depth_stride].
///   to[(i / width) * width * depth + p * width + i % width] = A(i, p)
void pack_tiles(int width, const float* from, int64_t row_stride, int64_t depth_stride, int64_t n,
                int64_t depth, float* to);
/// Floats that pack_tiles writes.
int64_t packed_floats(int width, int64_t n, int64_t depth);

/// C [m, n] += sign * A B^T, of packed A [m, depth] (tile_rows wide) and B [n, depth] (tile_cols
/// wide). Tiles that lie wholly above the diagonal i + diagonal = j may be left out; give
/// kWholeBlock for all of C.
inline constexpr int64_t kWholeBlock = int64_t{1} << 40;
void multiply_block(const kernels::MatrixOps& ops, const float* a, int64_t m, const float* b,
                    int64_t n, int64_t depth, float sign, float* c, int64_t c_stride,
                    int64_t diagonal);

/// The lower triangle of C [n, n] += X^T X for X [depth, n], element (p, i) at x[p * x_stride + i].
/// What lies above the diagonal is undefined afterwards. `scratch` grows as needed.
struct PackedPair {
  std::vector<float> a, b;
};
void add_gram(const MatrixTeam& team, const float* x, int64_t x_stride, int64_t depth, int64_t n,
              float* c, PackedPair& scratch);

/// A = L L^T, in place: reads and writes the lower triangle of a [n, n]; the upper one is zeros
/// afterwards within the diagonal blocks of kFactorBlock and undefined elsewhere. Returns the first
/// column whose pivot is not a positive finite number (A is ruined then), or -1.
/// Backward stable: |L L^T - A| <= c n eps |L| |L|^T (Higham 2002, theorem 10.3).
int64_t cholesky(const MatrixTeam& team, float* a, int64_t n);

/// L -> L^-1, in place, for L as cholesky() leaves it.
void invert_lower(const MatrixTeam& team, float* l, int64_t n);

}  // namespace qw::quantize
