// Adapters merged into a checkpoint in its own format: what they change is written on the grids
// that it has, and every other tensor is copied byte by byte.
//
// Level 6 (quantize). GPTQ, AWQ, nf4 and fp4, GGML's blocks with a code for each weight. Layer by
// layer, with the inputs that the merged network gives (layer_pass.h), as GPTQ quantises;
// embedding, output matrix and norms are rounded to their types. docs/commands/merge.md.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "checkpoint/gguf_split.h"
#include "quantize/adapter_merge.h"
#include "quantize/layer_checkpoint.h"

namespace qw::quantize {

/// kept_dtype and eos_ids have no meaning here. In on_layer QuantisedModule::recoding is set.
struct OwnFormatRequest : LayerRequest {
  double damp = 0.01;     // as GptqOptions::damp
  GgufSplitLimits split;  // of a GGUF file
  /// A layer is about to be made; not called for those that were there before an interruption.
  std::function<void(int layer)> on_begin;
  std::string adapters_job;  // a JSON value that tells these adapters from others
};

/// What will be written.
struct OwnFormatPlan {
  int64_t n_recoded = 0, n_recoded_weights = 0;  // matrices that get other codes
  int64_t recoded_bytes = 0;                     // of these, as published
  int64_t n_rounded = 0;               // matrices and norms that are rounded to their type
  int64_t n_tensors = 0, n_bytes = 0;  // of the output
  std::vector<std::string> warnings;
};

/// Errors: unsupported, naming a matrix that adapters change and whose format has no code for each
/// weight, or an output matrix of groups or nf4.
OwnFormatPlan plan_own_format(const LayerSource& source, const AdapterMerge& merge);

/// Writes a directory, or a GGUF file of one; it appears when it is whole. `calibration` may be
/// empty where no matrix is recoded. Interruptions and errors: as for write_layers.
void write_own_format(const LayerSource& source, const AdapterMerge& merge,
                      const CalibrationSet& calibration, Backend& backend, ThreadPool& pool,
                      const OwnFormatRequest& request);

}  // namespace qw::quantize
