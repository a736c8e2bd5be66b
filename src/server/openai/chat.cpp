// POST /v1/chat/completions.
#include "server/generation/sampling_fields.h"
#include "server/openai/common.h"
#include "server/openai/messages.h"
#include "server/service.h"
#include "text/chat_template.h"

namespace qw::server::openai {

namespace {

struct ChatTask : GenerationTask {
  Json messages;
  Json template_variables;
  std::optional<Json> documents;
  bool add_generation_prompt = true, continue_final_message = false, echo = false;
  bool logprobs = false;
  std::optional<int64_t> top_logprobs;
  StreamOptions stream;
};

void add_request_fields(FieldTable<ChatTask>& table) {
  table.push_back(honoured<ChatTask>(
      "model", [](const Json& value, ChatTask& task) { task.model = to_string("model", value); }));
  table.push_back(honoured<ChatTask>(
      "messages", [](const Json& value, ChatTask& task) { task.messages = plain_messages(value); },
      "text parts; images and audio are refused"));
  for (const char* name : {"max_completion_tokens", "max_tokens"})
    table.push_back(parameter_field<ChatTask>(name, "max_new_tokens"));
  table.push_back(honoured<ChatTask>("stream", [](const Json& value, ChatTask& task) {
    task.stream.stream = to_bool("stream", value);
  }));
  table.push_back(honoured<ChatTask>("stream_options", [](const Json& value, ChatTask& task) {
    read_stream_options(value, task.stream);
  }));
  table.push_back(honoured<ChatTask>("logprobs", [](const Json& value, ChatTask& task) {
    task.logprobs = to_bool("logprobs", value);
  }));
  table.push_back(honoured<ChatTask>(
      "top_logprobs",
      [](const Json& value, ChatTask& task) {
        task.top_logprobs = to_integer("top_logprobs", value, 0);
      },
      "with logprobs; no limit but the vocabulary"));
}

void add_template_fields(FieldTable<ChatTask>& table) {
  table.push_back(honoured<ChatTask>("add_generation_prompt", [](const Json& value, ChatTask& t) {
    t.add_generation_prompt = to_bool("add_generation_prompt", value);
  }));
  table.push_back(honoured<ChatTask>("continue_final_message", [](const Json& value, ChatTask& t) {
    t.continue_final_message = to_bool("continue_final_message", value);
    t.add_generation_prompt = t.add_generation_prompt && !t.continue_final_message;
  }));
  table.push_back(honoured<ChatTask>(
      "echo", [](const Json& value, ChatTask& task) { task.echo = to_bool("echo", value); },
      "the final message's text before the answer, with continue_final_message"));
  table.push_back(honoured<ChatTask>("documents", [](const Json& value, ChatTask& task) {
    task.documents = to_array("documents", value);
  }));
  table.push_back(honoured<ChatTask>("chat_template_kwargs", [](const Json& value, ChatTask& t) {
    t.template_variables = to_object("chat_template_kwargs", value);
  }));
}

void add_other_fields(FieldTable<ChatTask>& table) {
  table.push_back(refused<ChatTask>("functions", "deprecated by OpenAI: use tools"));
  table.push_back(refused<ChatTask>("function_call", "deprecated by OpenAI: use tool_choice"));
  table.push_back(refused<ChatTask>("audio", "these models read and write text only"));
  table.push_back(refused<ChatTask>("web_search_options", "the server does not search the web"));
  table.push_back(refused<ChatTask>("chat_template", "a request cannot bring a template"));
  for (const char* name : {"user", "safety_identifier", "prompt_cache_key", "metadata", "store"})
    table.push_back(ignored<ChatTask>(name, "nothing is kept about users"));
  table.push_back(ignored<ChatTask>("service_tier", "there is one"));
  table.push_back(ignored<ChatTask>("reasoning_effort", "these models do not reason apart"));
  table.push_back(ignored<ChatTask>("verbosity", "these models have no such setting"));
  table.push_back(ignored<ChatTask>("prediction", "guessing ahead needs no help"));
}

const FieldTable<ChatTask>& chat_fields() {
  static const FieldTable<ChatTask> table = [] {
    FieldTable<ChatTask> out;
    add_request_fields(out);
    add_openai_sampling_fields(out);
    add_extra_sampling_fields(out);
    add_template_fields(out);
    add_other_fields(out);
    return out;
  }();
  return table;
}

// ---- the answer --------------------------------------------------------------------------------

/// What every form of the answer needs.
class ChatListener : public GenerationListener {
 public:
  ChatListener(std::shared_ptr<Call> call, const ChatTask& task, std::shared_ptr<ServedModel> model)
      : call_(std::move(call)), task_(task), model_(std::move(model)) {}
  void on_error(const Error& error) override { call_->fail(error); }

 protected:
  Json head(std::string_view object) const {
    return {{"id", "chatcmpl-" + call_->id()},
            {"object", object},
            {"created", call_->created()},
            {"model", model_->name()}};
  }
  std::string echoed() const {
    if (!task_.echo || !task_.continue_final_message) return "";
    return task_.messages.back()["content"].get<std::string>();
  }

  std::shared_ptr<Call> call_;
  ChatTask task_;
  std::shared_ptr<ServedModel> model_;
};

class WholeChat : public ChatListener {
 public:
  using ChatListener::ChatListener;

  void on_end(const GenerationResult& result) override {
    Json answer = head("chat.completion");
    Json choices = Json::array();
    const RequestResult& prompt = *result.prompts[0];
    for (const Completion* completion : best_answers(prompt, task_.n))
      choices.push_back(choice(*completion, static_cast<int>(choices.size())));
    answer["choices"] = std::move(choices);
    answer["usage"] = usage(result);
    if (!prompt.prompt_logprobs.empty())
      answer["prompt_logprobs"] =
          prompt_logprobs(prompt.prompt_logprobs, model_->files().tokenizer.get());
    call_->respond(std::move(answer));
  }

 private:
  Json choice(const Completion& completion, int index) const {
    Json logprobs = nullptr;
    if (task_.logprobs) logprobs = chat_logprobs(completion.logprobs, model_->tokenizer());
    Json out = {{"index", index},
                {"message", {{"role", "assistant"}, {"content", echoed() + completion.text}}},
                {"logprobs", std::move(logprobs)},
                {"finish_reason", finish_reason(completion.finish_reason)}};
    if (completion.finish_reason == FinishReason::kStop)
      out["stop_reason"] = completion.stop_string;
    return out;
  }
};

class StreamedChat : public ChatListener {
 public:
  using ChatListener::ChatListener;

  void on_start() override {
    call_->begin_stream("text/event-stream; charset=utf-8");
    for (int64_t i = 0; i < task_.n; ++i)
      send(static_cast<int>(i), {{"role", "assistant"}, {"content", echoed()}}, nullptr, nullptr);
  }

  void on_token(int choice, const Event& event) override {
    n_generated_ += event.token >= 0 ? 1 : 0;
    Json logprobs = nullptr;
    if (task_.logprobs && event.logprobs)
      logprobs = chat_logprobs({&*event.logprobs, 1}, model_->tokenizer());
    if (event.text.empty() && logprobs.is_null()) return;
    send(choice, {{"content", event.text}}, std::move(logprobs), nullptr);
  }

  void on_choice_end(int choice, FinishReason reason) override {
    send(choice, Json::object(), nullptr, finish_reason(reason));
  }

  void on_end(const GenerationResult& result) override {
    if (task_.stream.include_usage) {
      Json chunk = head("chat.completion.chunk");
      chunk["choices"] = Json::array();
      chunk["usage"] = usage(result);
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
  void send(int choice, Json delta, Json logprobs, Json reason) {
    Json chunk = head("chat.completion.chunk");
    chunk["choices"] = Json::array({{{"index", choice},
                                     {"delta", std::move(delta)},
                                     {"logprobs", std::move(logprobs)},
                                     {"finish_reason", std::move(reason)}}});
    if (task_.stream.continuous_usage) chunk["usage"] = usage(n_prompt_, n_generated_, 0);
    if (!std::exchange(warned_, true) && !call_->warnings().empty())
      chunk["warnings"] = call_->warnings();
    call_->write(sse(chunk));
  }
  void end() {
    call_->write(std::string(kSseDone));
    call_->end_stream();
  }

  int64_t n_generated_ = 0;
  bool warned_ = false;

 public:
  int64_t n_prompt_ = 0;
};

void check(const ChatTask& task) {
  if (task.messages.is_null()) refuse_field("messages", "expected a list of messages, got none");
  if (task.top_logprobs && !task.logprobs)
    refuse_field("top_logprobs", "expected logprobs: true with it, got none");
  if (task.stream.stream && task.best_of.value_or(task.n) > task.n)
    refuse_field("best_of", "expected n ({}) in a stream, got {}", task.n, *task.best_of);
}

void chat(const std::shared_ptr<Call>& call) {
  ChatTask task;
  call->read(chat_fields(), task);
  check(task);
  ChatInput input;
  input.messages = std::make_shared<const Json>(task.messages);
  if (task.documents) input.documents = std::make_shared<const Json>(*task.documents);
  if (!task.template_variables.is_null())
    input.variables = std::make_shared<const Json>(task.template_variables);
  input.add_generation_prompt = task.add_generation_prompt;
  input.continue_final_message = task.continue_final_message;
  task.chat = std::move(input);
  if (task.logprobs) task.set("top_logprobs", "logprobs", task.top_logprobs.value_or(0));
  generate(
      call, task,
      [call, task](const std::shared_ptr<ServedModel>& model,
                   const std::vector<Request>& requests) -> std::shared_ptr<GenerationListener> {
        if (!task.stream.stream) return std::make_shared<WholeChat>(call, task, model);
        auto listener = std::make_shared<StreamedChat>(call, task, model);
        listener->n_prompt_ = std::ssize(requests[0].prompt);
        return listener;
      });
}

}  // namespace

std::vector<Endpoint> chat_endpoints() {
  return {{"POST", "/v1/chat/completions", &kOpenAi, "The next message of a conversation", chat,
           infos_of(chat_fields())}};
}

}  // namespace qw::server::openai
