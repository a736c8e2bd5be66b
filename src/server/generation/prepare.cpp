#include <algorithm>
#include <random>
#include <set>

#include "engine/grammar/grammar_processor.h"
#include "engine/logits_process.h"
#include "server/generation/allowed_tokens.h"
#include "server/generation/client_words.h"
#include "server/generation/task.h"
#include "server/receipt.h"
#include "text/chat_template.h"
#include "text/stop_strings.h"
#include "text/tokenizer.h"
#include "text/tools/tool_format.h"

namespace qw::server {

namespace {

/// What servers do where neither the client nor the checkpoint says: sample from the model's own
/// distribution (Transformers' own defaults are greedy search and top_k 50).
void set_server_defaults(GenerationConfig& config) {
  const auto set = [&config](std::string_view name, const Json& value) {
    if (config.source_of(name) == ParameterSource::kDefault)
      config.set(name, value, ParameterSource::kDefault);
  };
  set("do_sample", true);
  set("top_k", 0);
}

GenerationConfig base_config(const GenerationTask& task, const ServedModel& model,
                             bool model_defaults) {
  const LoadedModel& files = model.files();
  GenerationConfig config = task.chat ? files.chat_generation() : files.generation;
  if (!model_defaults) {
    GenerationConfig neutral;
    neutral.eos_token_id = config.eos_token_id;
    neutral.bos_token_id = config.bos_token_id;
    neutral.pad_token_id = config.pad_token_id;
    config = neutral;
  }
  set_server_defaults(config);
  return config;
}

void apply_parameters(const GenerationTask& task, GenerationConfig& config) {
  for (const GenerationTask::Parameter& parameter : task.parameters) {
    try {
      config.set(parameter.name, parameter.value, ParameterSource::kUser);
    } catch (const Error& error) {
      throw RequestError(error.kind(), in_clients_words(task, error).message(), parameter.field);
    }
  }
  // Who names a temperature wants to sample with it (0: greedy), whatever the checkpoint says.
  if (config.source_of("temperature") == ParameterSource::kUser &&
      config.source_of("do_sample") != ParameterSource::kUser) {
    config.set("do_sample", config.temperature > 0, ParameterSource::kUser);
  }
}

/// Beyond these a list is a mistake, and would take long to look through at every token.
constexpr size_t kMaxBadWords = 1024, kMaxStopTokens = 4096;
/// Log-probabilities of other tokens: at a place, and of a whole prompt. What an answer has of them
/// is written by the thread that all connections share.
constexpr int64_t kMaxTopLogprobs = 256, kMaxPromptLogprobs = int64_t{1} << 17;

void check_length(std::string_view field, size_t size, size_t most) {
  if (size > most) refuse_field(field, "expected at most {}, got {}", most, size);
}

std::vector<std::vector<int32_t>> encode_words(const std::vector<std::string>& words,
                                               const Tokenizer& tokenizer) {
  check_length("bad_words", words.size(), kMaxBadWords);
  std::set<std::vector<int32_t>> known;
  std::vector<std::vector<int32_t>> out;
  for (const std::string& word : words) {
    if (word.empty()) refuse_field("bad_words", "expected words, got an empty one");
    // A word may follow a space or not; both must be kept from being said.
    for (const std::string& form : {word, " " + word}) {
      std::vector<int32_t> ids = tokenizer.encode(form, {.parse_special = false});
      if (known.insert(ids).second) out.push_back(std::move(ids));
    }
  }
  return out;
}

/// n_prompt_tokens: of all prompts.
void check_logprobs(const GenerationTask& task, const GenerationConfig& config,
                    int64_t n_prompt_tokens) {
  if (config.logprobs.value_or(0) > kMaxTopLogprobs) {
    refuse_field(field_of(task, "logprobs"), "expected at most {}, got {}", kMaxTopLogprobs,
                 *config.logprobs);
  }
  if (!config.prompt_logprobs) return;
  // Each answer to a prompt repeats them, but for those of a conversation.
  const int64_t n_places = n_prompt_tokens * (task.chat ? 1 : task.n);
  const int64_t n = (std::min(*config.prompt_logprobs, kMaxTopLogprobs) + 1) * n_places;
  if (*config.prompt_logprobs > kMaxTopLogprobs || n > kMaxPromptLogprobs) {
    refuse_field(field_of(task, "prompt_logprobs"),
                 "expected at most {} tokens at each of {} places, and {} in all, got {}",
                 kMaxTopLogprobs, n_places, kMaxPromptLogprobs, *config.prompt_logprobs);
  }
}

void check_ids(const std::string& field, const std::vector<int32_t>& ids,
               const ServedModel& model) {
  const int64_t vocab = model.files().config().vocab;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab)
      refuse_field(field, "expected token ids from 0 to {}, got {}", vocab - 1, id);
  }
}

/// Refuses a text that cannot fit, before the work of cutting it into tokens.
void check_text(const GenerationTask& task, const ServedModel& model, size_t n_bytes) {
  if (task.truncate_prompt_tokens) return;
  const std::string field = prompt_field_of(task);
  const auto most = static_cast<size_t>(model.context()) * model.longest_token_bytes();
  if (n_bytes <= most) return;
  throw RequestError(
      ErrorKind::kInvalidArgument,
      fmt::format("[request] {}: expected at most {} bytes (the context of {} "
                  "tokens of up to {} bytes), got {}",
                  field, most, model.context(), model.longest_token_bytes(), n_bytes),
      field)
      .with_code(kContextExceeded);
}

/// Tokens of an answer for which there must be room: those asked for, or one; what is pooled has
/// none.
int64_t n_answer_of(const GenerationTask& task, const GenerationConfig& config) {
  if (task.pooling != Pooling::kNone) return 0;
  const bool is_asked =
      config.max_new_tokens && config.source_of("max_new_tokens") == ParameterSource::kUser;
  return is_asked ? *config.max_new_tokens : 1;
}

/// Leaves the end of a prompt, as many tokens as the task says.
void truncate(const GenerationTask& task, const GenerationConfig& config, const ServedModel& model,
              std::vector<int32_t>& ids) {
  if (!task.truncate_prompt_tokens) return;
  int64_t n_kept = *task.truncate_prompt_tokens;
  if (n_kept < 0) n_kept = std::max<int64_t>(model.context() - n_answer_of(task, config), 1);
  if (std::ssize(ids) > n_kept) ids.erase(ids.begin(), ids.end() - n_kept);
}

/// Refuses what does not fit the context, in the client's words; the engine would in its own.
void check_context(const GenerationTask& task, const GenerationConfig& config,
                   const ServedModel& model, int64_t n_prompt) {
  const int64_t ctx = model.context();
  const int64_t n_answer = n_answer_of(task, config);
  if (n_prompt <= ctx - std::min(n_answer, ctx)) return;
  const std::string prompt = prompt_field_of(task);
  if (task.pooling != Pooling::kNone) {
    throw RequestError(ErrorKind::kInvalidArgument,
                       fmt::format("[request] {}: expected at most {} tokens (the context), got {}",
                                   prompt, ctx, n_prompt),
                       prompt)
        .with_code(kContextExceeded);
  }
  const bool is_prompt = n_prompt >= ctx;
  const std::string field = is_prompt ? prompt : field_of(task, "max_new_tokens");
  throw RequestError(
      ErrorKind::kInvalidArgument,
      fmt::format("[request] {}: expected prompt and answer within the context of {} "
                  "tokens, got {} + {} = {}",
                  field, ctx, n_prompt, n_answer, n_prompt + n_answer),
      field)
      .with_code(kContextExceeded);
}

/// Bytes of the messages' texts, of which a template leaves none out.
size_t text_bytes(const Json& messages) {
  size_t sum = 0;
  for (const Json& message : messages) {
    const auto content = message.is_object() ? message.find("content") : message.end();
    if (message.is_object() && content != message.end() && content->is_string())
      sum += content->get_ref<const std::string&>().size();
  }
  return sum;
}

/// Below 2^53: clients in JavaScript send it back as they got it, also within a receipt.
uint64_t random_seed() {
  std::random_device device;
  return (uint64_t{device()} << 32 | device()) >> 11;
}

std::vector<int32_t> encode_prompt(const PromptInput& prompt, const GenerationTask& task,
                                   const ServedModel& model, const CancelFlag* cancel) {
  if (prompt.is_ids) {
    check_ids(prompt_field_of(task), prompt.ids, model);
    return prompt.ids;
  }
  check_text(task, model, prompt.text.size());
  EncodeOptions options;
  options.add_special_tokens = task.add_special_tokens;
  options.cancel = cancel;
  return model.tokenizer().encode(prompt.text, options);
}

/// How many answers, and how they are found. Returns how many are to be copies of one.
int64_t set_answers(const GenerationTask& task, GenerationConfig& config) {
  const int64_t n_answers = std::max(task.n, task.best_of.value_or(task.n));
  if (task.best_of && *task.best_of < task.n)
    refuse_field("best_of", "expected at least n ({}), got {}", task.n, *task.best_of);
  if (n_answers > 1 && !task.use_beam_search && config.num_beams == 1 && !config.samples())
    return n_answers;  // nothing is drawn: they are all the same
  if (n_answers > 1) config.set("num_return_sequences", n_answers, ParameterSource::kUser);
  if (task.use_beam_search) {
    config.set("num_beams", n_answers, ParameterSource::kUser);
    config.set("num_return_sequences", task.n, ParameterSource::kUser);
    config.set("do_sample", false, ParameterSource::kUser);
  } else if (n_answers > task.n && !config.logprobs) {
    config.logprobs = 0;  // to tell which are the best
  }
  return 1;
}

/// The conversation as the model's tool format writes it, and how its answers are read.
struct ToolSetup {
  const ToolFormat* format = nullptr;
  ToolPrompt prompt;
};

ToolSetup set_up_tools(const ToolTask& task, const ServedModel& model, ChatInput& chat) {
  const ChatTemplate* chat_template = model.files().chat_template.get();
  const std::string source = chat_template == nullptr ? "" : chat_template->source(true);
  ToolSetup setup;
  const std::string& format = task.format.empty() ? model.spec().tool_format : task.format;
  setup.format = format.empty() ? &default_tool_format(source) : &tool_format(format);
  ToolChat in;
  in.messages = &task.messages;
  in.tools = &task.tools;
  in.choice = task.choice;
  in.parallel_tool_calls = task.parallel_tool_calls;
  in.add_generation_prompt = task.add_generation_prompt;
  in.continue_final_message = task.continue_final_message;
  in.template_renders_tools = template_renders_tools(source);
  try {
    setup.prompt = setup.format->prompt(in);
  } catch (const Error& error) {
    throw in_client_names(task.names, error);
  }
  chat.messages = setup.prompt.messages;
  chat.tools = setup.prompt.tools;
  chat.add_generation_prompt = setup.prompt.add_generation_prompt;
  chat.continue_final_message = setup.prompt.continue_final_message;
  return setup;
}

/// The grammar of the answers, with the white space that the task wants in JSON.
GrammarSource grammar_source(const GenerationTask& task) {
  GrammarSource source = *task.grammar;
  source.json.whitespace_pattern = task.whitespace_pattern;
  return source;
}

/// Grammars, as far as the options let prepare() have them.
class Grammars {
 public:
  Grammars(const ServedModel& model, const PrepareOptions& options)
      : model_(model), options_(options) {}

  /// Null: it is left out, or missing.
  std::shared_ptr<GrammarMatcher> get(const std::string& key, const GrammarCache::Make& make) {
    using Mode = PrepareOptions::Grammars;
    if (options_.grammars == Mode::kNone) return nullptr;
    if (options_.grammars == Mode::kCompile)
      return model_.grammars().get(key, make, options_.cancel);
    auto matcher = model_.grammars().find(key);
    is_missing_ = is_missing_ || matcher == nullptr;
    return matcher;
  }
  bool is_missing() const { return is_missing_; }

 private:
  const ServedModel& model_;
  const PrepareOptions& options_;
  bool is_missing_ = false;
};

/// Adds the tool format's stop strings and grammar to a request: calls, or the task's grammar;
/// where there is nothing to call, text that begins no call. Returns the format and the structure
/// of its calls, for a receipt.
Json constrain_by_tools(const ToolSetup& setup, const GenerationTask& task, Request& request,
                        Grammars& grammars, std::vector<std::string>& warnings) {
  const bool is_react = setup.format->name() == "react";
  if (setup.prompt.functions.empty()) {
    // What opens a call of react's is an ordinary word.
    if (task.grammar || is_react) return nullptr;
  } else {
    // First, and for good: what would follow is for the tools to say, however short the answer is.
    std::vector<std::string> ends = setup.format->stop_strings();
    request.n_turn_ends = ends.size();
    request.config.stop_strings.insert(request.config.stop_strings.begin(), ends.begin(),
                                       ends.end());
  }
  std::optional<AnswerForm> form;
  if (task.grammar) {
    if (is_react)
      refuse_field(task.grammar_field, "expected no tools of the format react with it, got some");
    form = {grammar_source(task), task.grammar_field};
  }
  const ToolCallStructure structure = setup.format->structure(setup.prompt);
  const std::optional<ToolGrammar> grammar = grammar_of(structure, form);
  if (auto matcher = grammar ? grammars.get(grammar->key, grammar->build) : nullptr) {
    for (const std::string& note : matcher->grammar().notes())
      warnings.push_back("tools: " + note);
    request.processors.push_back(
        std::make_shared<GrammarProcessor>(std::move(matcher), request.config.eos_token_id));
  }
  return {{"format", setup.format->name()}, {"structure", structure_json(structure)}};
}

/// Null: as Grammars::get().
std::shared_ptr<GrammarMatcher> own_grammar(const GenerationTask& task, Grammars& grammars) {
  const GrammarSource source = grammar_source(task);
  try {
    return grammars.get(source.key(), [&source] { return source.compile(); });
  } catch (const Error& error) {
    throw RequestError(error.kind(), error.message(), task.grammar_field);
  }
}

/// What is said in words needs a tokenizer.
void check_words(const GenerationTask& task, const GenerationConfig& config,
                 const ServedModel& model) {
  if (model.files().tokenizer != nullptr) return;
  const auto refuse = [](const std::string& field) {
    refuse_field(field, "expected a model with a tokenizer, got one without");
  };
  if (!config.stop_strings.empty()) refuse(field_of(task, "stop_strings"));
  if (!task.bad_words.empty()) refuse("bad_words");
}

/// Everything but the prompts and what constrains the answers.
Request base_request(const GenerationTask& task, const ServedModel& model, bool model_defaults,
                     int64_t& n_copies, std::vector<std::string>& warnings) {
  Request base;
  base.config = base_config(task, model, model_defaults);
  apply_parameters(task, base.config);
  GenerationConfig& config = base.config;
  if (task.no_penalties) {
    config.set("repetition_penalty", 1, ParameterSource::kUser);
    for (const char* name : {"presence_penalty", "frequency_penalty"})
      config.set(name, 0, ParameterSource::kUser);
  }
  config.seed = task.seed ? *task.seed : random_seed();
  check_length(task.stop_token_ids_field, task.stop_token_ids.size(), kMaxStopTokens);
  check_ids(task.stop_token_ids_field, task.stop_token_ids, model);
  const bool is_off = config.ignore_eos && task.ignore_eos_ignores_stop_tokens;
  if (is_off) {
    config.stop_token_ids.clear();
  } else if (!task.stop_token_ids.empty()) {
    config.stop_token_ids = task.stop_token_ids;
  }
  if (task.min_tokens_before_stops) base.stop_after = config.min_new_tokens;
  n_copies = set_answers(task, config);
  try {
    config.validate(model.files().config().vocab);
  } catch (const Error& error) {
    throw in_clients_words(task, error);
  }
  for (std::string& warning : idle_fields(task, config, model))
    warnings.push_back(std::move(warning));
  check_words(task, config, model);
  if (!task.bad_words.empty()) {
    for (auto& ids : encode_words(task.bad_words, model.tokenizer()))
      config.bad_words_ids.push_back(std::move(ids));
  }
  if (task.allowed_token_ids)
    base.processors.push_back(std::make_shared<AllowedTokens>(*task.allowed_token_ids));
  base.adapter = model.adapter();
  base.skip_special_tokens = task.skip_special_tokens;
  base.pooling = task.pooling;
  base.priority = task.priority;
  base.cache_salt = task.cache_salt;
  return base;
}

/// Ends the answer where the client's own context does.
void limit_context(const GenerationTask& task, Request& request,
                   std::vector<std::string>& warnings) {
  GenerationConfig& config = request.config;
  const int64_t n_prompt = std::ssize(request.prompt), room = *task.context - n_prompt;
  if (room < 1) {
    refuse_field(task.context_field,
                 "expected a prompt of at most {} tokens (a context of {} with room for an "
                 "answer), got {}",
                 *task.context - 1, *task.context, n_prompt);
  }
  if (config.max_new_tokens ? *config.max_new_tokens <= room
                            : config.max_length && *config.max_length <= *task.context)
    return;
  if (config.max_new_tokens && config.source_of("max_new_tokens") == ParameterSource::kUser) {
    warnings.push_back(
        fmt::format("{}: the answer may have {} tokens, not {} ({} are the prompt's)",
                    task.context_field, room, *config.max_new_tokens, n_prompt));
  }
  // As a file's: at most so many.
  config.set("max_new_tokens", room, ParameterSource::kFile);
}

}  // namespace

bool GenerationTask::asks_to_stop_at(std::string_view stop_string) const {
  bool asks = false;
  for (const Parameter& parameter : parameters) {  // the last one holds
    if (parameter.name == "stop_strings")
      asks = std::ranges::find(parameter.value, stop_string) != parameter.value.end();
  }
  return asks;
}

void GenerationTask::set_chat(const Json& messages, const ToolTask& with) {
  chat.emplace();
  chat->messages = std::make_shared<const Json>(messages);
  chat->add_generation_prompt = with.add_generation_prompt;
  chat->continue_final_message = with.continue_final_message;
  tools = with;
  tools->messages = messages;
}

namespace {

/// Made here, on a worker's thread, once for all prompts and answers. Too long ones are the
/// engine's to refuse.
void share_stop_strings(Request& base) {
  size_t n_bytes = 0;
  for (const std::string& stop : base.config.stop_strings)
    n_bytes += stop.size();
  if (n_bytes == 0 || n_bytes > GenerationConfig::kMaxStopBytes) return;
  base.stop = std::make_shared<const StopStrings>(base.config.stop_strings);
}

}  // namespace

ChatInput chat_of(const GenerationTask& task, const ServedModel& model) {
  ChatInput chat = *task.chat;
  if (task.tools && needs_tool_format(*task.tools)) set_up_tools(*task.tools, model, chat);
  return chat;
}

std::optional<Prepared> prepare(const GenerationTask& task, std::shared_ptr<ServedModel> served,
                                const PrepareOptions& options) {
  Prepared out;
  out.model = std::move(served);
  const ServedModel& model = *out.model;
  Request base = base_request(task, model, options.model_defaults, out.n_copies, out.warnings);
  Grammars grammars(model, options);
  Json tools;
  std::vector<std::vector<int32_t>> prompts;
  bool by_grammar = task.grammar.has_value();  // and by nothing else
  ChatInput chat;
  if (task.chat) {
    check_text(task, model, text_bytes(*task.chat->messages));
    chat = *task.chat;
    chat.cancel = options.cancel;
    if (task.tools && needs_tool_format(*task.tools)) {
      ToolSetup setup = set_up_tools(*task.tools, model, chat);
      if (task.grammar && task.grammar_forbids_calls) setup.prompt.functions.clear();
      by_grammar = by_grammar && setup.prompt.functions.empty();
      tools = constrain_by_tools(setup, task, base, grammars, out.warnings);
      out.tools = std::make_shared<ToolStreams>(*setup.format, std::move(setup.prompt),
                                                task.tools->thoughts_are_text);
    } else if (task.tools && !task.tools->format.empty()) {
      out.warnings.push_back("tool_format: no effect (there are no tools)");
    }
    for (std::string& warning : idle_variables(task.variables_field, chat, model))
      out.warnings.push_back(std::move(warning));
  }
  const auto matcher = by_grammar ? own_grammar(task, grammars) : nullptr;
  if (grammars.is_missing()) return std::nullopt;
  if (task.chat) {
    prompts.push_back(model.files().encode_chat(chat).ids);
  } else {
    for (const PromptInput& prompt : task.prompts)
      prompts.push_back(encode_prompt(prompt, task, model, options.cancel));
  }
  share_stop_strings(base);
  int64_t n_prompt_tokens = 0;
  for (std::vector<int32_t>& ids : prompts) {
    if (ids.empty()) refuse_field(prompt_field_of(task), "expected at least one token, got none");
    truncate(task, base.config, model, ids);
    check_context(task, base.config, model, std::ssize(ids));
    n_prompt_tokens += std::ssize(ids);
    check_logprobs(task, base.config, n_prompt_tokens);
    Request request = base;
    if (matcher) {
      request.processors.push_back(
          std::make_shared<GrammarProcessor>(matcher, request.config.eos_token_id));
    }
    request.prompt = std::move(ids);
    if (task.context) limit_context(task, request, out.warnings);
    out.requests.push_back(std::move(request));
  }
  if (task.receipt) out.receipt = receipt_of_request(task, out, tools);
  return out;
}

}  // namespace qw::server
