// The tokenizer in a GGUF file's metadata.
//
// Level 5 (model): where containers and text meet.
#pragma once

#include <optional>

#include "checkpoint/gguf.h"
#include "text/tokenizer_spec.h"

namespace qw {

/// Nothing when the file says that it has no vocabulary. Errors: corrupt, unsupported, naming the
/// key.
std::optional<TokenizerSpec> gguf_tokenizer_spec(const GgufMetadata& metadata);

}  // namespace qw
