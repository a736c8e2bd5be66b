// What OpenAI's addresses share: errors, usage, log-probabilities, server-sent events.
//
// Level 7 (server).
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "server/call.h"
#include "server/generation/job.h"
#include "server/generation/stream.h"
#include "server/generation/task.h"

namespace qw::server::openai {

extern const Dialect kOpenAi;

/// {"error": {"message", "type", "param", "code"}}.
Json error_body(const Error& error, int status);

/// {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}.
Json usage(int64_t n_prompt, int64_t n_generated, int64_t n_cached);
Json usage(const GenerationResult& result);

/// "stop", "length"; a cancelled answer is "stop".
std::string_view finish_reason(FinishReason reason);

/// choices[].logprobs: {"content": [{"token", "logprob", "bytes", "top_logprobs"}, ...]}.
Json chat_logprobs(std::span<const TokenLogprobs> entries, const Tokenizer& tokenizer,
                   bool names_are_ids);
/// Whether tokens of logprobs are "token_id:N".
template <typename Task>
Field<Task> token_names_field(bool Task::*member) {
  return flag_field<Task>("return_tokens_as_token_ids", member,
                          "vLLM's: tokens of logprobs are \"token_id:N\"");
}

/// vLLM's prompt_logprobs: null for the first token, then {"id": {"logprob", "rank",
/// "decoded_token"}} with the chosen token and the likeliest.
Json prompt_logprobs(std::span<const TokenLogprobs> entries, const Tokenizer* tokenizer);

/// stream_options of a task with stream, include_usage and continuous_usage.
struct StreamOptions {
  bool stream = false, include_usage = false, continuous_usage = false;
};
template <typename Task>
void add_stream_fields(FieldTable<Task>& table) {
  table.push_back(flag_field<Task>(
      "stream", [](Task & t) -> auto& { return t.stream.stream; }));
  table.push_back(flag_field<Task>(
      "stream_options.include_usage", [](Task & t) -> auto& { return t.stream.include_usage; }));
  table.push_back(flag_field<Task>(
      "stream_options.continuous_usage_stats",
      [](Task & t) -> auto& { return t.stream.continuous_usage; }));
  table.push_back(ignored<Task>("stream_options.include_obfuscation", "nothing is padded"));
}

/// Says so where options of a stream are given without one.
template <typename Task>
void check_stream_options(Task& task) {
  if (!task.stream.stream && (task.stream.include_usage || task.stream.continuous_usage))
    task.warnings.push_back("stream_options: no effect (stream is not true)");
}

/// What ended an answer, as vLLM has it: the client's stop string or stop token; null: neither.
template <typename End>  // a Completion, or an Event of kCompletion
Json stop_reason(const End& end, const GenerationTask& task) {
  if (end.finish_reason == FinishReason::kStop && task.asks_to_stop_at(end.stop_string))
    return end.stop_string;
  if (end.finish_reason == FinishReason::kEos && end.stop_token) return *end.stop_token;
  return nullptr;
}

/// The n best of more answers, by mean log-probability, ties to the lower index; renumbered.
std::vector<const Completion*> best_answers(const RequestResult& result, int64_t n);

std::vector<Endpoint> chat_endpoints();
std::vector<Endpoint> classify_endpoints();
std::vector<Endpoint> completion_endpoints();
std::vector<Endpoint> embedding_endpoints();
std::vector<Endpoint> model_endpoints();
std::vector<Endpoint> adapter_endpoints();
std::vector<Endpoint> response_endpoints();

}  // namespace qw::server::openai
