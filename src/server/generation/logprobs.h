// Log-probabilities as most clients read them.
//
// Level 7 (server).
#pragma once

#include <span>
#include <string>

#include "engine/engine.h"
#include "server/fields.h"

namespace qw::server {

/// How tokens are told.
struct TokenForm {
  bool with_ids = false;       // "id" before the others
  bool names_are_ids = false;  // "token" is "token_id:N", which tells any two apart
};
/// A token's name: its text, a part of a character as U+FFFD, or "token_id:N".
std::string token_name(int32_t id, const Tokenizer& tokenizer, bool names_are_ids);
/// The same for keys: a token that is no whole character is its bytes, as in OpenAI's older API
/// ("bytes:\xe4\xb8").
std::string distinct_token_name(int32_t id, const Tokenizer& tokenizer);

/// {"token", "bytes", "logprob"}; the bytes are the text's, whatever the form.
Json logprob_json(const Logprob& logprob, const Tokenizer& tokenizer, TokenForm form = {});

/// The chosen token's, and "top_logprobs": the likeliest.
Json logprobs_json(const TokenLogprobs& entry, const Tokenizer& tokenizer, TokenForm form = {});
/// A list of them.
Json logprobs_json(std::span<const TokenLogprobs> entries, const Tokenizer& tokenizer,
                   TokenForm form = {});

}  // namespace qw::server
