// A checkpoint to a Hugging Face directory with matrices in nf4, as Transformers saves a model that
// bitsandbytes quantised.
//
// Level 6 (quantize). Looks at the weights alone: no calibration. Source of the layout:
// Transformers 4.57, bitsandbytes 0.50.2.
#pragma once

#include "quant/bitsandbytes.h"
#include "quantize/layer_checkpoint.h"

namespace qw::quantize {

struct Nf4Request : LayerRequest {
  Nf4Options nf4;
};

/// The type of what is not quantised, and of the values that nf4 stands for: the checkpoint's own,
/// bf16 where that is no float of 16 or 32 bits.
DType nf4_dtype(const NetworkSources& sources);

/// `request.kept_dtype` and `request.nf4.dtype` are to be nf4_dtype(). `tokenizer`: see
/// plan_directory(). Errors: invalid_argument (block size).
LayerPlan plan_nf4(const LayerSource& source, const TokenizerSpec* tokenizer,
                   const Nf4Request& request);

/// Errors: as write_layers; invalid_argument, for weights that the type cannot hold.
void write_nf4(const LayerSource& source, const LayerPlan& plan, Backend& backend, ThreadPool& pool,
               const Nf4Request& request);

}  // namespace qw::quantize
