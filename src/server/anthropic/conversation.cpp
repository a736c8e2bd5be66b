#include "server/anthropic/conversation.h"

namespace qw::server::anthropic {

namespace {

using server::member;  // of shapes

[[noreturn]] void refuse_block(const std::string& where, std::string_view expected,
                               const std::string& type) {
  throw RequestError(
      ErrorKind::kUnsupported,
      fmt::format(
          "[request] {}: expected {}, got a block of type '{}' (these models read text only)",
          where, expected, printable(type)),
      where);
}

std::string type_of(const Json& block, const std::string& where) {
  return to_string(where + ".type", to_object(where, block).value("type", Json()));
}

std::string member(const Json& block, const char* name, const std::string& where) {
  return to_string(where + "." + name, block.value(name, Json()));
}

/// A string, or a list of blocks: their texts joined. cache_control may stand in a block: prefixes
/// are kept for everybody, so there is nothing to do.
std::string text_of_blocks(const Json& value, const std::string& where) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array())
    refuse_field(where, "expected a string or a list of blocks, got {}", shown(value));
  std::string text;
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string block = fmt::format("{}[{}]", where, i), type = type_of(value[i], block);
    if (type != "text") refuse_block(block, "a text block", type);
    text += member(value[i], "text", block);
  }
  return text;
}

/// The blocks of one message become an assistant's text with calls; or results, each a message of
/// its own, and what the user says after them.
class MessageReader {
 public:
  MessageReader(const Json& message, const std::string& where, Json& out,
                std::vector<Conversation::Place>& places)
      : role_(member(message, "role", where)), out_(out), places_(places) {
    if (role_ != "user" && role_ != "assistant")
      refuse_field(where + ".role", "expected user or assistant, got '{}'", printable(role_));
    const Json& content = message.value("content", Json());
    if (!content.is_array()) {
      text_ = text_of_blocks(content, where + ".content");
      has_text_ = true;
    } else {
      for (size_t i = 0; i < content.size(); ++i)
        read_block(content[i], fmt::format("{}.content[{}]", where, i));
    }
    if (!has_text_ && calls_.empty() && has_results_) return;
    Json plain = {{"role", role_}, {"content", text_}};
    if (!calls_.empty()) plain["tool_calls"] = calls_;
    out_.push_back(std::move(plain));
    places_.push_back({where, std::move(call_places_)});
  }

 private:
  void read_block(const Json& block, const std::string& where) {
    const std::string type = type_of(block, where);
    if (type == "text") {
      text_ += member(block, "text", where);
      has_text_ = true;
    } else if (type == "tool_use" && role_ == "assistant") {
      call_places_.push_back(where);
      calls_.push_back(
          {{"id", member(block, "id", where)},
           {"type", "function"},
           {"function",
            {{"name", member(block, "name", where)},
             {"arguments", to_object(where + ".input", block.value("input", Json::object()))}}}});
    } else if (type == "tool_result" && role_ == "user") {
      const Json content = block.value("content", Json(""));
      places_.push_back({where, {}});
      out_.push_back({{"role", "tool"},
                      {"tool_call_id", member(block, "tool_use_id", where)},
                      {"content", text_of_blocks(content, where + ".content")}});
      has_results_ = true;
    } else if (type != "thinking" && type != "redacted_thinking") {  // no answer of ours has those
      refuse_block(where, role_ == "user" ? "text or tool_result" : "text or tool_use", type);
    }
  }

  std::string role_, text_;
  Json& out_;
  std::vector<Conversation::Place>& places_;
  Json calls_ = Json::array();
  std::vector<std::string> call_places_;
  bool has_text_ = false, has_results_ = false;
};

}  // namespace

// ---- shapes ------------------------------------------------------------------------------------

namespace {

FieldInfo cache_control() {
  return ignored_member("cache_control", "prefixes are kept for everybody");
}

std::vector<FieldInfo> text_members() {
  return {member("text"), cache_control(), ignored_member("citations", "answers cite nothing")};
}

}  // namespace

ShapePtr text_blocks_shape() {
  static const ShapePtr made = [] {
    std::vector<FieldInfo> members = text_members();
    members.insert(members.begin(), member("type"));
    return list_of(std::move(members));
  }();
  return made;
}

ShapePtr messages_shape() {
  static const ShapePtr made = [] {
    Shape blocks;
    blocks.is_list = true;
    blocks.members = {member("type")};
    blocks.tag = "type";
    const std::string no_thoughts = "thoughts are no part of a conversation here";
    blocks.kinds = {
        {"text", text_members()},
        {"tool_use", {member("id"), member("name"), member("input"), cache_control()}},
        {"tool_result",
         {member("tool_use_id"), member("content", text_blocks_shape()), cache_control(),
          ignored_member("is_error", "the model reads it in the result's text or nowhere")}},
        {"thinking", {ignored_member("thinking", no_thoughts), member("signature")}},
        {"redacted_thinking", {ignored_member("data", no_thoughts)}}};
    return list_of(
        {member("role"), member("content", std::make_shared<const Shape>(std::move(blocks)))});
  }();
  return made;
}

ShapePtr tools_shape() {
  static const ShapePtr made = [] {
    std::vector<FieldInfo> members = {member("type"),        member("name"),
                                      member("description"), member("input_schema"),
                                      member("strict"),      cache_control()};
    for (const char* name :
         {"allowed_callers", "defer_loading", "eager_input_streaming", "input_examples"})
      members.push_back(ignored_member(name, "the model is told name, description and schema"));
    return list_of(std::move(members));
  }();
  return made;
}

ShapePtr tool_choice_shape() {
  static const ShapePtr made =
      object_of({member("type"), member("name"), member("disable_parallel_tool_use")});
  return made;
}

std::string read_system(const Json& value) {
  return text_of_blocks(value, "system");
}

Json read_messages(const Json& value, std::vector<Conversation::Place>& places) {
  if (to_array("messages", value).empty())
    refuse_field("messages", "expected at least one message, got none");
  Json out = Json::array();
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string where = fmt::format("messages[{}]", i);
    MessageReader(to_object(where, value[i]), where, out, places);
  }
  return out;
}

Json read_tools(const Json& value) {
  Json out = Json::array();
  for (size_t i = 0; i < to_array("tools", value).size(); ++i) {
    const std::string where = fmt::format("tools[{}]", i);
    const Json& tool = to_object(where, value[i]);
    const Json type = tool.value("type", Json("custom"));
    if (type != "custom" && !type.is_null()) {
      throw RequestError(ErrorKind::kUnsupported,
                         fmt::format("[request] {}: expected a tool with an input_schema, got one "
                                     "of type {} (the server has no tools of its own)",
                                     where, shown(type)),
                         where);
    }
    // In the order that models are told it in.
    Json function = {{"name", member(tool, "name", where)}};
    if (tool.contains("description")) function["description"] = tool["description"];
    function["parameters"] = to_object(where + ".input_schema", tool.value("input_schema", Json()));
    out.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return out;
}

void read_tool_choice(const Json& value, Conversation& conversation) {
  const std::string type = type_of(value, "tool_choice");
  ToolChoice& choice = conversation.tool_choice;
  if (type == "any") {
    choice.mode = ToolChoice::Mode::kRequired;
  } else if (type == "none") {
    choice.mode = ToolChoice::Mode::kNone;
  } else if (type == "tool") {
    choice.mode = ToolChoice::Mode::kNamed;
    choice.name = member(value, "name", "tool_choice");
  } else if (type != "auto") {
    refuse_field("tool_choice", "expected type auto, any, tool or none, got '{}'", printable(type));
  }
  const Json single = value.value("disable_parallel_tool_use", Json());
  if (!single.is_null())
    conversation.parallel_tool_calls = !to_bool("tool_choice.disable_parallel_tool_use", single);
}

namespace {

/// n_before: messages of ours before those of the client.
std::vector<ClientName> client_names(const Conversation& conversation, size_t n_before) {
  std::vector<ClientName> names;
  for (size_t i = 0; i < conversation.places.size(); ++i) {
    const Conversation::Place& place = conversation.places[i];
    const std::string message = fmt::format("messages[{}]", n_before + i);
    names.push_back({message, place.message});
    names.push_back({message + ".tool_call_id", place.message + ".tool_use_id"});
    for (size_t k = 0; k < place.calls.size(); ++k) {
      const std::string call = fmt::format("{}.tool_calls[{}]", message, k);
      names.push_back({call, place.calls[k]});
      names.push_back({call + ".function", place.calls[k]});
    }
  }
  for (size_t i = 0; i < conversation.offered.size(); ++i) {
    const std::string tool = fmt::format("tools[{}]", i);
    names.push_back({tool + ".function", tool});
    names.push_back({tool + ".function.parameters", tool + ".input_schema"});
  }
  return names;
}

}  // namespace

void set_conversation(const Conversation& conversation, GenerationTask& task) {
  if (conversation.messages.is_null())
    refuse_field("messages", "expected a list of messages, got none");
  Json messages = Json::array();
  if (!conversation.system.empty())
    messages.push_back({{"role", "system"}, {"content", conversation.system}});
  for (const Json& message : conversation.messages)
    messages.push_back(message);
  const Json& last = messages.back();
  ToolTask tools;
  tools.names = client_names(conversation, conversation.system.empty() ? 0 : 1);
  tools.tools = conversation.offered;
  tools.choice = conversation.tool_choice;
  tools.parallel_tool_calls = conversation.parallel_tool_calls;
  tools.format = conversation.tool_format;
  tools.thoughts_are_text = true;
  check_tool_choice(tools);
  if (tools.parallel_tool_calls && !has_tools(tools))
    task.warnings.push_back(parallel_without_tools("tool_choice.disable_parallel_tool_use"));
  tools.continue_final_message = last["role"] == "assistant" && !last.contains("tool_calls");
  tools.add_generation_prompt = !tools.continue_final_message;
  task.set_chat(messages, tools);
}

}  // namespace qw::server::anthropic
