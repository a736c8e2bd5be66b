// What a client may ask of a generation, in the project's own terms: the middle between dialects
// and the engine.
//
// Level 7 (server). Dialects fill a task; prepare() makes the engine's requests of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine/bundle.h"
#include "engine/grammar/grammar_cache.h"
#include "server/fields.h"
#include "server/generation/tools.h"
#include "server/model_hub.h"

namespace qw::server {

/// A prompt as text or as ids.
struct PromptInput {
  std::string text;
  std::vector<int32_t> ids;
  bool is_ids = false;
};

struct GenerationTask {
  std::string model;  // "": the default
  /// Instead of those that the model's name stands for.
  std::optional<std::vector<AdapterScale>> adapters;

  // What to go on with: a conversation, or prompts.
  std::optional<ChatInput> chat;
  std::optional<ToolTask> tools;                         // with chat, whose messages are these
  std::string variables_field = "chat_template_kwargs";  // of the template
  std::vector<PromptInput> prompts;
  std::string prompt_field;  // the client's name for what it goes on with; "": prompt, messages
  bool add_special_tokens = true;                 // to prompts of text
  std::optional<int64_t> truncate_prompt_tokens;  // keep the last so many; -1: as many as fit

  /// What the answers may be, but for calls of tools; and the field that says so.
  std::optional<GrammarSource> grammar;
  std::string grammar_field;
  bool grammar_forbids_calls = false;
  std::optional<std::string> whitespace_pattern;  // of JSON
  std::string whitespace_field;                   // that says so

  /// Generation parameters, in the order given.
  struct Parameter {
    std::string field;  // as the client calls it, for errors
    std::string name;   // of GenerationConfig
    Json value;
  };
  std::vector<Parameter> parameters;
  std::vector<int32_t> stop_token_ids;
  std::string stop_token_ids_field = "stop_token_ids";
  /// As SGLang has it; elsewhere they are words that end the answer.
  bool ignore_eos_ignores_stop_tokens = false;
  /// Whether stop strings wait for min_new_tokens, as vLLM has it; SGLang's end the answer anyway.
  bool min_tokens_before_stops = true;
  std::optional<std::vector<int32_t>> allowed_token_ids;
  std::vector<std::string> bad_words;
  std::optional<uint64_t> seed;    // nullopt: a random one
  int64_t n = 1;                   // answers to each prompt
  std::optional<int64_t> best_of;  // of so many, the n likeliest
  bool use_beam_search = false;
  bool skip_special_tokens = true;
  Pooling pooling = Pooling::kNone;
  int64_t priority = 0;    // lower goes first
  std::string cache_salt;  // whose prompts it may share; "": those of all without
  /// Tokens that prompt and answer may have together, and the field that says so; nullopt: as many
  /// as are served.
  std::optional<int64_t> context;
  std::string context_field;
  bool no_penalties = false;        // whatever the parameters say
  bool receipt = false;             // wanted with the answer (server/receipt.h)
  std::optional<double> timeout_s;  // the longest that the answer may take
  std::string user;                 // who asks, as the client says; "": unknown

  /// What cannot be filled in before the model is there; called once, before prepare().
  std::function<void(GenerationTask& task, const ServedModel& model)> complete;
  /// For the client, a sentence each.
  std::vector<std::string> warnings;

  /// A conversation in OpenAI's form, with what `with` says of tools and of its end.
  void set_chat(const Json& messages, const ToolTask& with);
  /// Whether the client gave a parameter by this field.
  bool has(std::string_view field) const {
    return std::ranges::find(parameters, field, &Parameter::field) != parameters.end();
  }
  /// Whether the client asked for an end at this text. Tool formats and checkpoints have stop
  /// strings of their own, which are none of its affair.
  bool asks_to_stop_at(std::string_view stop_string) const;
  void set(std::string field, std::string name, Json value) {
    parameters.push_back({std::move(field), std::move(name), std::move(value)});
  }
};

/// A task ready for the engine.
struct Prepared {
  std::shared_ptr<ServedModel> model;
  std::vector<Request> requests;       // one for each prompt
  std::shared_ptr<ToolStreams> tools;  // null: answers are text only
  /// So many answers to each prompt are one answer's copies: it was asked for several where all
  /// would be the same.
  int64_t n_copies = 1;
  Json receipt;  // what is known of it now; null: none is wanted
  std::vector<std::string> warnings;
};

/// The conversation of a task that has one as the model's tool format writes it, ready to be
/// rendered. Errors: RequestError naming the tool or message.
ChatInput chat_of(const GenerationTask& task, const ServedModel& model);

/// What preparing may do.
struct PrepareOptions {
  bool model_defaults = true;  // of the checkpoint
  /// What constrains the answers: kKnown takes grammars that are compiled already, kNone leaves
  /// them out, for who wants the prompts only.
  enum class Grammars { kCompile, kKnown, kNone } grammars = Grammars::kCompile;
  const CancelFlag* cancel = nullptr;  // ends it once it is set
};

/// nullopt: only under kKnown, a grammar has to be compiled first. Errors: RequestError naming the
/// client's field; those of the template and the tokenizer; cancelled.
std::optional<Prepared> prepare(const GenerationTask& task, std::shared_ptr<ServedModel> model,
                                const PrepareOptions& options);

}  // namespace qw::server
