// A tokenizer from the metadata of a GGUF file, given as plain arrays.
//
// Level 3 (text). This folder knows nothing of GGUF itself; whoever reads the file fills the struct
// with what stands under tokenizer.ggml.*.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "text/tokenizer_spec.h"

namespace qw {

struct GgufVocabulary {
  std::string source;                // the file, for messages
  std::string model;                 // tokenizer.ggml.model: "gpt2"
  std::optional<std::string> pre;    // .pre; absent in files of Qwen1.5's time
  std::vector<std::string> tokens;   // .tokens
  std::vector<int32_t> token_types;  // .token_type; empty, or one for each token
  std::vector<std::string> merges;   // .merges, "left right"
  std::optional<int64_t> bos_id, eos_id, pad_id, unk_id;  // .bos_token_id, ...
  bool add_bos = false;                                   // .add_bos_token
  std::optional<std::string> chat_template;
};

/// The spec in a GGUF vocabulary. Token types: 3 control (special), 4 user defined (added), 5
/// unused (padding rows), 1 normal. Padding rows of the converters of early 2024 are of type 4 with
/// the text [PADn]; these are padding too. Without `pre`, and for "default", the pattern is
/// Qwen2's. Errors: corrupt, unsupported (names the key).
TokenizerSpec spec_from_gguf(const GgufVocabulary& vocabulary);

}  // namespace qw
