// POST /v1/messages and /v1/messages/count_tokens.
#include <algorithm>

#include "server/anthropic/anthropic.h"
#include "server/anthropic/common.h"
#include "server/anthropic/conversation.h"
#include "server/generation/grammar_fields.h"
#include "server/generation/job.h"
#include "server/generation/sampling_fields.h"
#include "server/generation/stream.h"
#include "server/service.h"

namespace qw::server::anthropic {

namespace {

std::string_view type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return status < 500 ? "invalid_request_error" : "api_error";
  }
}

Json error_body(const Error& error, int status) {
  return {{"type", "error"}, {"error", {{"type", type_of(status)}, {"message", error.message()}}}};
}

}  // namespace

const Dialect kAnthropic{"anthropic", error_body};

namespace {

struct MessageTask : GenerationTask, Conversation {
  bool stream = false, has_max_tokens = false;
  std::vector<std::string> stop_sequences;
};

/// {"type": "json_schema", "schema"}.
void read_output_format(const std::string& field, const Json& value, GenerationTask& task) {
  if (to_object(field, value).value("type", Json()) != "json_schema")
    refuse_field(field, "expected type json_schema, got {}", shown(value));
  set_grammar(task, field,
              {GrammarSource::Kind::kJsonSchema, to_schema(field, value.value("schema", Json()))});
}

const FieldTable<MessageTask>& message_fields() {
  using Task = MessageTask;
  static const FieldTable<Task> table = [] {
    FieldTable<Task> out;
    add_conversation_fields(out);
    out.push_back(honoured<Task>(
                      "max_tokens",
                      [](const Json& value, Task& task) {
                        task.has_max_tokens = true;
                        task.set("max_tokens", "max_new_tokens",
                                 to_integer("max_tokens", value, 1));
                      },
                      "required")
                      .as(types::integer(1))
                      .must());
    out.push_back(honoured<Task>("stop_sequences", [](const Json& value, Task& task) {
                    task.stop_sequences =
                        to_strings("stop_sequences", to_array("stop_sequences", value));
                    if (!task.stop_sequences.empty())
                      task.set("stop_sequences", "stop_strings", task.stop_sequences);
                  }).as(types::list(types::string())));
    out.push_back(flag_field<Task>("stream", &Task::stream));
    out.push_back(parameter_field<Task>("temperature", "temperature"));
    for (const char* name : {"top_p", "top_k"}) {
      // LangChain's client said -1, for years, where it had nothing to say.
      out.push_back(honoured<Task>(
                        name,
                        [name](const Json& value, Task& task) {
                          if (value != -1) task.set(name, name, value);
                        },
                        "-1: as if not given")
                        .as(types::number()));
    }
    out.push_back(seed_field<Task>("seed"));
    out.push_back(user_field<Task>("metadata.user_id"));
    add_server_fields(out);
    out.push_back(ignored<Task>("service_tier", "there is one"));
    out.push_back(ignored<Task>("inference_geo", "it is here"));
    out.push_back(ignored<Task>("cache_control", "prefixes are kept for everybody"));
    for (const char* name : {"output_format", "output_config.format"}) {
      out.push_back(
          honoured<Task>(
              name,
              [name](const Json& value, Task& task) { read_output_format(name, value, task); },
              "json_schema")
              .as(types::object())
              .with(object_of({member("type"), member("schema")})));
    }
    out.push_back(ignored<Task>("output_config.effort", "these models have no such setting"));
    out.push_back(refused<Task>("container", "the server runs no code"));
    out.push_back(refused<Task>("context_management", "nothing is ever cut out of a context"));
    return out;
  }();
  return table;
}

// ---- the answer --------------------------------------------------------------------------------

/// Tokens of the prompt that were in the cache are counted apart, as Anthropic does.
Json usage(int64_t n_prompt, int64_t n_cached, int64_t n_generated) {
  return {{"input_tokens", n_prompt - n_cached},
          {"cache_creation_input_tokens", 0},
          {"cache_read_input_tokens", n_cached},
          {"output_tokens", n_generated}};
}

Json usage(const RequestResult& result) {
  const Timings& timings = result.timings;
  return usage(timings.n_prompt, timings.n_cached, timings.n_generated);
}

class Answer : public GenerationListener {
 public:
  Answer(std::shared_ptr<Call> call, const MessageTask& task, const Prepared& prepared)
      : call_(std::move(call)),
        stop_sequences_(task.stop_sequences),
        model_(prepared.model),
        tools_(prepared.tools),
        n_prompt_(std::ssize(prepared.requests[0].prompt)) {}
  void on_error(const Error& error) override { call_->fail(error); }

 protected:
  Json message(Json content) const {
    return {{"id", "msg_" + call_->id()},
            {"type", "message"},
            {"role", "assistant"},
            {"model", model_->name()},
            {"content", std::move(content)}};
  }
  static Json text_block(const std::string& text) { return {{"type", "text"}, {"text", text}}; }
  Json tool_block(size_t call, const std::string& name, Json input) const {
    return {{"type", "tool_use"},
            {"id", tools_->call_id(0, call)},
            {"name", name},
            {"input", std::move(input)}};
  }
  /// {"stop_reason", "stop_sequence"}. A tool format has stop strings of its own, which are none of
  /// the client's affair.
  Json ending(const Completion& completion, bool has_whole_calls) const {
    std::string_view reason = "end_turn";
    Json sequence = nullptr;
    if (completion.finish_reason == FinishReason::kLength) {
      reason = "max_tokens";
    } else if (has_whole_calls) {
      reason = "tool_use";
    } else if (completion.finish_reason == FinishReason::kStop &&
               std::ranges::find(stop_sequences_, completion.stop_string) !=
                   stop_sequences_.end()) {
      reason = "stop_sequence";
      sequence = completion.stop_string;
    }
    return {{"stop_reason", reason}, {"stop_sequence", std::move(sequence)}};
  }

  std::shared_ptr<Call> call_;
  std::vector<std::string> stop_sequences_;
  std::shared_ptr<ServedModel> model_;
  std::shared_ptr<ToolStreams> tools_;  // null: answers are text only
  int64_t n_prompt_;
};

class WholeAnswer : public Answer {
 public:
  using Answer::Answer;

  void on_end(const GenerationResult& result) override {
    const RequestResult& prompt = *result.prompts[0];
    const Completion& completion = prompt.completions[0];
    ToolAnswer answer;
    answer.text = completion.text;
    if (tools_) {
      answer = tools_->parse(completion.text,
                             tools_->is_cut(completion.finish_reason, completion.stop_string));
    }
    Json content = Json::array();
    if (!answer.text.empty() || answer.calls.empty()) content.push_back(text_block(answer.text));
    for (size_t i = 0; i < answer.calls.size(); ++i) {
      const ToolAnswer::Call& call = answer.calls[i];
      content.push_back(tool_block(i, call.name, input_of(call)));
      if (!call.valid) {
        call_->warn(
            fmt::format("content: the call of {} was cut off; its input has the members "
                        "that were whole",
                        call.name));
      }
    }
    Json json = message(std::move(content));
    json.update(ending(completion, answer.has_whole_calls()));
    json["usage"] = usage(prompt);
    if (!result.receipt.is_null()) json["receipt"] = result.receipt;
    call_->respond(std::move(json));
  }

 private:
  /// The arguments; of those that were cut off the members that are whole, as Anthropic gives
  /// them.
  static Json input_of(const ToolAnswer::Call& call) {
    return Json::parse(call.valid ? call.arguments : whole_members(call.arguments));
  }
};

class StreamedAnswer : public Answer {
 public:
  using Answer::Answer;

  /// Pings may come at any time, also before the first event: a long prompt is not silence.
  void on_start() override {
    call_->ping_with(sse("ping", {{"type", "ping"}}));
    call_->begin_stream(std::string(kSseType));
  }
  void on_token(int choice, const Event& event) override {
    begin(event.n_cached);
    if (tools_) return take(tools_->push(choice, event.text));
    if (!event.text.empty()) add_text(event.text);
  }
  void on_choice_end(int choice, const Event& end) override {
    begin(end.n_cached);
    if (tools_) take(tools_->finish(choice, tools_->is_cut(end.finish_reason, end.stop_string)));
  }
  void on_end(const GenerationResult& result) override {
    const RequestResult& prompt = *result.prompts[0];
    begin(prompt.timings.n_cached);
    if (n_blocks_ == 0) open(Block::kText, text_block(""));  // as in the whole answer
    close();
    send("message_delta",
         {{"delta", ending(prompt.completions[0], tools_ && tools_->has_whole_calls(0))},
          {"usage", usage(prompt)}});
    Json last = Json::object();
    if (!result.receipt.is_null()) last["receipt"] = result.receipt;
    send("message_stop", last);
    call_->end_stream();
  }
  void on_error(const Error& error) override {
    if (!call_->streaming()) return call_->fail(error);
    call_->write(sse("error", error_body(error, http_status(error))));
    call_->end_stream();
  }

 private:
  enum class Block { kNone, kText, kTool };

  /// With the first of the answer: before the prompt's first step nobody knows how much of it is
  /// kept, and what is said of it here must be what message_delta says.
  void begin(int64_t n_cached) {
    if (std::exchange(begun_, true)) return;
    Json start = message(Json::array());
    start.update(Json{{"stop_reason", nullptr}, {"stop_sequence", nullptr}});
    start["usage"] = usage(n_prompt_, n_cached, 0);
    if (!call_->warnings().empty()) start["warnings"] = call_->warnings();
    send("message_start", {{"message", std::move(start)}});
    send("ping", Json::object());
  }
  void take(const std::vector<ToolEvent>& events) {
    for (const ToolEvent& event : events) {
      switch (event.kind) {
        case ToolEvent::Kind::kText:
          add_text(event.text);
          break;
        case ToolEvent::Kind::kThought:  // none: it is text
          break;
        case ToolEvent::Kind::kCallBegin:
          open(Block::kTool, tool_block(event.call, event.text, Json::object()));
          break;
        case ToolEvent::Kind::kArguments:
          delta({{"type", "input_json_delta"}, {"partial_json", event.text}});
          break;
        case ToolEvent::Kind::kCallEnd:
          close();
          break;
      }
    }
  }
  void add_text(const std::string& text) {
    if (block_ != Block::kText) open(Block::kText, text_block(""));
    delta({{"type", "text_delta"}, {"text", text}});
  }
  void open(Block block, Json content) {
    close();
    block_ = block;
    send("content_block_start", {{"index", n_blocks_++}, {"content_block", std::move(content)}});
  }
  void delta(Json content) {
    send("content_block_delta", {{"index", n_blocks_ - 1}, {"delta", std::move(content)}});
  }
  void close() {
    if (std::exchange(block_, Block::kNone) != Block::kNone)
      send("content_block_stop", {{"index", n_blocks_ - 1}});
  }
  void send(std::string_view type, const Json& members) {
    Json event = {{"type", type}};
    event.update(members);
    call_->write(sse(type, event));
  }

  bool begun_ = false;
  Block block_ = Block::kNone;  // that is open
  int n_blocks_ = 0;
};

void answer(const std::shared_ptr<Call>& call) {
  MessageTask task;
  call->read(message_fields(), task);
  if (!task.has_max_tokens) refuse_field("max_tokens", "expected a number, got none");
  set_conversation(task, task);
  generate(call, task,
           [call, task](const Prepared& prepared) -> std::shared_ptr<GenerationListener> {
             if (task.stream) return std::make_shared<StreamedAnswer>(call, task, prepared);
             return std::make_shared<WholeAnswer>(call, task, prepared);
           });
}

// ---- counting ----------------------------------------------------------------------------------

struct CountTask : GenerationTask, Conversation {};

const FieldTable<CountTask>& count_fields() {
  static const FieldTable<CountTask> table = [] {
    FieldTable<CountTask> out;
    add_conversation_fields(out);
    return out;
  }();
  return table;
}

void count_tokens(const std::shared_ptr<Call>& call) {
  CountTask task;
  call->read(count_fields(), task);
  set_conversation(task, task);
  with_model(call, task.model, [call, task](const std::shared_ptr<ServedModel>& model) {
    PrepareOptions options;
    options.model_defaults = call->services().options.model_defaults;
    options.grammars = PrepareOptions::Grammars::kNone;
    options.cancel = &call->cancel_flag();
    const std::optional<Prepared> prepared = prepare(task, model, options);
    call->respond({{"input_tokens", prepared->requests[0].prompt.size()}});
  });
}

}  // namespace

std::vector<Endpoint> endpoints() {
  std::vector<Endpoint> all = message_endpoints();
  for (Endpoint& endpoint : model_endpoints())
    all.push_back(std::move(endpoint));
  return all;
}

std::vector<Endpoint> message_endpoints() {
  return {{"POST",
           "/v1/messages",
           &kAnthropic,
           "The next message of a conversation",
           answer,
           infos_of(message_fields()),
           true,
           {.example = Json::parse(
                R"({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})"),
            .answer = types::object({"id", "type", "role", "model", "content", "usage"}),
            .stream_type = "text/event-stream",
            .generates = true,
            .query = {"beta"}}},
          {"POST",
           "/v1/messages/count_tokens",
           &kAnthropic,
           "The length of a conversation",
           count_tokens,
           infos_of(count_fields()),
           true,
           {.example = Json::parse(R"({"messages": [{"role": "user", "content": "Hi"}]})"),
            .answer = types::object({"input_tokens"}),
            .query = {"beta"}}}};
}

}  // namespace qw::server::anthropic
