// How much worse a network predicts for each matrix that is kept in each type: what a budget of
// bytes is shared out by.
//
// Level 6 (quantize). Of matrix W in type t, with h the mean squares of its inputs:
//   error(t)  = sum_ri h_i (W_ri - Q_ri)^2 / sum_ri h_i W_ri^2     of its output, expected
//   damage(t) = KL measured with it in a probe type * error(t) / error(probe)
// Errors of the outputs are small against the outputs, so that the divergence they cause is about
// linear in them, and the sum of what each causes. Matrices that are many are probed in groups.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/thread_pool.h"
#include "quantize/gguf_plan.h"
#include "quantize/measurement_journal.h"

namespace qw::quantize {

struct MatrixChoice {
  DType dtype = DType::kF32;
  int64_t bytes = 0;  // in a file, with padding
  double error = 0;   // relative, of the output
  double damage = 0;  // predicted share of the mean KL divergence, in nats
};

struct MatrixChoices {
  std::string name;  // "blk.0.attn_q.weight"
  std::vector<MatrixChoice> choices;
};

/// The mean divergence of a network's predictions with these tensors in the types that they have.
using MeasureKl = std::function<double(const std::vector<const GgufTensor*>&)>;

/// What this matrix takes in a file in the smallest type that measure_choices() may give it,
/// whatever its values: with importances, if it has none.
int64_t smallest_bytes(const GgufTensor& tensor);

struct SensitivityOptions {
  double probe_bits = 4;  // of a weight: the type that is measured is the nearest
  /// The most groups that are measured; matrices of one kind in layers next to each other share
  /// one. Up to 96 matrices are measured one by one.
  int64_t max_probes = 96;
  std::function<void(int64_t done, int64_t total)> on_progress;
  const CancelFlag* cancel = nullptr;
  /// Of a matrix's errors: those that it knows are not measured, the others are added; null: none.
  MeasurementJournal* journal = nullptr;
};

/// For each of `tensors` (matrices of a plan with all importances), in order, every type that can
/// be written and that its rows fit, beside the type that it has already. Types that are made for
/// networks trained in them are left out. `kl`: NetworkProbe::kl, or what is known of it. Errors:
/// invalid_argument (a journal of another version), io, those of kl; cancelled.
std::vector<MatrixChoices> measure_choices(const std::vector<GgufTensor>& tensors, int n_layers,
                                           const MeasureKl& kl, ThreadPool& pool,
                                           const SensitivityOptions& options);

}  // namespace qw::quantize
