// A whole checkpoint to GPTQ, layer by layer: what is on the way is on disk, what comes out is a
// directory that Transformers, AutoGPTQ, vLLM and this program read.
//
// Level 6 (quantize). Memory: the calibration tokens (layer_pass.h), one layer, and the moments of
// its widest matrix (gptq_factor.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "model/sources.h"
#include "quantize/calibration.h"
#include "quantize/directory_plan.h"
#include "quantize/gptq_layer.h"

namespace qw::quantize {

struct GptqRequest {
  GptqOptions gptq;
  bool true_sequential = true;
  std::string output;  // the directory to make
  std::string isa;     // as BackendOptions::isa
  int64_t shard_bytes = DirectoryChoices().shard_bytes;
  std::vector<int32_t> eos_ids;  // of a GGUF file: DirectoryChoices::eos_ids
  const CancelFlag* cancel = nullptr;
  /// A layer is done (or was, before an interruption: then without modules).
  std::function<void(int layer, const std::vector<GptqModule>&)> on_layer;
  /// Published bytes of matrices that are done; bytes of the output that are written.
  std::function<void(int64_t)> on_quantised, on_written;
};

/// What will be written, before anything is computed.
struct GptqPlan {
  DirectoryPlan
      kept;  // all but the matrices that are quantised; in f16, as those who read GPTQ expect
  int64_t n_matrices = 0, n_weights = 0;  // that are quantised
  int64_t quantised_bytes = 0;            // of these, in the output
  int64_t source_bytes = 0;               // of these, as published
  std::vector<std::string> warnings;      // a sentence each

  int64_t bytes() const { return quantised_bytes + kept.n_bytes(); }
  double bits_per_weight() const;  // of the matrices that are quantised
};

/// `sources` must outlive the plan's use; `tokenizer`: see plan_directory(). Errors: unsupported
/// (sizes that the format or those who read it cannot hold, by module), invalid_argument (options).
GptqPlan plan_gptq(const Checkpoint& checkpoint, const ModelConfig& config,
                   const NetworkSources& sources, const TokenizerSpec* tokenizer,
                   const GptqRequest& request);

/// Quantises and writes. An interruption leaves request.output + ".work", and the same request
/// goes on with the layer after the last that was finished, to the same bits. Errors:
/// invalid_argument (the output is there, the work directory is another job's), those of
/// gptq_layer(), io, cancelled.
void write_gptq(const Checkpoint& checkpoint, const ModelConfig& config,
                const NetworkSources& sources, const GptqPlan& plan,
                const CalibrationSet& calibration, Backend& backend, ThreadPool& pool,
                const GptqRequest& request);

}  // namespace qw::quantize
