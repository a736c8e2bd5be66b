// Reads tokenizer.json, the one-file form of Hugging Face's tokenizers.
//
// Level 3 (text). The file is read in one pass: vocabulary and merges, which are nearly all of it,
// go straight into the spec; the small rest becomes a document and is checked field by field. What
// we cannot do exactly is refused by the name of its field, never ignored.
#pragma once

#include <string>
#include <string_view>

#include "text/tokenizer_spec.h"

namespace qw {

/// The spec in `json`. Supported: BPE, byte-level or with byte fallback; normalizer null, NFC,
/// Prepend, Replace of a string and sequences of these; the split patterns of splitter.h.
/// `source` names the file in messages. Errors: corrupt (not the format), unsupported (names the
/// field).
TokenizerSpec read_tokenizer_json(std::string_view json, const std::string& source);

/// The tokens of a vocab.json ({"text": id, ...}), by id. Errors: corrupt.
std::vector<std::string> read_vocab_json(std::string_view json, const std::string& source);

}  // namespace qw
