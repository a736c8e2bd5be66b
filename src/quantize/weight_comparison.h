// The weights of two checkpoints of one network beside each other: what a file that was made of
// another really holds, read back from the file.
//
// Level 6 (quantize).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/thread_pool.h"
#include "model/sources.h"
#include "quantize/blocked_matrix.h"

namespace qw::quantize {

/// One matrix, norm or bias.
struct WeightDifference {
  std::string name;  // "model.layers.0.self_attn.q_proj", ".bias" appended for one
  ModuleId id;
  std::string from, to;  // formats
  bool was_quantised = false;
  int64_t n_weights = 0, n_changed = 0;  // -0 and 0 are the same weight, and so are NaNs
  double largest = 0;                    // |change|
  double change2 = 0, size2 = 0;         // sums of change^2 and weight^2

  bool is_exact() const noexcept { return n_changed == 0; }
  /// sqrt(sum change^2 / sum weight^2); infinity where all weights were 0 or some became no number.
  double relative() const noexcept;
  WeightDifference& operator+=(const WeightDifference& other);
};

/// One matrix, without a name, decoded in f32; sums do not depend on the number of threads. The
/// sizes must be the same.
WeightDifference compare_matrices(const LinearSource& from, const LinearSource& to,
                                  const MatrixTeam& team);

/// Decodes both, in f32; sums do not depend on the number of threads. `done` is told of weights.
/// Errors: invalid_argument (networks of different modules or sizes), cancelled.
std::vector<WeightDifference> compare_weights(const NetworkSources& from, const NetworkSources& to,
                                              ThreadPool& pool,
                                              const std::function<void(int64_t)>& done,
                                              const CancelFlag* cancel);

/// All of them as one, without a name.
WeightDifference total_of(const std::vector<WeightDifference>& differences);

}  // namespace qw::quantize
