#include "server/generation/messages.h"

namespace qw::server {

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
