// A whole checkpoint to AWQ, layer by layer: what comes out is a directory that Transformers,
// AutoAWQ, vLLM and this program read.
//
// Level 6 (quantize). Memory: as GPTQ's (gptq_checkpoint.h), and one matrix in f32.
#pragma once

#include "quantize/awq_layer.h"
#include "quantize/layer_checkpoint.h"

namespace qw::quantize {

struct AwqRequest : LayerRequest {
  AwqOptions awq;
};

/// `sources` must outlive the plan's use; `tokenizer`: see plan_directory(). Errors: unsupported
/// (sizes that the layout cannot hold, by module, and which can), invalid_argument (options).
LayerPlan plan_awq(const LayerSource& source, const TokenizerSpec* tokenizer,
                   const AwqRequest& request);

/// Quantises and writes: write_layers(). Errors: those of that and of awq_layer().
void write_awq(const LayerSource& source, const LayerPlan& plan, const CalibrationSet& calibration,
               Backend& backend, ThreadPool& pool, const AwqRequest& request);

}  // namespace qw::quantize
