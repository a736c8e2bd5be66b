// A whole checkpoint to a quantised directory, layer by layer: what is on the way is on disk, so an
// interruption costs a layer at most.
//
// Level 6 (quantize). What GPTQ, AWQ and nf4 have in common. Memory: the calibration tokens
// (layer_pass.h) and whatever a layer takes.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "model/sources.h"
#include "quantize/blocked_matrix.h"
#include "quantize/calibration.h"
#include "quantize/directory_plan.h"
#include "quantize/layer_pass.h"
#include "quantize/quantised_layer.h"

namespace qw::quantize {

/// What is asked for, whatever the format.
struct LayerRequest {
  std::string output;                  // the directory or file to make
  std::string work;                    // the directory of what is on the way; "": output + ".work"
  bool keeps_work = false;             // it stays: the same request then finds all layers there
  bool replaces = false;               // what is there under `output`, once the new one is whole
  std::string isa;                     // as BackendOptions::isa
  std::string component = "quantize";  // the command, for errors
  int64_t shard_bytes = DirectoryChoices().shard_bytes;
  std::vector<int32_t> eos_ids;  // of a GGUF file: DirectoryChoices::eos_ids
  /// Of all but the matrices that are quantised; those who read GPTQ and AWQ expect f16.
  DType kept_dtype = DType::kF16;
  const CancelFlag* cancel = nullptr;
  /// The first so many layers were done before an interruption; called before any is made.
  std::function<void(int n_layers)> on_resumed;
  /// A layer is done (or was, before an interruption: then without modules).
  std::function<void(int layer, const std::vector<QuantisedModule>&)> on_layer;
  /// Published bytes of matrices that are done; bytes of the output that are written.
  std::function<void(int64_t)> on_quantised, on_written;
};

/// What will be written, before anything is computed.
struct LayerPlan {
  /// All but the matrices that are quantised, in LayerRequest::kept_dtype. Of what a layer changes
  /// beside them (norms), the layer's own tensor takes the place.
  DirectoryPlan kept;
  int64_t n_matrices = 0, n_weights = 0;  // that are quantised
  int64_t quantised_bytes = 0;            // of these, in the output
  int64_t source_bytes = 0;               // of these, as published
  std::vector<std::string> warnings;      // a sentence each

  int64_t bytes() const { return quantised_bytes + kept.n_bytes(); }
  double bits_per_weight() const;  // of the matrices that are quantised
};

/// What a checkpoint is read from. All must outlive whatever holds this.
struct LayerSource {
  const Checkpoint& checkpoint;
  const ModelConfig& config;
  const NetworkSources& sources;
};

/// Calls visit(parts) for the matrices of a layer that are quantised: all but routers and the gate
/// of a shared expert.
void for_each_quantised(const LayerSources& layer,
                        const std::function<void(const LinearParts&)>& visit);

/// Names of the layers' modules that are not quantised: routers and the gate of a shared expert.
std::vector<std::string> unquantised_modules(const NetworkSources& sources);

/// `quantization_config`, a JSON object, goes into config.json. `bytes_of` is the size of a matrix
/// in the output, and throws for one that the format cannot hold. `tokenizer`: see
/// plan_directory().
LayerPlan plan_layers(const LayerSource& source, const TokenizerSpec* tokenizer,
                      const LayerRequest& request, const std::string& quantization_config,
                      const std::function<int64_t(const ModuleId&, const LinearSource&)>& bytes_of);

/// Writes a directory of layers that need no calibration: `make` gives a layer's tensors, which
/// depend on the checkpoint and the config.json of `plan` alone. Interruptions and errors: as for
/// write_layers.
void write_made_layers(const LayerSource& source, const LayerPlan& plan, ThreadPool& pool,
                       const LayerRequest& request,
                       const std::function<std::vector<RawTensor>(const LayerSources&)>& make);

/// All that the bits of a result depend on, as text. `method`: LayerMethod::job. Without
/// calibration and backend: of what depends on neither.
std::string job_text(const Checkpoint& checkpoint, const std::string& method);
std::string job_text(const Checkpoint& checkpoint, const CalibrationSet& calibration,
                     const Backend& backend, const std::string& method);

/// How a format quantises.
struct LayerMethod {
  /// A JSON object: all that the bits of the result depend on, beside checkpoint, calibration and
  /// backend.
  std::string job;
  /// Quantises the layer that `pass` stands before, and moves it behind that layer.
  std::function<QuantisedLayer(const LayerSources&, const MatrixTeam&, LayerPass& pass)> quantise;
  /// Called before all else once the work directory is known to be this job's.
  std::function<void(const std::string& work)> prepare = {};
};

/// Quantises layer by layer, then calls finish(made) with the tensors of all of them, which must
/// leave the output. All else as for write_layers.
void make_layers(const LayerSource& source, const CalibrationSet& calibration, Backend& backend,
                 ThreadPool& pool, const LayerRequest& request, const LayerMethod& method,
                 const std::function<void(std::span<const RawTensor>)>& finish);

/// Quantises and writes. A calibration without sequences is for a method that looks at no inputs
/// and uses `pass` only to move on. An interruption leaves the work directory, and the same
/// request goes on with the layer after the last that was finished, to the same bits. Errors:
/// invalid_argument (the output is there, the work directory is another job's), those of
/// method.quantise, io, cancelled.
void write_layers(const LayerSource& source, const LayerPlan& plan,
                  const CalibrationSet& calibration, Backend& backend, ThreadPool& pool,
                  const LayerRequest& request, const LayerMethod& method);

}  // namespace qw::quantize
