#include "quantize/blocked_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/checked.h"

namespace qw::quantize {

namespace {

constexpr int kMaxTile = 6 * 64;
constexpr int64_t kDepth = 256;      // of a packed chunk: its tile of columns stays in L1
constexpr int64_t kSmallBlock = 48;  // of the diagonal blocks' own factors

size_t floats(int64_t n) {
  return static_cast<size_t>(n);
}

void grow(std::vector<float>& buffer, int64_t n) {
  if (buffer.size() < floats(n)) buffer.resize(floats(n));
}

void zero_block(float* c, int64_t c_stride, int64_t m, int64_t n) {
  for (int64_t i = 0; i < m; ++i)
    std::fill_n(c + i * c_stride, n, 0.0F);
}

/// The blocks of kBlockRows x kBlockCols that touch the lower triangle of an [n, n] matrix.
struct LowerBlock {
  int64_t row, col;
};
std::vector<LowerBlock> lower_blocks(int64_t n) {
  std::vector<LowerBlock> out;
  for (int64_t col = 0; col < n; col += kBlockCols) {
    for (int64_t row = col / kBlockRows * kBlockRows; row < n; row += kBlockRows)
      out.push_back({row, col});
  }
  return out;
}

/// Lower C [n, n] += sign * A A^T, packed as rows and as columns.
void add_lower(const MatrixTeam& team, const float* a, const float* b, int64_t n, int64_t depth,
               float sign, float* c, int64_t c_stride) {
  const std::vector<LowerBlock> blocks = lower_blocks(n);
  team.for_each(static_cast<int64_t>(blocks.size()), [&](int64_t index) {
    const auto [row, col] = blocks[floats(index)];
    multiply_block(*team.ops, a + row * depth, std::min(kBlockRows, n - row), b + col * depth,
                   std::min(kBlockCols, n - col), depth, sign, c + row * c_stride + col, c_stride,
                   row - col);
  });
}

/// Cholesky of a block that fits in L1, sums in double.
int64_t cholesky_small(float* a, int64_t stride, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    const float* row_j = a + j * stride;
    for (int64_t i = j; i < n; ++i) {
      const float* row_i = a + i * stride;
      double sum = row_i[j];
      for (int64_t p = 0; p < j; ++p)
        sum -= static_cast<double>(row_i[p]) * static_cast<double>(row_j[p]);
      if (i == j) {
        if (!(sum > 0) || !std::isfinite(sum)) return j;
        a[j * stride + j] = static_cast<float>(std::sqrt(sum));
      } else {
        a[i * stride + j] = static_cast<float>(sum / static_cast<double>(row_j[j]));
      }
    }
  }
  return -1;
}

/// L -> L^-1 for a block that fits in L1: row i is -(sum over p < i of L[i, p] M[p, :]) / L[i, i].
void invert_small(float* l, int64_t stride, int64_t n) {
  std::vector<float> sums(floats(n));
  for (int64_t i = 0; i < n; ++i) {
    float* row = l + i * stride;
    const float pivot = 1.0F / row[i];
    std::fill(sums.begin(), sums.end(), 0.0F);
    for (int64_t p = 0; p < i; ++p) {
      const float* other = l + p * stride;
      for (int64_t j = 0; j <= p; ++j)
        sums[floats(j)] += row[p] * other[j];
    }
    for (int64_t j = 0; j < i; ++j)
      row[j] = -sums[floats(j)] * pivot;
    row[i] = pivot;
  }
}

void invert_blocks(const MatrixTeam& team, float* l, int64_t stride, int64_t n, int64_t block);

/// Factors in blocks of `block` columns: a diagonal block, the rows below it times the inverse of
/// its factor, and what they take from the rest. `block` = kSmallBlock: a diagonal block itself.
int64_t cholesky_blocks(const MatrixTeam& team, float* a, int64_t stride, int64_t n,
                        int64_t block) {
  const kernels::MatrixOps& ops = *team.ops;
  const MatrixTeam alone{nullptr, team.ops};
  std::vector<float> inverse(floats(block * block)), packed_inverse;
  PackedPair panel;
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t size = std::min(block, n - begin), end = begin + size;
    float* diagonal = a + begin * stride + begin;
    const int64_t failed = block == kSmallBlock
                               ? cholesky_small(diagonal, stride, size)
                               : cholesky_blocks(alone, diagonal, stride, size, kSmallBlock);
    if (failed >= 0) return begin + failed;
    for (int64_t i = 0; i < size; ++i)  // tiles across the diagonal wrote there
      std::fill(diagonal + i * stride + i + 1, diagonal + i * stride + size, 0.0F);
    if (end == n) break;

    for (int64_t i = 0; i < size; ++i)
      std::copy_n(diagonal + i * stride, size, inverse.data() + i * block);
    if (block == kSmallBlock)
      invert_small(inverse.data(), block, size);
    else
      invert_blocks(alone, inverse.data(), block, size, kSmallBlock);
    grow(packed_inverse, packed_floats(ops.tile_cols, size, size));
    pack_tiles(ops.tile_cols, inverse.data(), block, 1, size, size, packed_inverse.data());

    const int64_t left = n - end;
    grow(panel.a, packed_floats(ops.tile_rows, left, size));
    grow(panel.b, packed_floats(ops.tile_cols, left, size));
    team.for_each(ceil_div(left, kFactorBlock), [&](int64_t index) {
      const int64_t row = index * kFactorBlock, m = std::min(kFactorBlock, left - row);
      float* rows = a + (end + row) * stride + begin;
      float* packed = panel.a.data() + row * size;
      pack_tiles(ops.tile_rows, rows, stride, 1, m, size, packed);
      zero_block(rows, stride, m, size);
      multiply_block(ops, packed, m, packed_inverse.data(), size, size, 1.0F, rows, stride,
                     kWholeBlock);
      pack_tiles(ops.tile_rows, rows, stride, 1, m, size, packed);
      pack_tiles(ops.tile_cols, rows, stride, 1, m, size, panel.b.data() + row * size);
    });
    add_lower(team, panel.a.data(), panel.b.data(), left, size, -1.0F, a + end * stride + end,
              stride);
  }
  return -1;
}

/// One block of rows after the other: M[i, <i] = -L[i, i]^-1 L[i, <i] M[<i, <i].
void invert_blocks(const MatrixTeam& team, float* l, int64_t stride, int64_t n, int64_t block) {
  const kernels::MatrixOps& ops = *team.ops;
  const MatrixTeam alone{nullptr, team.ops};
  std::vector<float> packed_diagonal, packed_rows;
  // Scratch of columns, one for each item that may run at a time would do; one for each is simple.
  const int64_t panel_floats = packed_floats(ops.tile_cols, block, block);
  std::vector<float> panels(floats(ceil_div(n, block) * panel_floats));
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t size = std::min(block, n - begin), n_blocks = begin / block;
    float* rows = l + begin * stride;
    if (block == kSmallBlock)
      invert_small(rows + begin, stride, size);
    else
      invert_blocks(alone, rows + begin, stride, size, kSmallBlock);
    if (begin == 0) continue;
    grow(packed_diagonal, packed_floats(ops.tile_rows, size, size));
    pack_tiles(ops.tile_rows, rows + begin, stride, 1, size, size, packed_diagonal.data());
    const int64_t row_floats = packed_floats(ops.tile_rows, size, block);
    grow(packed_rows, n_blocks * row_floats);

    team.for_each(n_blocks, [&](int64_t index) {  // -L[i, i]^-1 L[i, <i], packed as rows
      float* at = rows + index * block;
      float* panel = panels.data() + index * panel_floats;
      pack_tiles(ops.tile_cols, at, 1, stride, block, size, panel);
      zero_block(at, stride, size, block);
      multiply_block(ops, packed_diagonal.data(), size, panel, block, size, -1.0F, at, stride,
                     kWholeBlock);
      pack_tiles(ops.tile_rows, at, stride, 1, size, block,
                 packed_rows.data() + index * row_floats);
    });
    team.for_each(n_blocks, [&](int64_t index) {  // times M[<i, <i], a lower triangle
      float* at = rows + index * block;
      float* panel = panels.data() + index * panel_floats;
      zero_block(at, stride, size, block);
      for (int64_t p = index; p < n_blocks; ++p) {
        pack_tiles(ops.tile_cols, l + p * block * stride + index * block, 1, stride, block, block,
                   panel);
        multiply_block(ops, packed_rows.data() + p * row_floats, size, panel, block, block, 1.0F,
                       at, stride, kWholeBlock);
      }
    });
  }
}

}  // namespace

void MatrixTeam::for_each(int64_t n_items, FunctionRef<void(int64_t)> body) const {
  const auto range = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      body(i);
  };
  if (pool == nullptr)
    range(0, n_items, 0);
  else
    pool->parallel_for(n_items, 1, range);
}

int64_t packed_floats(int width, int64_t n, int64_t depth) {
  return round_up<int64_t>(n, width) * depth;
}

void pack_tiles(int width, const float* from, int64_t row_stride, int64_t depth_stride, int64_t n,
                int64_t depth, float* to) {
  for (int64_t begin = 0; begin < n; begin += width, to += width * depth) {
    const int64_t size = std::min<int64_t>(width, n - begin);
    const float* tile = from + begin * row_stride;
    if (row_stride == 1 && size == width) {
      for (int64_t p = 0; p < depth; ++p)
        std::memcpy(to + p * width, tile + p * depth_stride, sizeof(float) * floats(width));
      continue;
    }
    for (int64_t p = 0; p < depth; ++p) {
      for (int64_t i = 0; i < size; ++i)
        to[p * width + i] = tile[i * row_stride + p * depth_stride];
      for (int64_t i = size; i < width; ++i)
        to[p * width + i] = 0;
    }
  }
}

void multiply_block(const kernels::MatrixOps& ops, const float* a, int64_t m, const float* b,
                    int64_t n, int64_t depth, float sign, float* c, int64_t c_stride,
                    int64_t diagonal) {
  const int64_t rows = ops.tile_rows, cols = ops.tile_cols;
  for (int64_t j = 0; j < n; j += cols, b += cols * depth) {
    const float* tile = a;
    for (int64_t i = 0; i < m; i += rows, tile += rows * depth) {
      if (i + rows - 1 + diagonal < j) continue;
      if (i + rows <= m && j + cols <= n) {
        ops.multiply_tile(tile, b, cols, depth, sign, c + i * c_stride + j, c_stride);
        continue;
      }
      float edge[kMaxTile] = {};
      ops.multiply_tile(tile, b, cols, depth, sign, edge, cols);
      for (int64_t r = 0; r < std::min(rows, m - i); ++r) {
        for (int64_t s = 0; s < std::min(cols, n - j); ++s)
          c[(i + r) * c_stride + j + s] += edge[r * cols + s];
      }
    }
  }
}

void add_gram(const MatrixTeam& team, const float* x, int64_t x_stride, int64_t depth, int64_t n,
              float* c, PackedPair& scratch) {
  const kernels::MatrixOps& ops = *team.ops;
  for (int64_t begin = 0; begin < depth; begin += kDepth) {
    const int64_t chunk = std::min(kDepth, depth - begin);
    grow(scratch.a, packed_floats(ops.tile_rows, n, chunk));
    grow(scratch.b, packed_floats(ops.tile_cols, n, chunk));
    team.for_each(ceil_div(n, kFactorBlock), [&](int64_t index) {
      const int64_t col = index * kFactorBlock, size = std::min(kFactorBlock, n - col);
      const float* from = x + begin * x_stride + col;
      pack_tiles(ops.tile_rows, from, 1, x_stride, size, chunk, scratch.a.data() + col * chunk);
      pack_tiles(ops.tile_cols, from, 1, x_stride, size, chunk, scratch.b.data() + col * chunk);
    });
    add_lower(team, scratch.a.data(), scratch.b.data(), n, chunk, 1.0F, c, n);
  }
}

int64_t cholesky(const MatrixTeam& team, float* a, int64_t n) {
  return cholesky_blocks(team, a, n, n, kFactorBlock);
}

void invert_lower(const MatrixTeam& team, float* l, int64_t n) {
  invert_blocks(team, l, n, n, kFactorBlock);
}

}  // namespace qw::quantize
