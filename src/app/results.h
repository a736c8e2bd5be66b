// Results of the engine as JSON: the one place that decides field names.
//
// Level 8 (app).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "engine/engine.h"

namespace qw {
class Tokenizer;
}

namespace qw::app {

/// [{"id", "token"?, "logprob", "rank", "top": [...]}]; tokenizer null: ids only.
nlohmann::ordered_json logprobs_json(const std::vector<TokenLogprobs>& logprobs,
                                     const Tokenizer* tokenizer);
nlohmann::ordered_json timings_json(const Timings& timings);
/// {"text", "ids", "finish_reason", "logprobs"?, ...} of one answer.
nlohmann::ordered_json completion_json(const Completion& completion, const Tokenizer* tokenizer);
/// "12.3 tok/s" line for people.
std::string timings_text(const Timings& timings);

}  // namespace qw::app
