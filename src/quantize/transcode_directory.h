// A quantised checkpoint's codes as a GPTQ or AWQ directory: no weight is rounded where the grid of
// the source is one of the format.
//
// Level 6 (quantize). docs/transcoding.md has the table.
#pragma once

#include "quant/awq.h"
#include "quantize/layer_checkpoint.h"

namespace qw::quantize {

struct TranscodeRequest : LayerRequest {
  enum class Format { kGptq, kAwq };
  Format format = Format::kGptq;
  bool zero_from_0 = false;                // GPTQ: checkpoint_format gptq_v2
  AwqVersion version = AwqVersion::kGemm;  // AWQ
};

/// What would be written. Errors: invalid_argument (weights that are not quantised), unsupported
/// (matrices of several grids, grids or sizes that the format has not).
LayerPlan plan_transcode(const LayerSource& source, const TokenizerSpec* tokenizer,
                         const TranscodeRequest& request);

/// Writes the directory, as write_layers does. Errors: those of publish_gptq and publish_awq, io,
/// cancelled.
void write_transcoded(const LayerSource& source, const LayerPlan& plan, ThreadPool& pool,
                      const TranscodeRequest& request);

}  // namespace qw::quantize
