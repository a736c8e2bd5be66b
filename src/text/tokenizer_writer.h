// A tokenizer as the files of a Hugging Face directory.
//
// Level 3 (text). For checkpoints whose tokenizer came in another container. Source: the files of
// Transformers' Qwen2Tokenizer.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "text/tokenizer_spec.h"

namespace qw {

/// vocab.json, merges.txt and tokenizer_config.json: names and contents. Errors: unsupported, for a
/// tokenizer that is not of Qwen2's kind (byte-level BPE, its pattern, NFC).
std::vector<std::pair<std::string, std::string>> tokenizer_files_of(const TokenizerSpec& spec);

}  // namespace qw
