// GPTQ: weights are rounded column by column, and the columns still to come make good the error
// that each leaves in the layer's output. On a grid that is looked for, or on one that is there.
//
// Level 6 (quantize). W [n, k] of floats and what is known of its inputs in; codes, scales and zero
// points out. Source: Frantar et al. 2022, "GPTQ"; AutoGPTQ 0.7.1, gptq.py.
#pragma once

#include <memory>

#include "quant/affine_matrix.h"
#include "quantize/gptq_factor.h"

namespace qw::quantize {

struct GptqResult {
  LinearSource source;  // over `matrix`, named as W
  std::shared_ptr<const AffineMatrix> matrix;
  /// AutoGPTQ's: the sum of (w - q)^2 / (2 U_ii^2), with w as it was when its turn came. It is
  /// trace((W - Q) H (W - Q)^T) / 2 of the damped H.
  double loss = 0;
};

/// W on the grid of factor.options(). Row o of the result depends on row o of W and the factor
/// only, so it is the same bits for any number of threads and any other rows.
///
/// kReference: scales are f32, as in AutoGPTQ's solver (publishing rounds them). kBetter: scales
/// are f16 values, and the grids are those of search_grid (quantize/grid_search.h). Memory: 4 k *
/// 64 bytes a thread, n * k bytes for the codes. Errors: invalid_argument (W [n, k] of another k,
/// values that are not finite or need a scale beyond f16), whatever decoding W throws.
GptqResult gptq_quantise(const LinearSource& w, const GptqFactor& factor, const MatrixTeam& team);

/// Other weights on the grid of a quantised matrix. Losses are GptqResult::loss.
struct RecodedMatrix {
  LinearSource source;      // with_codes of the matrix
  double loss = 0;          // of these codes
  double kept_loss = 0;     // of the codes as they were
  double nearest_loss = 0;  // of the nearest codes, with no feedback
  int64_t n_changed = 0;    // codes that are others now
  int64_t n_beyond = 0;     // weights more than half a step outside of their grid
};

/// W on the grid of `on` (steps, zero points, groups and their order stay): of each row the best of
/// the codes as they are, the nearest ones, and those that GPTQ finds. `factor` says the order and
/// the feedback; its bits and groups have no meaning here. Errors, memory and threads: as
/// gptq_quantise; `on` must have levels (quant/code_grid.h) and the size of W.
RecodedMatrix gptq_recode(const LinearSource& w, const LinearSource& on, const GptqFactor& factor,
                          const MatrixTeam& team);

/// The options of such a factor: columns of large inputs first, no grids to find.
GptqOptions recode_options(double damp);

}  // namespace qw::quantize
