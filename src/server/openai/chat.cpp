// POST /v1/chat/completions.
#include <algorithm>

#include "server/generation/grammar_fields.h"
#include "server/generation/messages.h"
#include "server/generation/sampling_fields.h"
#include "server/openai/common.h"
#include "server/service.h"
#include "text/chat_template.h"

namespace qw::server::openai {

namespace {

struct ChatTask : GenerationTask {
  Json messages;
  Json template_variables;
  std::optional<Json> documents;
  bool echo = false;
  bool logprobs = false;
  ToolTask tool_task;  // but for the messages; and how the conversation ends
  std::optional<int64_t> top_logprobs;
  bool names_are_ids = false;  // of tokens in logprobs
  StreamOptions stream;
};

void add_request_fields(FieldTable<ChatTask>& table) {
  table.push_back(string_field<ChatTask>("model", &ChatTask::model));
  table.push_back(
      honoured<ChatTask>(
          "messages",
          [](const Json& value, ChatTask& task) { task.messages = plain_messages(value); },
          "text parts; images and audio are refused")
          .as(types::messages())
          .with(messages_shape())
          .must());
  for (const char* name : {"max_completion_tokens", "max_tokens"})
    table.push_back(parameter_field<ChatTask>(name, "max_new_tokens"));
  add_stream_fields(table);
  table.push_back(flag_field<ChatTask>("logprobs", &ChatTask::logprobs));
  table.push_back(integer_field<ChatTask>("top_logprobs", &ChatTask::top_logprobs, 0,
                                          "with logprobs; at most 256"));
  table.push_back(token_names_field(&ChatTask::names_are_ids));
}

void add_tool_fields(FieldTable<ChatTask>& table) {
  table.push_back(list_field<ChatTask>(
                      "tools", [](ChatTask & t) -> auto& { return t.tool_task.tools; })
                      .with(tools_shape()));
  table.push_back(honoured<ChatTask>("tool_choice",
                                     [](const Json& value, ChatTask& task) {
                                       task.tool_task.choice =
                                           read_tool_choice("tool_choice", value);
                                     })
                      .as(tool_choice_schema())
                      .with(tool_choice_shape()));
  table.push_back(flag_field<ChatTask>(
      "parallel_tool_calls",
      [](ChatTask & t) -> auto& { return t.tool_task.parallel_tool_calls; }));
  table.push_back(
      tool_format_field<ChatTask>([](ChatTask & t) -> auto& { return t.tool_task.format; }));
}

void add_template_fields(FieldTable<ChatTask>& table) {
  table.push_back(flag_field<ChatTask>(
      "add_generation_prompt",
      [](ChatTask & t) -> auto& { return t.tool_task.add_generation_prompt; }));
  table.push_back(honoured<ChatTask>("continue_final_message", [](const Json& value, ChatTask& t) {
                    t.tool_task.continue_final_message = to_bool("continue_final_message", value);
                    if (t.tool_task.continue_final_message)
                      t.tool_task.add_generation_prompt = false;
                  }).as(types::boolean()));
  table.push_back(flag_field<ChatTask>(
      "echo", &ChatTask::echo,
      "the final message's text before the answer, with continue_final_message"));
  table.push_back(list_field<ChatTask>("documents", &ChatTask::documents));
  table.push_back(object_field<ChatTask>("chat_template_kwargs", &ChatTask::template_variables));
}

void add_other_fields(FieldTable<ChatTask>& table) {
  table.push_back(refused<ChatTask>("functions", "deprecated by OpenAI: use tools"));
  table.push_back(refused<ChatTask>("function_call", "deprecated by OpenAI: use tool_choice"));
  table.push_back(refused<ChatTask>("audio", "these models read and write text only"));
  table.push_back(honoured<ChatTask>(
                      "modalities",
                      [](const Json& value, ChatTask&) {
                        if (value == Json::array({"text"})) return;
                        refuse_field("modalities", "expected [\"text\"], got {}", shown(value));
                      },
                      "text alone")
                      .as(types::list(types::choice({"text"}))));
  table.push_back(refused<ChatTask>("web_search_options", "the server does not search the web"));
  table.push_back(refused<ChatTask>("chat_template", "a request cannot bring a template"));
  for (const char* name : {"user", "safety_identifier"})
    table.push_back(user_field<ChatTask>(name));
  table.push_back(
      ignored<ChatTask>("prompt_cache_retention", "what is kept depends on the memory"));
  for (const char* name : {"prompt_cache_key", "metadata", "store"})
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
    add_grammar_fields(out);
    add_tool_fields(out);
    add_template_fields(out);
    add_server_fields(out);
    add_other_fields(out);
    return out;
  }();
  return table;
}

// ---- the answer --------------------------------------------------------------------------------

/// What every form of the answer needs.
class ChatListener : public GenerationListener {
 public:
  ChatListener(std::shared_ptr<Call> call, const ChatTask& task, const Prepared& prepared)
      : call_(std::move(call)),
        task_(task),
        model_(prepared.model),
        tools_(prepared.tools),
        n_prompt_tokens_(std::ssize(prepared.requests[0].prompt)) {}
  void on_error(const Error& error) override { call_->fail(error); }

 protected:
  Json head(std::string_view object) const {
    return {{"id", "chatcmpl-" + call_->id()},
            {"object", object},
            {"created", call_->created()},
            {"model", model_->name()}};
  }
  Json prompt_logprobs_of(std::span<const TokenLogprobs> entries) const {
    return prompt_logprobs(entries, model_->files().tokenizer.get());
  }
  /// Whether an answer ends with its calls, and not where it was cut off.
  static bool ends_in_calls(FinishReason reason, bool has_whole_calls) {
    return has_whole_calls && reason != FinishReason::kLength;
  }
  std::string echoed() const {
    if (!task_.echo || !task_.tool_task.continue_final_message) return "";
    return task_.messages.back()["content"].get<std::string>();
  }

  std::shared_ptr<Call> call_;
  ChatTask task_;
  std::shared_ptr<ServedModel> model_;
  std::shared_ptr<ToolStreams> tools_;  // null: answers are text only
  int64_t n_prompt_tokens_;
};

class WholeChat : public ChatListener {
 public:
  using ChatListener::ChatListener;
  bool ends_anywhere() const override { return true; }

  void on_end(const GenerationResult& result) override {
    Json answer = head("chat.completion");
    Json choices = Json::array();
    const RequestResult& prompt = *result.prompts[0];
    for (const Completion* completion : best_answers(prompt, task_.n))
      choices.push_back(choice(*completion, static_cast<int>(choices.size())));
    answer["choices"] = std::move(choices);
    answer["usage"] = usage(result);
    if (!prompt.prompt_logprobs.empty())
      answer["prompt_logprobs"] = prompt_logprobs_of(prompt.prompt_logprobs);
    if (!result.receipt.is_null()) answer["receipt"] = result.receipt;
    call_->respond(std::move(answer));
  }

 private:
  Json message_of(const ToolAnswer& answer, int index) const {
    const std::string text = echoed() + answer.text;
    Json message = {{"role", "assistant"}, {"content", text}};
    if (!answer.thought.empty()) message["reasoning_content"] = answer.thought;
    if (answer.calls.empty()) return message;
    if (text.empty()) message["content"] = nullptr;
    Json calls = Json::array();
    for (size_t i = 0; i < answer.calls.size(); ++i) {
      calls.push_back(
          {{"id", tools_->call_id(index, i)},
           {"type", "function"},
           {"function",
            {{"name", answer.calls[i].name}, {"arguments", answer.calls[i].arguments}}}});
    }
    message["tool_calls"] = std::move(calls);
    return message;
  }

  Json choice(const Completion& completion, int index) const {
    Json logprobs = nullptr;
    if (task_.logprobs)
      logprobs = chat_logprobs(completion.logprobs, model_->tokenizer(), task_.names_are_ids);
    ToolAnswer answer;
    answer.text = completion.text;
    if (tools_) {
      answer = tools_->parse(completion.text,
                             tools_->is_cut(completion.finish_reason, completion.stop_string));
    }
    const bool calls = ends_in_calls(completion.finish_reason, answer.has_whole_calls());
    Json out = {{"index", index},
                {"message", message_of(answer, completion.index)},
                {"logprobs", std::move(logprobs)},
                {"finish_reason",
                 calls ? std::string_view("tool_calls") : finish_reason(completion.finish_reason)}};
    if (Json stop = stop_reason(completion, task_); !stop.is_null() && !calls)
      out["stop_reason"] = std::move(stop);
    return out;
  }
};

class StreamedChat : public ChatListener {
 public:
  using ChatListener::ChatListener;

  void on_start() override {
    call_->begin_stream("text/event-stream; charset=utf-8");
    if (!task_.has("prompt_logprobs")) call_->write(first_chunks(nullptr));
  }

  /// They stand in the first chunk, which waits for them.
  std::function<void()> on_prompt(size_t /*prompt*/,
                                  std::span<const TokenLogprobs> logprobs) override {
    Json list = nullptr;
    if (!logprobs.empty()) list = prompt_logprobs_of(logprobs);
    return [call = call_, text = first_chunks(std::move(list))] { call->write(text); };
  }

  void on_token(int choice, const Event& event) override {
    n_generated_ += event.token >= 0 ? 1 : 0;
    Json logprobs = nullptr;
    if (task_.logprobs && event.logprobs)
      logprobs = chat_logprobs({&*event.logprobs, 1}, model_->tokenizer(), task_.names_are_ids);
    if (tools_) {
      send_events(choice, tools_->push(choice, event.text), std::move(logprobs));
    } else if (!event.text.empty() || !logprobs.is_null()) {
      send(choice, {{"content", event.text}}, std::move(logprobs), nullptr);
    }
  }

  void on_choice_end(int choice, const Event& end) override {
    const FinishReason reason = end.finish_reason;
    if (tools_)
      send_events(choice, tools_->finish(choice, tools_->is_cut(reason, end.stop_string)), nullptr);
    if (tools_ && ends_in_calls(reason, tools_->has_whole_calls(choice)))
      return send(choice, Json::object(), nullptr, "tool_calls");
    send(choice, Json::object(), nullptr, finish_reason(reason), stop_reason(end, task_));
  }

  void on_end(const GenerationResult& result) override {
    if (task_.stream.include_usage || !result.receipt.is_null()) {
      Json chunk = head("chat.completion.chunk");
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
  /// The deltas of what the parser made of a token; its log-probability goes with the first.
  void send_events(int choice, const std::vector<ToolEvent>& events, Json logprobs) {
    if (events.empty() && !logprobs.is_null())
      send(choice, {{"content", ""}}, std::move(logprobs), nullptr);
    for (const ToolEvent& event : events) {
      Json delta = delta_of(choice, event);
      if (!delta.is_null())
        send(choice, std::move(delta), std::exchange(logprobs, nullptr), nullptr);
    }
  }
  Json delta_of(int choice, const ToolEvent& event) const {
    switch (event.kind) {
      case ToolEvent::Kind::kText:
        return {{"content", event.text}};
      case ToolEvent::Kind::kThought:
        return {{"reasoning_content", event.text}};
      case ToolEvent::Kind::kCallBegin:
        return call_delta({{"index", event.call},
                           {"id", tools_->call_id(choice, event.call)},
                           {"type", "function"},
                           {"function", {{"name", event.text}, {"arguments", ""}}}});
      case ToolEvent::Kind::kArguments:
        return call_delta({{"index", event.call}, {"function", {{"arguments", event.text}}}});
      case ToolEvent::Kind::kCallEnd:
        break;
    }
    return nullptr;
  }
  static Json call_delta(Json call) { return {{"tool_calls", Json::array({std::move(call)})}}; }

  /// One for each answer. What is said of the whole stands in the very first.
  std::string first_chunks(Json prompt_logprobs) const {
    std::string out;
    for (int64_t i = 0; i < task_.n; ++i) {
      Json chunk = chunk_of(static_cast<int>(i), {{"role", "assistant"}, {"content", echoed()}},
                            nullptr, nullptr);
      if (i == 0 && !prompt_logprobs.is_null())
        chunk["prompt_logprobs"] = std::move(prompt_logprobs);
      if (task_.stream.continuous_usage) chunk["usage"] = usage(n_prompt_tokens_, 0, 0);
      if (const auto warnings = call_->warnings(); i == 0 && !warnings.empty())
        chunk["warnings"] = warnings;
      out += sse(chunk);
    }
    return out;
  }

  Json chunk_of(int choice, Json delta, Json logprobs, Json reason) const {
    Json chunk = head("chat.completion.chunk");
    chunk["choices"] = Json::array({{{"index", choice},
                                     {"delta", std::move(delta)},
                                     {"logprobs", std::move(logprobs)},
                                     {"finish_reason", std::move(reason)}}});
    return chunk;
  }

  void send(int choice, Json delta, Json logprobs, Json reason, Json stop = nullptr) {
    Json chunk = chunk_of(choice, std::move(delta), std::move(logprobs), std::move(reason));
    if (!stop.is_null()) chunk["choices"][0]["stop_reason"] = std::move(stop);
    if (task_.stream.continuous_usage) chunk["usage"] = usage(n_prompt_tokens_, n_generated_, 0);
    call_->write(sse(chunk));
  }
  void end() {
    call_->write(std::string(kSseDone));
    call_->end_stream();
  }

  int64_t n_generated_ = 0;
};

/// max_completion_tokens is the newer name of max_tokens; where both are given it holds.
void choose_length(ChatTask& task) {
  const auto find = [&](std::string_view field) {
    return std::ranges::find(task.parameters, field, &GenerationTask::Parameter::field);
  };
  const auto older = find("max_tokens"), newer = find("max_completion_tokens");
  if (older == task.parameters.end() || newer == task.parameters.end()) return;
  if (older->value != newer->value)
    task.warnings.push_back("max_tokens: ignored (max_completion_tokens is given, too)");
  task.parameters.erase(older);
}

void check(const ChatTask& task) {
  if (task.messages.is_null()) refuse_field("messages", "expected a list of messages, got none");
  check_tool_choice(task.tool_task);
  if (task.tool_task.parallel_tool_calls && !has_tools(task.tool_task))
    refuse_field("parallel_tool_calls", "expected tools, which it is only allowed with, got none");
  if (task.top_logprobs && !task.logprobs)
    refuse_field("top_logprobs", "expected logprobs: true with it, got none");
  if (task.stream.stream && task.best_of.value_or(task.n) > task.n)
    refuse_field("best_of", "expected n ({}) in a stream, got {}", task.n, *task.best_of);
}

void chat(const std::shared_ptr<Call>& call) {
  ChatTask task;
  call->read(chat_fields(), task);
  check(task);
  check_stream_options(task);
  choose_length(task);
  if (task.echo && !task.tool_task.continue_final_message)
    task.warnings.push_back(
        "echo: ignored (without continue_final_message nothing is gone on with)");
  task.set_chat(task.messages, task.tool_task);
  if (task.documents) task.chat->documents = std::make_shared<const Json>(*task.documents);
  if (!task.template_variables.is_null())
    task.chat->variables = std::make_shared<const Json>(task.template_variables);
  if (task.logprobs) task.set("top_logprobs", "logprobs", task.top_logprobs.value_or(0));
  generate(call, task,
           [call, task](const Prepared& prepared) -> std::shared_ptr<GenerationListener> {
             if (task.stream.stream) return std::make_shared<StreamedChat>(call, task, prepared);
             return std::make_shared<WholeChat>(call, task, prepared);
           });
}

}  // namespace

std::vector<Endpoint> chat_endpoints() {
  return {{"POST",
           "/v1/chat/completions",
           &kOpenAi,
           "The next message of a conversation",
           chat,
           infos_of(chat_fields()),
           true,
           {.example = Json::parse(
                R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})"),
            .answer = types::object({"id", "object", "created", "model", "choices", "usage"}),
            .stream_type = "text/event-stream",
            .generates = true}}};
}

}  // namespace qw::server::openai
