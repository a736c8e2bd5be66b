// The metadata of a GGUF file made from a Hugging Face checkpoint, as llama.cpp's converter writes
// it: same keys, types and values, in the same order.
//
// Level 6 (quantize). Source: the GGUF specification and convert_hf_to_gguf.py of August 2026.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/config.h"
#include "text/tokenizer_spec.h"

namespace qw {

using GgufEntries = std::vector<std::pair<std::string, GgufValue>>;

/// How many parameters a model has, as general.size_label tells it: "7.7B", or "8x145K" for
/// `n_experts` of `per_expert` parameters beside `shared` ones (norms and biases count).
struct ParameterCount {
  int64_t shared = 0, per_expert = 0;
  int n_experts = 0;
};
std::string size_label(const ParameterCount& count);

/// Everything before the tensors. `tokenizer` null: a checkpoint without one, whose file holds no
/// vocabulary. `file_type`: what general.file_type says of the types. Errors: unsupported, for what
/// the format cannot say (rope scaling, layers that are not all alike, a pattern of the tokenizer).
GgufEntries gguf_entries(const Checkpoint& checkpoint, const ModelConfig& config,
                         const TokenizerSpec* tokenizer, const ParameterCount& count,
                         const std::string& name, uint32_t file_type);

}  // namespace qw
