// Log-probabilities as most clients read them.
//
// Level 7 (server).
#pragma once

#include <span>

#include "engine/engine.h"
#include "server/fields.h"

namespace qw::server {

/// {"token", "bytes", "logprob"}; with_ids: "id" before them. A part of a character shows as U+FFFD
/// in "token".
Json logprob_json(const Logprob& logprob, const Tokenizer& tokenizer, bool with_ids = false);

/// The chosen token's, and "top_logprobs": the likeliest.
Json logprobs_json(const TokenLogprobs& entry, const Tokenizer& tokenizer, bool with_ids = false);
/// A list of them.
Json logprobs_json(std::span<const TokenLogprobs> entries, const Tokenizer& tokenizer,
                   bool with_ids = false);

}  // namespace qw::server
