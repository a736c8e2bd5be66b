// config.json and generation_config.json of a directory that is made of another checkpoint.
//
// Level 6 (quantize).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/config.h"

namespace qw {

/// config.json: the checkpoint's own, without its quantisation, or for a GGUF file what
/// Transformers needs to know of the network. `dtype`: of the weights; `tied`: lm_head is the
/// embedding. Errors: unsupported, for what the file cannot say.
std::string directory_config(const Checkpoint& checkpoint, const ModelConfig& config, DType dtype,
                             bool tied);

/// generation_config.json of a GGUF file: end tokens (empty: the metadata's) and what it says of
/// sampling.
std::string directory_generation_config(const Checkpoint& checkpoint, const ModelConfig& config,
                                        const std::vector<int32_t>& eos_ids);

}  // namespace qw
