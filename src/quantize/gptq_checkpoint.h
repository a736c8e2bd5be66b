// A whole checkpoint to GPTQ, layer by layer: what comes out is a directory that Transformers,
// AutoGPTQ, vLLM and this program read.
//
// Level 6 (quantize). Memory: the calibration tokens (layer_pass.h), one layer, and the moments of
// its widest matrix (gptq_factor.h).
#pragma once

#include <map>
#include <string>

#include "quantize/gptq_layer.h"
#include "quantize/layer_checkpoint.h"

namespace qw::quantize {

struct GptqRequest : LayerRequest {
  GptqOptions gptq;
  bool true_sequential = true;
  /// Of modules by name ("model.layers.0.self_attn.q_proj") that have others than gptq.bits: all
  /// that share their inputs have the same. The file says so as gptq_rules.h does.
  std::map<std::string, int> bits;

  GptqOptions options_of(const ModuleId& id) const;
};

/// What a matrix [n, k] takes in a file, its bias beside it where one is written.
int64_t gptq_bytes(const ModuleId& id, int64_t n, int64_t k, const GptqOptions& options);

/// `sources` must outlive the plan's use; `tokenizer`: see plan_directory(). Errors: unsupported
/// (sizes that the format or those who read it cannot hold, by module), invalid_argument (options).
LayerPlan plan_gptq(const LayerSource& source, const TokenizerSpec* tokenizer,
                    const GptqRequest& request);

/// Quantises and writes: write_layers(). Errors: those of that and of gptq_layer().
void write_gptq(const LayerSource& source, const LayerPlan& plan, const CalibrationSet& calibration,
                Backend& backend, ThreadPool& pool, const GptqRequest& request);

/// All that the bits of what write_gptq() writes depend on, as text.
std::string gptq_job(const LayerSource& source, const CalibrationSet& calibration,
                     const Backend& backend, const GptqRequest& request);

/// A finished matrix's tensors. Those without a bias (all but q, k, v) get one of zeros, as
/// AutoGPTQ writes it. Errors: those of publish_gptq.
void add_gptq_tensors(const QuantisedModule& module, bool v2_zeros, std::vector<RawTensor>& out);

}  // namespace qw::quantize
