// POST /v1/completions.
#include "server/generation/embed.h"
#include "server/generation/grammar_fields.h"
#include "server/generation/logprobs.h"
#include "server/generation/sampling_fields.h"
#include "server/openai/common.h"
#include "server/service.h"
#include "text/detokenizer.h"
#include "text/jinja/unicode.h"
#include "text/tokenizer.h"

namespace qw::server::openai {

namespace {

/// OpenAI's default, which its clients count on.
constexpr int64_t kDefaultMaxTokens = 16;

struct CompletionTask : GenerationTask {
  bool echo = false;
  std::optional<int64_t> logprobs;
  bool names_are_ids = false;  // of tokens in logprobs
  bool has_max_tokens = false;
  int64_t max_tokens = kDefaultMaxTokens;
  StreamOptions stream;
};

const FieldTable<CompletionTask>& completion_fields() {
  using Task = CompletionTask;
  static const FieldTable<Task> table = [] {
    FieldTable<Task> out;
    out.push_back(string_field<Task>("model", &Task::model));
    out.push_back(
        honoured<Task>(
            "prompt",
            [](const Json& value, Task& task) { task.prompts = to_prompts("prompt", value); },
            "a text, a list of texts, of ids, or of lists of ids")
            .as(types::prompts())
            .must());
    out.push_back(
        integer_field<Task>("max_tokens", &Task::max_tokens, 0,
                            "16 by default; 0 with echo gives the prompt's log-probabilities"));
    out.push_back(flag_field<Task>("echo", &Task::echo));
    out.push_back(integer_field<Task>("logprobs", &Task::logprobs, 0));
    out.push_back(token_names_field(&Task::names_are_ids));
    add_stream_fields(out);
    out.push_back(flag_field<Task>("add_special_tokens", &Task::add_special_tokens));
    add_openai_sampling_fields(out);
    add_extra_sampling_fields(out);
    add_grammar_fields(out);
    out.push_back(refused<Task>("suffix", "these models were not trained to fill in the middle"));
    out.push_back(user_field<Task>("user"));
    add_server_fields(out);
    return out;
  }();
  return table;
}

// ---- the answer --------------------------------------------------------------------------------

/// How far an answer's text has come, in characters.
class TextPlace {
 public:
  TextPlace(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens, size_t begin)
      : detokenizer_(std::move(tokenizer), skip_special_tokens), n_chars_(begin) {}

  /// Where the token's text begins: an unfinished character before it counts once it is whole, and
  /// what is not shown does not count.
  size_t pass(int32_t id) {
    const size_t begin = n_chars_;
    n_chars_ += jinja::count_chars(detokenizer_.push(id));
    return begin;
  }

 private:
  Detokenizer detokenizer_;
  size_t n_chars_;
};

/// OpenAI's older form: parallel lists over the tokens of prompt (with echo) and answer.
class LogprobLists {
 public:
  LogprobLists(const Tokenizer& tokenizer, const CompletionTask& task)
      : tokenizer_(tokenizer), n_top_(*task.logprobs), names_are_ids_(task.names_are_ids) {}

  void add_first(int32_t id, TextPlace& place) {
    add_token(id, place);
    logprobs_.push_back(nullptr);
    top_.push_back(nullptr);
  }
  void add(const TokenLogprobs& entry, TextPlace& place) {
    add_token(entry.chosen.id, place);
    logprobs_.push_back(entry.chosen.logprob);
    Json top = Json::object();
    for (const Logprob& candidate : entry.top)
      top[name_of(candidate.id)] = candidate.logprob;
    // The chosen token stands beside the n likeliest, as OpenAI's did.
    top[name_of(entry.chosen.id)] = entry.chosen.logprob;
    top_.push_back(n_top_ > 0 ? std::move(top) : Json());
  }
  Json json() const {
    return {{"tokens", tokens_},
            {"token_logprobs", logprobs_},
            {"top_logprobs", n_top_ > 0 ? top_ : Json()},
            {"text_offset", offsets_}};
  }

 private:
  /// The names are keys here, so parts of characters must not all be called U+FFFD.
  std::string name_of(int32_t id) const {
    return names_are_ids_ ? token_name(id, tokenizer_, true) : distinct_token_name(id, tokenizer_);
  }
  void add_token(int32_t id, TextPlace& place) {
    tokens_.push_back(name_of(id));
    offsets_.push_back(place.pass(id));
  }

  const Tokenizer& tokenizer_;
  int64_t n_top_;
  bool names_are_ids_;
  Json tokens_ = Json::array(), logprobs_ = Json::array(), top_ = Json::array(),
       offsets_ = Json::array();
};

class CompletionListener : public GenerationListener {
 public:
  CompletionListener(std::shared_ptr<Call> call, const CompletionTask& task,
                     std::shared_ptr<ServedModel> model, const std::vector<Request>& requests)
      : call_(std::move(call)), task_(task), model_(std::move(model)) {
    for (const Request& request : requests)
      prompts_.push_back(request.prompt);
    if (!task_.echo) return;
    for (size_t i = 0; i < prompts_.size(); ++i) {
      const bool is_ids = i < task_.prompts.size() && task_.prompts[i].is_ids;
      echoes_.push_back(is_ids || task_.truncate_prompt_tokens
                            ? model_->tokenizer().decode(prompts_[i])
                            : task_.prompts[i].text);
    }
  }
  void on_error(const Error& error) override { call_->fail(error); }

 protected:
  Json head() const {
    return {{"id", "cmpl-" + call_->id()},
            {"object", "text_completion"},
            {"created", call_->created()},
            {"model", model_->name()}};
  }
  /// The prompt's text, where it is wanted before the answer.
  std::string echo_of(size_t prompt) const { return task_.echo ? echoes_[prompt] : ""; }
  /// Where an answer's text begins: with echo, behind the prompt's.
  TextPlace place_of(size_t prompt) const {
    return {model_->files().tokenizer, task_.skip_special_tokens,
            jinja::count_chars(echo_of(prompt))};
  }
  /// Those of the answer's text: with echo, the prompt's come first.
  LogprobLists lists_of(size_t prompt, std::span<const TokenLogprobs> prompt_logprobs) const {
    LogprobLists lists(model_->tokenizer(), task_);
    if (!task_.echo) return lists;
    TextPlace place(model_->files().tokenizer, false, 0);
    lists.add_first(prompts_[prompt][0], place);
    for (const TokenLogprobs& entry : prompt_logprobs)
      lists.add(entry, place);
    return lists;
  }
  /// null: they were not asked for, or there are none.
  Json prompt_logprobs_of(std::span<const TokenLogprobs> entries) const {
    if (entries.empty() || !task_.has("prompt_logprobs")) return nullptr;
    return prompt_logprobs(entries, model_->files().tokenizer.get());
  }

  std::shared_ptr<Call> call_;
  CompletionTask task_;
  std::shared_ptr<ServedModel> model_;
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<std::string> echoes_;
};

class WholeCompletion : public CompletionListener {
 public:
  using CompletionListener::CompletionListener;
  bool ends_anywhere() const override { return true; }

  void on_end(const GenerationResult& result) override {
    Json answer = head();
    Json choices = Json::array();
    for (size_t i = 0; i < result.prompts.size(); ++i) {
      for (const Completion* completion : best_answers(*result.prompts[i], task_.n))
        choices.push_back(choice(i, *result.prompts[i], *completion, choices.size()));
    }
    answer["choices"] = std::move(choices);
    const int64_t n_generated = task_.max_tokens == 0 ? 0 : result.n_generated_tokens();
    answer["usage"] = usage(result.n_prompt_tokens(), n_generated, result.n_cached_tokens());
    if (!result.receipt.is_null()) answer["receipt"] = result.receipt;
    call_->respond(std::move(answer));
  }

 private:
  Json choice(size_t prompt, const RequestResult& result, const Completion& completion,
              size_t index) const {
    const bool wants_answer = task_.max_tokens > 0;
    Json logprobs = nullptr;
    if (task_.logprobs) {
      LogprobLists lists = lists_of(prompt, result.prompt_logprobs);
      TextPlace place = place_of(prompt);
      for (const TokenLogprobs& entry : completion.logprobs)
        if (wants_answer) lists.add(entry, place);
      logprobs = lists.json();
    }
    const std::string text = echo_of(prompt) + (wants_answer ? completion.text : "");
    Json out = {{"index", index},
                {"text", model_->files().tokenizer ? Json(text) : Json()},
                {"logprobs", std::move(logprobs)},
                {"finish_reason", wants_answer ? finish_reason(completion.finish_reason)
                                               : std::string_view("length")}};
    if (Json stop = stop_reason(completion, task_); !stop.is_null() && wants_answer)
      out["stop_reason"] = std::move(stop);
    if (!model_->files().tokenizer) out["token_ids"] = completion.ids;
    if (Json entries = prompt_logprobs_of(result.prompt_logprobs); !entries.is_null())
      out["prompt_logprobs"] = std::move(entries);
    return out;
  }
};

class StreamedCompletion : public CompletionListener {
 public:
  using CompletionListener::CompletionListener;

  void on_start() override {
    call_->begin_stream("text/event-stream; charset=utf-8");
    for (size_t i = 0; task_.logprobs && i < prompts_.size(); ++i)
      places_.insert(places_.end(), static_cast<size_t>(task_.n), place_of(i));
    warned_ = task_.echo || wants_prompt_logprobs();  // in the first chunk of the first answer
    if (!task_.echo || wants_prompt_logprobs()) return;
    for (size_t i = 0; i < prompts_.size(); ++i)
      call_->write(beginning_of(i, {}));
  }

  /// They stand in the first chunk of each choice, which waits for them.
  std::function<void()> on_prompt(size_t prompt, std::span<const TokenLogprobs> logprobs) override {
    if (!wants_prompt_logprobs()) return {};
    return [call = call_, chunks = beginning_of(prompt, logprobs)] { call->write(chunks); };
  }

  void on_token(int choice, const Event& event) override {
    Json logprobs = nullptr;
    if (task_.logprobs && event.logprobs) {
      LogprobLists lists(model_->tokenizer(), task_);
      lists.add(*event.logprobs, places_[static_cast<size_t>(choice)]);
      logprobs = lists.json();
    }
    Json ids = Json::object();  // of a model that has no text
    if (!model_->files().tokenizer && event.token >= 0) ids["token_ids"] = {event.token};
    if (event.text.empty() && logprobs.is_null() && ids.empty()) return;
    send(choice, event.text, std::move(logprobs), nullptr, std::move(ids));
  }

  void on_choice_end(int choice, const Event& end) override {
    Json more = Json::object();
    if (Json stop = stop_reason(end, task_); !stop.is_null()) more["stop_reason"] = std::move(stop);
    send(choice, "", nullptr, finish_reason(end.finish_reason), std::move(more));
  }

  void on_end(const GenerationResult& result) override {
    if (task_.stream.include_usage || !result.receipt.is_null()) {
      Json chunk = head();
      chunk["choices"] = Json::array();
      if (task_.stream.include_usage) chunk["usage"] = usage(result);
      if (!result.receipt.is_null()) chunk["receipt"] = result.receipt;
      call_->write(sse(chunk));
    }
    end();
  }

  void on_error(const Error& error) override {
    if (!call_->streaming()) return call_->fail(error);
    call_->write(sse(error_body(error, http_status(error))));
    end();
  }

 private:
  bool wants_prompt_logprobs() const {
    return task_.has("prompt_logprobs") || (task_.echo && task_.logprobs);
  }
  /// The first chunks of all answers to a prompt, with what there is of it.
  std::string beginning_of(size_t prompt, std::span<const TokenLogprobs> logprobs) const {
    const std::string text = echo_of(prompt);
    std::string chunks;
    Json lists = nullptr, more = Json::object();
    if (task_.echo && task_.logprobs) lists = lists_of(prompt, logprobs).json();
    if (Json entries = prompt_logprobs_of(logprobs); !entries.is_null())
      more["prompt_logprobs"] = std::move(entries);
    const auto n = static_cast<size_t>(task_.n);
    for (size_t choice = prompt * n; choice < (prompt + 1) * n; ++choice) {
      Json chunk = chunk_of(static_cast<int>(choice), text, lists, nullptr, more);
      if (choice == 0) add_warnings(chunk);
      chunks += sse(chunk);
    }
    return chunks;
  }
  /// more: members of the choice.
  Json chunk_of(int choice, const std::string& text, Json logprobs, Json reason,
                const Json& more) const {
    Json chunk = head();
    chunk["choices"] = Json::array({{{"index", choice},
                                     {"text", text},
                                     {"logprobs", std::move(logprobs)},
                                     {"finish_reason", std::move(reason)}}});
    chunk["choices"][0].update(more);
    return chunk;
  }
  void send(int choice, const std::string& text, Json logprobs, Json reason, const Json& more) {
    Json chunk = chunk_of(choice, text, std::move(logprobs), std::move(reason), more);
    if (!std::exchange(warned_, true)) add_warnings(chunk);
    call_->write(sse(chunk));
  }
  void add_warnings(Json& chunk) const {
    if (const auto warnings = call_->warnings(); !warnings.empty()) chunk["warnings"] = warnings;
  }
  void end() {
    call_->write(std::string(kSseDone));
    call_->end_stream();
  }

  std::vector<TextPlace> places_;  // of each choice
  bool warned_ = false;
};

void check(const CompletionTask& task) {
  if (task.prompts.empty()) refuse_field("prompt", "expected one, got none");
  if (task.stream.stream && task.best_of.value_or(task.n) > task.n)
    refuse_field("best_of", "expected n ({}) in a stream, got {}", task.n, *task.best_of);
  if (task.max_tokens == 0 && (!task.echo || task.stream.stream))
    refuse_field("max_tokens", "expected at least 1 without echo or in a stream, got 0");
}

void complete(const std::shared_ptr<Call>& call) {
  CompletionTask task;
  call->read(completion_fields(), task);
  check(task);
  check_stream_options(task);
  if (task.logprobs || task.echo) {
    task.complete = [field = task.logprobs ? "logprobs" : "echo"](GenerationTask&,
                                                                  const ServedModel& model) {
      if (model.files().tokenizer == nullptr)
        refuse_field(field, "expected a model with a tokenizer, got one without");
    };
  }
  task.set("max_tokens", "max_new_tokens", std::max<int64_t>(task.max_tokens, 1));
  if (task.logprobs) {
    task.set("logprobs", "logprobs", *task.logprobs);
    if (task.echo && !task.has("prompt_logprobs"))
      task.set("logprobs", "prompt_logprobs", *task.logprobs);
  }
  generate(
      call, task,
      [call, task](const std::shared_ptr<ServedModel>& model,
                   const std::vector<Request>& requests) -> std::shared_ptr<GenerationListener> {
        if (task.stream.stream)
          return std::make_shared<StreamedCompletion>(call, task, model, requests);
        return std::make_shared<WholeCompletion>(call, task, model, requests);
      });
}

}  // namespace

std::vector<Endpoint> completion_endpoints() {
  return {{"POST",
           "/v1/completions",
           &kOpenAi,
           "What follows a prompt",
           complete,
           infos_of(completion_fields()),
           true,
           {.example = {{"prompt", "Hi"}, {"max_tokens", 1}},
            .answer = types::object({"id", "object", "created", "model", "choices", "usage"}),
            .stream_type = "text/event-stream",
            .generates = true}}};
}

}  // namespace qw::server::openai
