#include "server/generation/messages.h"

namespace qw::server {

namespace {

constexpr const char* kTemplateOnly = "only a chat template may read it";

/// The form of the API's first year becomes today's: a call of the assistant's, its result.
void modernise(Json& message) {
  if (message.value("role", Json()) == "function") message["role"] = "tool";
  const auto old = message.find("function_call");
  if (old == message.end()) return;
  Json call = std::move(*old);
  message.erase("function_call");
  if (call.is_null()) return;
  Json& calls = message["tool_calls"];
  if (!calls.is_array()) calls = Json::array();
  calls.insert(calls.begin(), Json{{"type", "function"}, {"function", std::move(call)}});
}

}  // namespace

ShapePtr text_parts_shape() {
  static const ShapePtr shape =
      list_of({member("type"), member("text"),
               ignored_member("cache_control", "prefixes are kept for everybody"),
               ignored_member("annotations", "they are no part of the text"),
               ignored_member("logprobs", "they are no part of the text")});
  return shape;
}

ShapePtr messages_shape() {
  static const ShapePtr shape = [] {
    const ShapePtr function = object_of({member("name"), member("arguments")}, kUnknownToAll);
    const ShapePtr calls = list_of({member("id"), member("type"), member("function", function),
                                    ignored_member("index", "calls stand in their order")},
                                   kUnknownToAll);
    std::vector<FieldInfo> members = {member("role"),
                                      member("content", text_parts_shape()),
                                      member("name"),
                                      member("tool_calls", calls),
                                      member("tool_call_id"),
                                      member("tool_name"),
                                      member("function_call", function)};
    for (const char* name : {"reasoning_content", "reasoning", "refusal", "annotations", "audio"})
      members.push_back(ignored_member(name, kTemplateOnly));
    return list_of(std::move(members), kUnknownToAll);
  }();
  return shape;
}

ShapePtr tools_shape() {
  static const ShapePtr shape = list_of(
      {member("type"), member("function", object_of({member("name"), member("description"),
                                                     member("parameters"), member("strict")},
                                                    kUnknownToAll))},
      kUnknownToAll);
  return shape;
}

ShapePtr tool_choice_shape() {
  static const ShapePtr shape =
      object_of({member("type"), member("function", object_of({member("name")}))});
  return shape;
}

std::string text_of_content(const Json& content, const std::string& where) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array())
    refuse_field(where, "expected a string or a list of parts, got {}", shown(content));
  std::string text;
  for (const Json& part : content) {
    if (part.is_string()) {
      text += part.get<std::string>();
      continue;
    }
    const auto type = part.is_object() ? part.find("type") : part.end();
    if (type == part.end() || !type->is_string())
      refuse_field(where, "expected parts with a type, got {}", shown(part));
    if (*type != "text" && *type != "input_text" && *type != "output_text") {
      throw RequestError(
          ErrorKind::kUnsupported,
          fmt::format("[request] {}: expected text, got a part of type {} (these models read text "
                      "only)",
                      where, shown(*type)),
          where);
    }
    text += to_string(where + ".text", part.value("text", Json()));
  }
  return text;
}

Json plain_messages(const Json& messages) {
  if (to_array("messages", messages).empty())
    refuse_field("messages", "expected at least one message, got none");
  Json out = Json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string where = fmt::format("messages[{}]", i);
    Json message = to_object(where, messages[i]);
    const std::string role = to_string(where + ".role", message.value("role", Json()));
    if (role == "developer") message["role"] = "system";
    modernise(message);
    const auto content = message.find("content");
    if (content == message.end() || content->is_null()) {
      if (!message.contains("tool_calls"))
        refuse_field(where + ".content", "expected a text, got none");
      message["content"] = "";
    } else {
      *content = text_of_content(*content, where + ".content");
    }
    out.push_back(std::move(message));
  }
  return out;
}

}  // namespace qw::server
