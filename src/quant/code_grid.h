// A quantised matrix as codes on a grid, and other codes on the same grid: what changes a matrix
// and leaves all that its format says of it beside the codes.
//
// Level 2 (quant).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "quant/linear_source.h"

namespace qw {

/// W[o, i] = base[o, i] + step[o, i] * level(q[o, i]), q in [0, n).
struct GridLevels {
  int n = 0;
  bool is_affine = true;  // level(q) = q; else values[q], n at most 16, and base is 0
  std::array<float, 16> values{};
  DType value_type = DType::kF32;  // W is rounded to it, of a codebook
};

/// Rows of such a matrix, [n_rows, k] each.
struct GridRows {
  std::vector<uint8_t> codes;
  std::vector<float> steps, bases;
};

/// None for floats, and for types whose codes are not one for each weight: IQ1, IQ2, IQ3, TQ1_0.
std::optional<GridLevels> grid_levels(const LinearSource& source);

/// Rows [row, row + n_rows). The formula gives what the format's decoder does but for the rounding
/// of f32 (and of a step that is found from the largest code). A step may be 0 or negative.
/// `source` must have levels. Thread safe.
void read_grid(const LinearSource& source, int64_t row, int64_t n_rows, GridRows& out);

/// The matrix with codes [n, k] on the grid of `source`, in the same form: blocks as bytes of its
/// own, groups and codebooks as views of the source's scales. With the codes that read_grid gives
/// it is the same, bit for bit. `source` must have levels and be a whole matrix.
LinearSource with_codes(const LinearSource& source, std::vector<uint8_t> codes);

}  // namespace qw
