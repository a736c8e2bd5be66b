// What quantising a layer leaves: matrices, what is to be said of them, and the file's tensors.
//
// Level 6 (quantize).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/tensor_names.h"
#include "quant/affine_matrix.h"
#include "quantize/weight_comparison.h"
#include "tensor/raw_tensor.h"

namespace qw::quantize {

/// Other weights on the grid that a matrix had: RecodedMatrix, without its codes.
struct Recoding {
  std::string format;
  double kept_loss = 0;     // of the codes that it had: GGUF with feedback, those of the plain file
  double nearest_loss = 0;  // of the nearest codes
  int64_t n_weights = 0, n_changed = 0, n_beyond = 0;
};

/// One quantised matrix, and what is to be said of it.
struct QuantisedModule {
  ModuleId id;
  std::shared_ptr<const AffineMatrix> matrix;
  double loss = 0;       // GptqResult::loss
  double damp = 0;       // as used
  int64_t n_tokens = 0;  // that its inputs were taken from
  int64_t n_dead = 0;    // inputs that were always 0
  bool is_damp_raised = false;
  bool is_cold = false;         // an expert that was routed to too rarely
  std::optional<double> ratio;  // AWQ: of the scales of its inputs, see awq_scales; none: 1
  /// AWQ of a matrix that was quantised already: what rounding changes beside the matrix with its
  /// scales and divisors, with which weights cannot be compared with the source's.
  std::optional<WeightDifference> change;
  /// Of a merge, and of GGUF types with feedback; `matrix` is null then.
  std::optional<Recoding> recoding;
};

struct QuantisedLayer {
  std::vector<QuantisedModule> modules;
  std::vector<RawTensor> tensors;  // as published, which they own
};

/// An expert that fewer tokens than this are routed to is quantised with the inputs that it would
/// have if it got all of them: a number of inputs that is small against their features says nothing
/// about most directions.
constexpr int64_t cold_expert_tokens(int64_t k) {
  return k / 8 < 64 ? 64 : k / 8;
}

}  // namespace qw::quantize
