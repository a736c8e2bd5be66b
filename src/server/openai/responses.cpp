// POST /v1/responses: OpenAI's newer form of a chat, its core. Nothing is stored: a conversation is
// sent whole each time.
#include <map>

#include "server/generation/client_words.h"
#include "server/generation/grammar_fields.h"
#include "server/generation/messages.h"
#include "server/generation/sampling_fields.h"
#include "server/openai/common.h"
#include "server/service.h"

namespace qw::server::openai {

namespace {

/// Of `include`.
constexpr const char* kLogprobs = "message.output_text.logprobs";

struct ResponsesTask : GenerationTask {
  Json input;
  std::string instructions;
  ToolTask tool_task;  // but for the messages
  Json tools = Json::array(), tool_choice = "auto", metadata = Json::object();
  Json format = {{"type", "text"}}, max_output_tokens = nullptr;  // as they were given
  bool stream = false, logprobs = false;
  std::optional<int64_t> top_logprobs;
};

/// Tools have their function's members at the top here.
Json chat_tools(const Json& tools) {
  Json out = Json::array();
  for (size_t i = 0; i < to_array("tools", tools).size(); ++i) {
    const Json& tool = to_object(fmt::format("tools[{}]", i), tools[i]);
    if (tool.value("type", Json()) != "function") {
      throw RequestError(
          ErrorKind::kUnsupported,
          fmt::format(
              "[request] tools[{}]: expected type function, got {} (the server has no tools "
              "of its own)",
              i, shown(tool.value("type", Json()))),
          "tools");
    }
    Json function = tool;
    function.erase("type");
    function.erase("strict");
    out.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return out;
}

ToolChoice choice_of(const Json& value) {
  if (value.is_object() && value.contains("name"))
    return {ToolChoice::Mode::kNamed, to_string("tool_choice.name", value["name"])};
  return read_tool_choice("tool_choice", value);
}

/// {"type": "json_schema", "schema"}: response_format without the object between.
void read_text_format(const Json& value, ResponsesTask& task) {
  task.format = to_object("text.format", value);
  Json format = task.format;
  if (format.value("type", Json()) == "json_schema" && format.contains("schema"))
    format = {{"type", "json_schema"}, {"json_schema", {{"schema", format["schema"]}}}};
  read_response_format("text.format", format, task);
}

/// Of what OpenAI can add to an answer there is one thing here.
void read_include(const Json& value, ResponsesTask& task) {
  for (size_t i = 0; i < to_array("include", value).size(); ++i) {
    const std::string where = fmt::format("include[{}]", i);
    const std::string name = to_string(where, value[i]);
    if (name == kLogprobs) {
      task.logprobs = true;
    } else {
      task.warnings.push_back(
          idle_sentence(where, fmt::format("answers have no {} here", printable(name))));
    }
  }
}

ShapePtr text_format_shape() {
  Shape shape;
  shape.members = {member("type")};
  shape.tag = "type";
  shape.kinds = {{"json_schema",
                  {member("name"), member("schema"), member("strict"),
                   ignored_member("description", "the model is told nothing of its format")}}};
  return std::make_shared<const Shape>(std::move(shape));
}

/// Items have an id and a status when they are sent back; they ask for nothing.
ShapePtr input_shape() {
  Shape shape;
  shape.is_list = true;
  shape.members = {member("type"), member("id"), member("status")};
  shape.tag = "type";
  shape.default_kind = "message";
  shape.kinds = {
      {"message", {member("role"), member("content", text_parts_shape())}},
      {"function_call", {member("call_id"), member("name"), member("arguments")}},
      {"function_call_output", {member("call_id"), member("output", text_parts_shape())}}};
  return std::make_shared<const Shape>(std::move(shape));
}

const FieldTable<ResponsesTask>& fields() {
  using Task = ResponsesTask;
  static const FieldTable<Task> table = [] {
    FieldTable<Task> out;
    out.push_back(string_field<Task>("model", &Task::model));
    out.push_back(honoured<Task>(
                      "input", [](const Json& value, Task& task) { task.input = value; },
                      "a text, or messages, function calls and their outputs")
                      .as(types::any_of({types::string(), types::list(types::object())}))
                      .with(input_shape())
                      .must());
    out.push_back(string_field<Task>("instructions", &Task::instructions));
    out.push_back(honoured<Task>("max_output_tokens", [](const Json& value, Task& task) {
                    task.max_output_tokens = value;
                    task.set("max_output_tokens", "max_new_tokens", value);
                  }).as(GenerationConfig::schema("max_new_tokens")));
    out.push_back(parameter_field<Task>("temperature", "temperature"));
    out.push_back(parameter_field<Task>("top_p", "top_p"));
    out.push_back(honoured<Task>("seed", [](const Json& value, Task& task) {
                    task.seed = static_cast<uint64_t>(to_integer("seed", value));
                  }).as(types::integer()));
    out.push_back(flag_field<Task>("stream", &Task::stream));
    out.push_back(honoured<Task>("tools",
                                 [](const Json& value, Task& task) {
                                   task.tools = value;
                                   task.tool_task.tools = chat_tools(value);
                                 })
                      .as(types::list(types::object()))
                      .with(list_of({member("type"), member("name"), member("description"),
                                     member("parameters"), member("strict")},
                                    kUnknownToAll)));
    out.push_back(honoured<Task>("tool_choice",
                                 [](const Json& value, Task& task) {
                                   task.tool_choice = value;
                                   task.tool_task.choice = choice_of(value);
                                 })
                      .as(tool_choice_schema())
                      .with(object_of({member("type"), member("name"),
                                       member("function", object_of({member("name")}))})));
    out.push_back(flag_field<Task>(
        "parallel_tool_calls", [](Task & t) -> auto& { return t.tool_task.parallel_tool_calls; }));
    out.push_back(tool_format_field<Task>([](Task & t) -> auto& { return t.tool_task.format; }));
    out.push_back(honoured<Task>("text.format", read_text_format)
                      .as(types::object())
                      .with(text_format_shape()));
    out.push_back(ignored<Task>("text.verbosity", "these models have no such setting"));
    out.push_back(object_field<Task>("metadata", &Task::metadata, "given back"));
    out.push_back(honoured<Task>("truncation", [](const Json& value, Task&) {
                    if (value != "disabled")
                      refuse_field("truncation",
                                   "expected disabled, got {} (nothing is cut in silence)",
                                   shown(value));
                  }).as(types::choice({"disabled"})));
    out.push_back(
        refused<Task>("previous_response_id", "nothing is stored: send the conversation"));
    out.push_back(refused<Task>("conversation", "nothing is stored: send the conversation"));
    out.push_back(refused<Task>("background", "an answer belongs to its connection"));
    out.push_back(refused<Task>("prompt", "there are no stored prompts"));
    out.push_back(ignored<Task>("store", "nothing is stored"));
    for (const char* name : {"user", "safety_identifier"})
      out.push_back(user_field<Task>(name));
    out.push_back(ignored<Task>("prompt_cache_key", "nothing is kept about users"));
    add_server_fields(out);
    out.push_back(ignored<Task>("reasoning", "these models do not reason apart"));
    out.push_back(
        honoured<Task>("include", read_include, kLogprobs).as(types::list(types::string())));
    out.push_back(integer_field<Task>("top_logprobs", &Task::top_logprobs, 0,
                                      "with log-probabilities; at most 256"));
    out.push_back(ignored<Task>("stream_options.include_obfuscation", "nothing is padded"));
    out.push_back(ignored<Task>("max_tool_calls", "the server has no tools of its own"));
    out.push_back(ignored<Task>("prompt_cache_retention", "what is kept depends on the memory"));
    out.push_back(ignored<Task>("service_tier", "there is one"));
    return out;
  }();
  return table;
}

/// Messages as chat has them: calls join the assistant's message before them. Says in `task` what
/// of them is which item.
Json chat_messages(ResponsesTask& task) {
  Json out = Json::array();
  const auto add = [&](Json message, const std::string& item) {
    task.tool_task.names.push_back({fmt::format("messages[{}]", out.size()), item});
    out.push_back(std::move(message));
  };
  if (!task.instructions.empty())
    add({{"role", "system"}, {"content", task.instructions}}, "instructions");
  if (task.input.is_string()) {
    add({{"role", "user"}, {"content", task.input}}, "input");
    return out;
  }
  for (size_t i = 0; i < to_array("input", task.input).size(); ++i) {
    const std::string where = fmt::format("input[{}]", i);
    const Json& item = to_object(where, task.input[i]);
    const Json type = item.value("type", Json("message"));
    if (type == "message") {
      Json message = Json::object();  // what else there is was told already
      for (const char* name : {"role", "content"}) {
        if (item.contains(name)) message[name] = item[name];
      }
      add(std::move(message), where);
    } else if (type == "function_call") {
      const bool joins = !out.empty() && out.back()["role"] == "assistant";
      if (!joins) add({{"role", "assistant"}, {"content", ""}}, where);
      Json& calls = out.back()["tool_calls"];
      const std::string call =
          fmt::format("messages[{}].tool_calls[{}]", out.size() - 1, calls.size());
      for (const auto& [ours, theirs] : {std::pair("", ""), {".id", ".call_id"}, {".function", ""}})
        task.tool_task.names.push_back({call + ours, where + theirs});
      calls.push_back({{"id", item.value("call_id", Json())},
                       {"type", "function"},
                       {"function",
                        {{"name", item.value("name", Json())},
                         {"arguments", item.value("arguments", Json())}}}});
    } else if (type == "function_call_output") {
      const std::string message = fmt::format("messages[{}]", out.size());
      for (const auto& [ours, theirs] :
           {std::pair(".tool_call_id", ".call_id"), {".content", ".output"}})
        task.tool_task.names.push_back({message + ours, where + theirs});
      add({{"role", "tool"},
           {"tool_call_id", item.value("call_id", Json())},
           {"content", item.value("output", Json())}},
          where);
    } else {
      throw RequestError(
          ErrorKind::kUnsupported,
          fmt::format(
              "[request] {}: expected a message, function_call or function_call_output, got "
              "type {}",
              where, shown(type)),
          where);
    }
  }
  try {
    return plain_messages(out);
  } catch (const Error& error) {
    throw in_client_names(task.tool_task.names, error);
  }
}

// ---- the answer --------------------------------------------------------------------------------

class ResponsesListener : public GenerationListener {
 public:
  ResponsesListener(std::shared_ptr<Call> call, const ResponsesTask& task, const Prepared& prepared)
      : call_(std::move(call)),
        task_(task),
        model_(prepared.model),
        tools_(prepared.tools),
        config_(prepared.requests[0].config) {}
  void on_error(const Error& error) override { call_->fail(error); }

 protected:
  /// Of an item that has ended.
  static const char* status_of(bool is_whole) { return is_whole ? "completed" : "incomplete"; }
  Json text_part(const std::string& text, Json logprobs = Json::array()) const {
    return {{"type", "output_text"},
            {"text", text},
            {"annotations", Json::array()},
            {"logprobs", std::move(logprobs)}};
  }
  Json logprobs_of(std::span<const TokenLogprobs> entries) const {
    if (!task_.logprobs) return Json::array();
    return chat_logprobs(entries, model_->tokenizer(), false)["content"];
  }
  Json message_item(size_t index, const char* status, Json content) const {
    return {{"type", "message"},
            {"id", fmt::format("msg_{}{}", call_->id(), index)},
            {"status", status},
            {"role", "assistant"},
            {"content", std::move(content)}};
  }
  Json call_item(size_t call, const char* status, const std::string& name,
                 const std::string& arguments) const {
    return {{"type", "function_call"},
            {"id", fmt::format("fc_{}{}", call_->id(), call)},
            {"call_id", tools_->call_id(0, call)},
            {"status", status},
            {"name", name},
            {"arguments", arguments}};
  }
  Json response(const char* status, Json output, Json usage, Json incomplete = nullptr) const {
    return {{"id", "resp_" + call_->id()},
            {"object", "response"},
            {"created_at", call_->created()},
            {"status", status},
            {"error", nullptr},
            {"incomplete_details", std::move(incomplete)},
            {"instructions", task_.instructions.empty() ? Json() : Json(task_.instructions)},
            {"model", model_->name()},
            {"output", std::move(output)},
            {"parallel_tool_calls", task_.tool_task.parallel_tool_calls.value_or(false)},
            {"tool_choice", task_.tool_choice},
            {"tools", task_.tools},
            {"metadata", task_.metadata},
            {"temperature", config_.do_sample ? config_.temperature : 0},
            {"top_p", config_.top_p},
            {"max_output_tokens", task_.max_output_tokens},
            {"top_logprobs", task_.top_logprobs.value_or(0)},
            {"text", {{"format", task_.format}}},
            {"truncation", "disabled"},
            {"previous_response_id", nullptr},
            {"store", false},
            {"usage", std::move(usage)}};
  }
  Json finished(Json output, const GenerationResult& result) const {
    const bool cut = result.prompts[0]->completions[0].finish_reason == FinishReason::kLength;
    Json incomplete = nullptr;
    if (cut) incomplete = {{"reason", "max_output_tokens"}};
    const Json usage = {{"input_tokens", result.n_prompt_tokens()},
                        {"input_tokens_details", {{"cached_tokens", result.n_cached_tokens()}}},
                        {"output_tokens", result.n_generated_tokens()},
                        {"output_tokens_details", {{"reasoning_tokens", 0}}},
                        {"total_tokens", result.n_prompt_tokens() + result.n_generated_tokens()}};
    Json json =
        response(cut ? "incomplete" : "completed", std::move(output), usage, std::move(incomplete));
    if (!result.receipt.is_null()) json["receipt"] = result.receipt;
    return json;
  }

  std::shared_ptr<Call> call_;
  ResponsesTask task_;
  std::shared_ptr<ServedModel> model_;
  std::shared_ptr<ToolStreams> tools_;  // null: answers are text only
  GenerationConfig config_;
};

class WholeResponse : public ResponsesListener {
 public:
  using ResponsesListener::ResponsesListener;

  void on_end(const GenerationResult& result) override {
    const Completion& completion = result.prompts[0]->completions[0];
    const bool is_cut = completion.finish_reason == FinishReason::kLength;
    ToolAnswer answer;
    answer.text = completion.text;
    if (tools_) answer = tools_->parse(completion.text, is_cut);
    Json output = Json::array();
    if (!answer.text.empty() || answer.calls.empty()) {
      output.push_back(
          message_item(0, status_of(!is_cut || !answer.calls.empty()),
                       Json::array({text_part(answer.text, logprobs_of(completion.logprobs))})));
    }
    for (size_t i = 0; i < answer.calls.size(); ++i) {
      const ToolAnswer::Call& call = answer.calls[i];
      output.push_back(call_item(i, status_of(call.valid), call.name, call.arguments));
    }
    call_->respond(finished(std::move(output), result));
  }
};

/// The answer as events: items are added, filled by deltas, and done.
class StreamedResponse : public ResponsesListener {
 public:
  using ResponsesListener::ResponsesListener;

  void on_start() override {
    call_->begin_stream("text/event-stream; charset=utf-8");
    for (const char* type : {"response.created", "response.in_progress"}) {
      Json start = response("in_progress", Json::array(), nullptr);
      if (!call_->warnings().empty()) start["warnings"] = call_->warnings();
      send(type, {{"response", std::move(start)}});
    }
  }
  void on_token(int choice, const Event& event) override {
    if (event.logprobs) {
      for (Json& entry : logprobs_of({&*event.logprobs, 1}))
        new_logprobs_.push_back(std::move(entry));
    }
    if (!tools_) return add_text(event.text);
    take(tools_->push(choice, event.text));
  }
  void on_choice_end(int choice, const Event& end) override {
    const bool is_cut = end.finish_reason == FinishReason::kLength;
    if (tools_) take(tools_->finish(choice, is_cut));
    if (output_.empty() && open_ == Open::kNone) begin_text();
    if (open_ == Open::kText) is_whole_ = !is_cut;
    end_item();
  }
  void on_end(const GenerationResult& result) override {
    Json end = finished(output_, result);
    const bool cut = end["status"] == "incomplete";
    send(cut ? "response.incomplete" : "response.completed", {{"response", std::move(end)}});
    call_->end_stream();
  }
  void on_error(const Error& error) override {
    if (!call_->streaming()) return call_->fail(error);
    Json failed = response("failed", output_, nullptr);
    failed["error"] = {{"code", "server_error"}, {"message", error.message()}};
    send("response.failed", {{"response", std::move(failed)}});
    call_->end_stream();
  }

 private:
  enum class Open { kNone, kText, kCall };

  void send(const char* type, Json members) {
    Json event = {{"type", type}, {"sequence_number", sequence_++}};
    event.update(members);
    call_->write(fmt::format("event: {}\n{}", type, sse(event)));
  }
  /// An event about the item under way.
  void send_item(const char* type, Json members) {
    Json all = {{"output_index", output_.size()}, {"item_id", item_["id"]}};
    all.update(members);
    send(type, std::move(all));
  }

  void begin_text() {
    end_item();
    open_ = Open::kText;
    item_ = message_item(output_.size(), "in_progress", Json::array());
    send("response.output_item.added", {{"output_index", output_.size()}, {"item", item_}});
    send_item("response.content_part.added", {{"content_index", 0}, {"part", text_part("")}});
  }
  void add_text(const std::string& text) {
    if (text.empty()) return;
    if (open_ != Open::kText) begin_text();
    text_ += text;
    const Json logprobs = take_logprobs();
    send_item("response.output_text.delta",
              {{"content_index", 0}, {"delta", text}, {"logprobs", logprobs}});
  }
  /// Those of the tokens since the last text.
  Json take_logprobs() {
    for (const Json& entry : new_logprobs_)
      logprobs_.push_back(entry);
    return std::exchange(new_logprobs_, Json::array());
  }
  void begin_call(size_t call, const std::string& name) {
    end_item();
    open_ = Open::kCall;
    item_ = call_item(call, "in_progress", name, "");
    send("response.output_item.added", {{"output_index", output_.size()}, {"item", item_}});
  }
  void take(const std::vector<ToolEvent>& events) {
    for (const ToolEvent& event : events) {
      switch (event.kind) {
        case ToolEvent::Kind::kText:
          add_text(event.text);
          break;
        case ToolEvent::Kind::kCallBegin:
          begin_call(event.call, event.text);
          break;
        case ToolEvent::Kind::kArguments:
          text_ += event.text;
          send_item("response.function_call_arguments.delta", {{"delta", event.text}});
          break;
        case ToolEvent::Kind::kCallEnd:
          is_whole_ = event.valid;
          break;
        case ToolEvent::Kind::kThought:  // none: it is text
          break;
      }
    }
  }
  void end_item() {
    if (open_ == Open::kNone) return;
    if (open_ == Open::kText) {
      take_logprobs();
      const Json part = text_part(text_, std::exchange(logprobs_, Json::array()));
      send_item("response.output_text.done",
                {{"content_index", 0}, {"text", text_}, {"logprobs", part["logprobs"]}});
      send_item("response.content_part.done", {{"content_index", 0}, {"part", part}});
      item_["content"] = Json::array({part});
    } else {
      send_item("response.function_call_arguments.done", {{"arguments", text_}});
      item_["arguments"] = text_;
    }
    item_["status"] = status_of(std::exchange(is_whole_, true));
    send("response.output_item.done", {{"output_index", output_.size()}, {"item", item_}});
    output_.push_back(std::move(item_));
    text_.clear();
    open_ = Open::kNone;
  }

  Json output_ = Json::array();  // items that are done
  Json item_;                    // under way
  std::string text_;             // its text or arguments so far
  Json logprobs_ = Json::array(),
       new_logprobs_ = Json::array();  // of what was sent, of what was not
  Open open_ = Open::kNone;
  bool is_whole_ = true;  // what is open, once it ends
  int64_t sequence_ = 0;
};

void respond(const std::shared_ptr<Call>& call) {
  ResponsesTask task;
  call->read(fields(), task);
  if (task.input.is_null()) refuse_field("input", "expected a text or a list of items, got none");
  if (task.input.is_array() && task.input.empty())
    refuse_field("input", "expected at least one item, got none");
  task.prompt_field = "input";
  if (task.logprobs && has_tools(task.tool_task)) {
    // Whose tokens are text, and whose a call, is known of the text only.
    task.warnings.push_back(idle_sentence("include", "tools are given"));
    task.logprobs = false;
  } else if (!task.logprobs && task.top_logprobs.value_or(0) > 0) {
    task.warnings.push_back(
        idle_sentence("top_logprobs", fmt::format("include does not name {}", kLogprobs)));
  }
  if (task.logprobs) task.set("top_logprobs", "logprobs", task.top_logprobs.value_or(0));
  check_tool_choice(task.tool_task);
  // Of what OpenAI's newer form has by default a client may say that it is so.
  if (task.tool_task.parallel_tool_calls && !has_tools(task.tool_task))
    task.warnings.push_back(parallel_without_tools("parallel_tool_calls"));
  const Json messages = chat_messages(task);
  for (size_t i = 0; i < task.tools.size(); ++i)
    task.tool_task.names.push_back(
        {fmt::format("tools[{}].function", i), fmt::format("tools[{}]", i)});
  task.tool_task.thoughts_are_text = true;
  task.set_chat(messages, task.tool_task);
  generate(call, task, [call, task](const Prepared& p) -> std::shared_ptr<GenerationListener> {
    if (task.stream) return std::make_shared<StreamedResponse>(call, task, p);
    return std::make_shared<WholeResponse>(call, task, p);
  });
}

}  // namespace

std::vector<Endpoint> response_endpoints() {
  return {{"POST",
           "/v1/responses",
           &kOpenAi,
           "The next message of a conversation, newer form",
           respond,
           infos_of(fields()),
           true,
           {.example = {{"input", "Hi"}, {"max_output_tokens", 1}},
            .answer = types::object({"id", "object", "created_at", "status", "model", "output"}),
            .stream_type = "text/event-stream",
            .generates = true}}};
}

}  // namespace qw::server::openai
