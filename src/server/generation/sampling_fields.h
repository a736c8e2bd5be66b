// Fields that steer generation, under the names that OpenAI's and vLLM's clients use: shared by
// every endpoint that takes them.
//
// Level 7 (server).
#pragma once

#include <string>

#include "engine/fair_queue.h"
#include "server/fields.h"
#include "server/generation/task.h"

namespace qw::server {

/// A field that is a parameter of GenerationConfig under the name `parameter`.
template <typename Task>
Field<Task> parameter_field(std::string name, std::string parameter, std::string note = "") {
  return honoured<Task>(
             name,
             [name, parameter](const Json& value, Task& task) { task.set(name, parameter, value); },
             std::move(note))
      .as(GenerationConfig::schema(parameter));
}

/// A seed; negative numbers ask for a random one.
template <typename Task>
Field<Task> seed_field(std::string name) {
  auto read = [name](const Json& value, Task& task) {
    const int64_t seed = to_integer(name, value);
    if (seed >= 0) task.seed = static_cast<uint64_t>(seed);
  };
  return honoured<Task>(name, std::move(read), "negative: a random one").as(types::integer());
}

/// A string, or a list of them, that ends the answer.
template <typename Task>
Field<Task> stop_field(std::string name) {
  auto read = [name](const Json& value, Task& task) {
    const std::vector<std::string> stop = to_strings(name, value);
    if (!stop.empty()) task.set(name, "stop_strings", stop);
  };
  return honoured<Task>(name, std::move(read)).as(types::strings());
}

/// The most tokens of an answer; negative: as many as fit the context.
template <typename Task>
Field<Task> limit_field(std::string name) {
  auto read = [name](const Json& value, Task& task) {
    const int64_t limit = to_integer(name, value);
    if (limit >= 0) task.set(name, "max_new_tokens", limit);
  };
  return honoured<Task>(name, std::move(read), "negative: as many as fit the context")
      .as(types::integer());
}

/// The penalties' window. Ours look at the whole text: no window is honoured, none too.
template <typename Task>
Field<Task> penalty_window_field(std::string name) {
  auto read = [name](const Json& value, Task& task) {
    const int64_t window = to_integer(name, value, -1);
    task.no_penalties = window == 0;
    if (window > 0) {
      task.warnings.push_back(
          fmt::format("{}: ignored (penalties look at the whole text, not at its last {} tokens)",
                      name, window));
    }
  };
  return honoured<Task>(name, std::move(read),
                        "-1 (all) and 0 (no penalty); other windows are ignored with a warning")
      .as(types::integer(-1));
}

/// How much of a prompt is kept (vLLM's name).
template <typename Task>
Field<Task> truncate_field() {
  const auto read = [](const Json& value, Task& task) {
    const int64_t n_kept = to_integer("truncate_prompt_tokens", value, -1);
    if (n_kept == 0) refuse_field("truncate_prompt_tokens", "expected -1 or at least 1, got 0");
    task.truncate_prompt_tokens = n_kept;
  };
  return honoured<Task>("truncate_prompt_tokens", read,
                        "the last so many are kept; -1: as many as fit the context")
      .as({{"type", "integer"}, {"minimum", -1}, {"not", {{"const", 0}}}});
}

/// Whose prompts a request may share (vLLM's name).
template <typename Task>
Field<Task> salt_field() {
  const auto read = [](const Json& value, Task& task) {
    task.cache_salt = to_string("cache_salt", value);
    // A client that means to be alone must not end up among all others.
    if (task.cache_salt.empty()) refuse_field("cache_salt", "expected a text, got an empty one");
  };
  return honoured<Task>("cache_salt", read,
                        "what is kept of prompts is shared only among requests with the same one")
      .as({{"type", "string"}, {"minLength", 1}});
}

/// The longest that the answer may take.
template <typename Task>
Field<Task> timeout_field() {
  const auto read = [](const Json& value, Task& task) {
    const double seconds = to_number("timeout", value);
    if (!(seconds > 0 && seconds <= kLongestTimeout))
      refuse_field("timeout", "expected seconds above 0 and up to {}, got {}", kLongestTimeout,
                   shown(value));
    task.timeout_s = seconds;
  };
  return honoured<Task>("timeout", read,
                        "seconds that the answer may take, waiting included; status 504 beyond")
      .as({{"type", "number"}, {"exclusiveMinimum", 0}, {"maximum", kLongestTimeout}});
}

/// Fields of the server's own, that every dialect has.
template <typename Task>
void add_server_fields(FieldTable<Task>& table) {
  table.push_back(flag_field<Task>("receipt", &Task::receipt,
                                   "the answer comes with all that its tokens depend on, for "
                                   "`qianwen replay`"));
  table.push_back(timeout_field<Task>());
  table.push_back(salt_field<Task>());
}

/// Who asks, as the client says.
template <typename Task>
Field<Task> user_field(std::string name) {
  return string_field<Task>(name, &Task::user,
                            "tells clients apart where no keys are in use, so that none waits for "
                            "another's many requests; nothing is kept");
}

/// OpenAI's own.
template <typename Task>
void add_openai_sampling_fields(FieldTable<Task>& table) {
  for (const char* name :
       {"temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias"})
    table.push_back(parameter_field<Task>(name, name));
  table.push_back(honoured<Task>("seed", [](const Json& value, Task& task) {
                    task.seed = static_cast<uint64_t>(to_integer("seed", value));
                  }).as(types::integer()));
  table.push_back(honoured<Task>("stop", [](const Json& value, Task& task) {
                    task.set("stop", "stop_strings", to_strings("stop", value));
                  }).as(types::strings()));
  table.push_back(integer_field<Task>("n", &Task::n, 1, 128));
}

/// What vLLM adds, and Transformers' other parameters under their own names.
template <typename Task>
void add_extra_sampling_fields(FieldTable<Task>& table) {
  table.push_back(honoured<Task>(
                      "top_k",
                      [](const Json& value, Task& task) {
                        const int64_t top_k = to_integer("top_k", value, -1);
                        task.set("top_k", "top_k", std::max<int64_t>(top_k, 0));
                      },
                      "-1 or 0: off")
                      .as(types::integer(-1)));
  table.push_back(parameter_field<Task>("min_tokens", "min_new_tokens"));
  for (const char* name :
       {"min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
        "length_penalty", "early_stopping", "ignore_eos", "include_stop_str_in_output", "do_sample",
        "no_repeat_ngram_size", "guidance_scale", "prompt_lookup_num_tokens", "prompt_logprobs"})
    table.push_back(parameter_field<Task>(name, name));
  table.push_back(parameter_field<Task>("num_assistant_tokens", "num_assistant_tokens",
                                        "guesses of the draft model in a step, at most; 0: none"));
  table.push_back(parameter_field<Task>(
      "num_assistant_tokens_schedule", "num_assistant_tokens_schedule",
      "heuristic: as many guesses as pay; constant: always as many as there may be"));
  table.push_back(ids_field<Task>("stop_token_ids", &Task::stop_token_ids));
  table.push_back(ids_field<Task>("allowed_token_ids", &Task::allowed_token_ids));
  table.push_back(strings_field<Task>("bad_words", &Task::bad_words));
  table.push_back(flag_field<Task>("skip_special_tokens", &Task::skip_special_tokens));
  table.push_back(truncate_field<Task>());
  table.push_back(integer_field<Task>("best_of", &Task::best_of, 1, 128,
                                      "so many answers, of which the n likeliest are returned; more than n are not streamed"));
  table.push_back(flag_field<Task>("use_beam_search", &Task::use_beam_search,
                                   "n (or best_of) beams, of which n are returned"));
  table.push_back(honoured<Task>(
                      "priority",
                      [](const Json& value, Task& task) {
                        task.priority = to_integer("priority", value, -FairQueue::kMaxPriority,
                                                   FairQueue::kMaxPriority);
                      },
                      "lower goes first among the client's own; before others' only of an "
                      "administrator's key, or where no keys are in use; nobody waits for ever")
                      .as(types::integer(-FairQueue::kMaxPriority, FairQueue::kMaxPriority)));
  table.push_back(ignored<Task>("spaces_between_special_tokens",
                                "Qwen's tokenizer never puts spaces between tokens"));
  table.push_back(ignored<Task>("request_id", "the server numbers requests itself"));
}

}  // namespace qw::server
