// A GGUF file whose codes are chosen by what their errors do to the outputs of matrices: the types,
// scales and bytes of the plain file, other codes.
//
// Level 6 (quantize). Each matrix is encoded as the plan has it, with its importances, and then put
// on the grid that came of it (steps, minima) once more, column by column, each column's error
// being made up for by the columns behind it (GPTQ; gptq_recode). Inputs are those of the network
// with all that comes before quantised. Types whose codes are not one for each weight (IQ1, IQ2,
// IQ3, TQ1_0) keep the codes that they have. What lies outside the layers (embedding, output
// matrix) is encoded as ever. docs/commands/quantize.md.
#pragma once

#include <functional>

#include "quantize/gguf_plan.h"
#include "quantize/layer_checkpoint.h"

namespace qw::quantize {

/// kept_dtype, shard_bytes and eos_ids have no meaning here. In on_layer QuantisedModule::recoding
/// is set of all matrices that have been recoded.
struct GgufFeedbackRequest : LayerRequest {
  double damp = 0.01;  // as GptqOptions::damp
  /// Where the plan has no importances yet: they are collected first, of the same calibration, and
  /// this gives the plan with them, of the same types. Kept in the work directory, as layers are.
  std::function<GgufPlan(ImportanceMatrix)> with_importance;
  /// Layers whose importances an interrupted run had; a layer's importances are there.
  std::function<void(int n_layers)> on_importance_resumed;
  std::function<void()> on_importance;
};

/// Makes the layers of `plan`, which must be of `source`, and calls write(plan with these) once all
/// are there. Interruptions and errors: as for write_layers.
void make_gguf_feedback(const LayerSource& source, const GgufPlan& plan,
                        const CalibrationSet& calibration, Backend& backend, ThreadPool& pool,
                        const GgufFeedbackRequest& request,
                        const std::function<void(const GgufPlan&)>& write);

/// Matrices whose codes can be chosen: none where all are copied, floats, or of types that have no
/// code for each weight.
int64_t recodable_matrices(const GgufPlan& plan);

/// Published bytes of the matrices that are made anew, for progress.
int64_t feedback_bytes(const GgufPlan& plan);

}  // namespace qw::quantize
