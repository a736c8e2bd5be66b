// POST /api/chat.
#include "server/generation/messages.h"
#include "server/ollama/common.h"

namespace qw::server::ollama {

namespace {

struct ChatTask : AnswerTask {
  Json messages = Json::array();
  Json offered = Json::array();  // tools
  std::string tool_format;       // "": the model's
};

/// Ollama's messages: {"role", "content", "images", ...}.
Json read_messages(const Json& value) {
  Json messages = to_array("messages", value);
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string where = fmt::format("messages[{}]", i);
    Json& message = messages[i];
    to_object(where, message);
    if (!message.value("images", Json()).empty()) {
      throw RequestError(ErrorKind::kUnsupported,
                         fmt::format("[request] {}.images: expected none (these models read text "
                                     "only), got some",
                                     where),
                         where + ".images");
    }
    message.erase("images");
    message.erase("thinking");
    if (message.contains("tool_name")) message["name"] = message["tool_name"];
    message.erase("tool_name");
  }
  return messages.empty() ? messages : plain_messages(messages);
}

ShapePtr messages_shape() {
  const ShapePtr function = object_of(
      {member("name"), member("arguments"), ignored_member("index", "calls stand in their order")});
  return list_of(
      {member("role"), member("content", text_parts_shape()), member("images"),
       member("tool_calls", list_of({member("id"), member("type"), member("function", function)})),
       member("tool_call_id"), member("tool_name"), member("name"),
       ignored_member("thinking", "thoughts are no part of a conversation here")},
      kUnknownToAll);
}

const FieldTable<ChatTask>& chat_fields() {
  using Task = ChatTask;
  static const FieldTable<Task> table = [] {
    FieldTable<Task> out;
    out.push_back(honoured<Task>(
                      "messages",
                      [](const Json& value, Task& task) { task.messages = read_messages(value); },
                      "images in them are refused; none: the model is loaded, or unloaded")
                      .as(types::messages(0))
                      .with(messages_shape()));
    add_answer_fields(out);
    out.push_back(list_field<Task>("tools", &Task::offered).with(tools_shape()));
    out.push_back(tool_format_field<Task>(&Task::tool_format));
    return out;
  }();
  return table;
}

void put_message(Json& json, const std::string& text, Json tool_calls = nullptr) {
  json["message"] = {{"role", "assistant"}, {"content", text}};
  if (!tool_calls.is_null()) json["message"]["tool_calls"] = std::move(tool_calls);
}

class ChatAnswer : public AnswerListener {
 public:
  using AnswerListener::AnswerListener;

 protected:
  void put_text(Json& json, const std::string& text, Json tool_calls) const override {
    put_message(json, text, std::move(tool_calls));
  }
};

void chat(const std::shared_ptr<Call>& call) {
  ChatTask task;
  call->read(chat_fields(), task);
  check_keep_alive(*call, task.keep_alive);
  if (task.messages.empty())
    return load_or_unload(call, task, [](Json& answer) { put_message(answer, ""); });
  // As Ollama does: an assistant's message at the end is gone on with.
  const Json& last = task.messages.back();
  ToolTask tools;
  tools.tools = task.offered;
  tools.format = task.tool_format;
  tools.thoughts_are_text = true;
  tools.continue_final_message = last["role"] == "assistant" && !last.contains("tool_calls");
  tools.add_generation_prompt = !tools.continue_final_message;
  task.set_chat(task.messages, tools);
  finish(task);
  GenerationTask generation = task;
  generation.model = model_name(call->services(), task.model);
  generate(call, std::move(generation),
           [call, task](const Prepared& prepared) -> std::shared_ptr<GenerationListener> {
             return std::make_shared<ChatAnswer>(call, task, prepared);
           });
}

}  // namespace

std::vector<Endpoint> chat_endpoints() {
  return {{"POST",
           "/api/chat",
           &kOllama,
           "The next message of a conversation",
           chat,
           infos_of(chat_fields()),
           true,
           {.example = Json::parse(R"({"messages": [{"role": "user", "content": "Hi"}],
                                       "stream": false, "options": {"num_predict": 1}})"),
            .answer = types::object({"model", "created_at", "message", "done"}),
            .stream_type = "application/x-ndjson",
            .generates = true}}};
}

}  // namespace qw::server::ollama
