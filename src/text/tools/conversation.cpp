#include "text/tools/conversation.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"
#include "text/chat_template.h"

namespace qw::tools {
namespace {

using Json = nlohmann::ordered_json;
constexpr std::string_view kComponent = "tools";

template <typename... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  fail(ErrorKind::kInvalidArgument, kComponent, "{}",
       fmt::format(format, std::forward<Args>(args)...));
}

const Json* member(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

std::string string_member(const Json& object, const char* key, std::string_view where) {
  const Json* value = member(object, key);
  if (!value) return {};
  if (!value->is_string()) {
    refuse("{}.{}: expected a string, got {}", where, key, printable(value->dump(), 60));
  }
  return value->get<std::string>();
}

/// The text of `content`: a string, or parts of text one after another.
std::string text_of(const Json& message, const std::string& where) {
  const Json* content = member(message, "content");
  if (!content) return {};
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) {
    refuse("{}.content: expected a string or text parts, got {}", where,
           printable(content->dump(), 60));
  }
  std::string text;
  for (size_t i = 0; i < content->size(); ++i) {
    const Json& part = (*content)[i];
    const std::string here = fmt::format("{}.content[{}]", where, i);
    const Json* type = part.is_object() ? member(part, "type") : nullptr;
    const Json* words = part.is_object() ? member(part, "text") : nullptr;
    if (!words || !words->is_string() || (type && *type != "text")) {
      refuse("{}: expected a part of type text, got {}", here, printable(part.dump(), 60));
    }
    text += words->get<std::string>();
  }
  return text;
}

PastCall read_function(const Json& function, const std::string& where) {
  if (!function.is_object()) {
    refuse("{}: expected an object with name and arguments, got {}", where,
           printable(function.dump(), 60));
  }
  PastCall call;
  call.name = string_member(function, "name", where);
  if (!is_function_name(call.name)) {
    refuse("{}.name: expected a function's name, got '{}'", where, printable(call.name));
  }
  const Json* arguments = member(function, "arguments");
  if (!arguments) {
    call.arguments = "{}";
  } else if (arguments->is_string()) {
    call.arguments = arguments->get<std::string>();
  } else if (arguments->is_object()) {
    call.arguments = python_json(*arguments);
  } else {
    refuse("{}.arguments: expected a string or an object, got {}", where,
           printable(arguments->dump(), 60));
  }
  return call;
}

std::vector<PastCall> read_calls(const Json& message, const std::string& where) {
  std::vector<PastCall> calls;
  if (const Json* call = member(message, "function_call")) {  // of the API's first year
    calls.push_back(read_function(*call, where + ".function_call"));
  }
  const Json* list = member(message, "tool_calls");
  if (!list) return calls;
  if (!list->is_array()) {
    refuse("{}.tool_calls: expected an array, got {}", where, printable(list->dump(), 60));
  }
  std::set<std::string> ids;
  for (size_t i = 0; i < list->size(); ++i) {
    const Json& item = (*list)[i];
    const std::string here = fmt::format("{}.tool_calls[{}]", where, i);
    const Json* function = item.is_object() ? member(item, "function") : nullptr;
    if (!function) {
      refuse("{}: expected an object with \"function\", got {}", here, printable(item.dump(), 60));
    }
    PastCall call = read_function(*function, here + ".function");
    call.id = string_member(item, "id", here);
    if (!call.id.empty() && !ids.insert(call.id).second) {
      refuse("{}.id: expected an id of its own, got '{}' twice", here, printable(call.id));
    }
    calls.push_back(std::move(call));
  }
  return calls;
}

/// Reads messages one after another; remembers whose results are still to come.
class Reader {
 public:
  std::vector<Turn> read(const Json& messages, bool calls_may_wait) {
    if (!messages.is_array() || messages.empty()) {
      refuse("messages: expected an array of messages, got {}", printable(messages.dump(), 60));
    }
    for (size_t i = 0; i < messages.size(); ++i)
      add(messages[i], fmt::format("messages[{}]", i));
    if (!calls_may_wait) check_answered();
    return std::move(turns_);
  }

 private:
  void add(const Json& message, const std::string& where) {
    if (!message.is_object()) {
      refuse("{}: expected an object with role and content, got {}", where,
             printable(message.dump(), 60));
    }
    const std::string role = string_member(message, "role", where);
    if (role == "tool" || role == "function") {
      add_result(message, where);
      return;
    }
    check_answered();
    Turn turn;
    if (role == "system" || role == "developer") {
      turn.role = Turn::Role::kSystem;
    } else if (role == "user") {
      turn.role = Turn::Role::kUser;
    } else if (role == "assistant") {
      turn.role = Turn::Role::kAssistant;
    } else {
      refuse("{}.role: expected system, developer, user, assistant or tool, got '{}'", where,
             printable(role));
    }
    turn.text = text_of(message, where);
    turn.calls = read_calls(message, where);
    if (turn.role != Turn::Role::kAssistant && !turn.calls.empty()) {
      refuse("{}: expected tool_calls of the assistant only, got some of role {}", where, role);
    }
    last_where_ = where;
    turns_.push_back(std::move(turn));
  }

  void add_result(const Json& message, const std::string& where) {
    const std::string id = string_member(message, "tool_call_id", where);
    std::string name = string_member(message, "name", where);
    if (name.empty()) name = string_member(message, "tool_name", where);
    const auto answers = [&](const PastCall& call) {
      return id.empty() ? !call.result && (name.empty() || call.name == name) : call.id == id;
    };
    std::vector<PastCall>* calls = turns_.empty() ? nullptr : &turns_.back().calls;
    const auto call = calls ? std::find_if(calls->begin(), calls->end(), answers)
                            : std::vector<PastCall>::iterator{};
    if (!calls || call == calls->end()) {
      refuse("{}: expected the result of a call of the assistant's message before it, got {}",
             where,
             !id.empty()    ? fmt::format("tool_call_id '{}'", printable(id))
             : name.empty() ? "one more result than calls"
                            : fmt::format("one of '{}', of which no call waits", printable(name)));
    }
    if (call->result) {
      refuse("{}.tool_call_id: expected one result for each call, got another of '{}'", where,
             printable(id));
    }
    call->result = text_of(message, where);
  }

  void check_answered() const {
    if (turns_.empty()) return;
    for (size_t i = 0; i < turns_.back().calls.size(); ++i) {
      const PastCall& call = turns_.back().calls[i];
      if (call.result) continue;
      refuse("{}.tool_calls[{}]: expected a tool message with its result, got none ({})",
             last_where_, i, printable(call.id.empty() ? call.name : call.id));
    }
  }

  std::vector<Turn> turns_;
  std::string last_where_;  // of the last turn
};

/// CHINESE_CHAR_RE of Qwen-Agent.
bool has_chinese(std::string_view text) {
  for (size_t i = 0, length = 0; i < text.size(); i += length) {
    const Utf8Step step = decode_utf8(text.substr(i));
    if (step.code_point >= 0x4E00 && step.code_point <= 0x9FFF) return true;
    length = step.length;
  }
  return false;
}

}  // namespace

std::vector<Turn> read_conversation(const Json& messages, bool calls_may_wait) {
  return Reader().read(messages, calls_may_wait);
}

Conversation read_chat(const ToolChat& chat) {
  Conversation out;
  QW_CHECK(chat.messages, "a conversation to read");
  if (chat.add_generation_prompt && chat.continue_final_message) {
    refuse("continue_final_message: expected it without add_generation_prompt, got both");
  }
  out.turns = read_conversation(*chat.messages, !chat.add_generation_prompt);
  if (chat.tools) out.functions = read_tools(*chat.tools);
  const auto named = [&](const ToolFunction& f) { return f.name == chat.choice.name; };
  if (chat.choice.mode == ToolChoice::Mode::kNamed &&
      std::none_of(out.functions.begin(), out.functions.end(), named)) {
    refuse("tool_choice: expected the name of a tool, got '{}'", printable(chat.choice.name));
  }
  if (chat.choice.mode == ToolChoice::Mode::kRequired && out.functions.empty()) {
    refuse("tool_choice: expected tools when a call is required, got none");
  }
  if (chat.choice.mode == ToolChoice::Mode::kNone) out.functions.clear();
  out.chinese = chat.language == PromptLanguage::kChinese;
  for (const Turn& turn : out.turns) {
    if (chat.language != PromptLanguage::kFromText) break;
    if (turn.role != Turn::Role::kAssistant && has_chinese(turn.text)) out.chinese = true;
  }
  const std::vector<PastCall>& last = out.turns.back().calls;
  out.ends_with_results = !last.empty() && std::all_of(last.begin(), last.end(), [](const auto& c) {
    return c.result.has_value();
  });
  return out;
}

ToolPrompt begin_prompt(const ToolChat& chat, const Conversation& conversation) {
  ToolPrompt prompt;
  prompt.add_generation_prompt = chat.add_generation_prompt;
  prompt.continue_final_message = chat.continue_final_message;
  prompt.functions = conversation.functions;
  if (chat.choice.mode == ToolChoice::Mode::kNamed) {
    std::erase_if(prompt.functions, [&](const auto& f) { return f.name != chat.choice.name; });
  }
  prompt.must_call = chat.choice.mode == ToolChoice::Mode::kNamed ||
                     chat.choice.mode == ToolChoice::Mode::kRequired;
  prompt.may_repeat = chat.parallel_tool_calls.value_or(true);
  return prompt;
}

Json message_of(std::string_view role, std::string text) {
  return {{"role", std::string(role)}, {"content", std::move(text)}};
}

std::string_view name_of(Turn::Role role) {
  return role == Turn::Role::kSystem ? "system" : role == Turn::Role::kUser ? "user" : "assistant";
}

Json messages_without_calls(const Conversation& conversation) {
  Json messages = Json::array();
  const auto last_is = [&](std::string_view role) {
    return !messages.empty() && messages.back()["role"] == role;
  };
  const auto tell = [&](const std::string& text) {
    if (!last_is("user")) messages.push_back(message_of("user", ""));
    messages.back()["content"].get_ref<std::string&>() += text;
  };
  const bool zh = conversation.chinese;
  for (const Turn& turn : conversation.turns) {
    // Two messages of the user would be one to the model: the answers to the first are in it.
    if (turn.role == Turn::Role::kUser && last_is("user")) {
      messages.push_back(message_of("assistant", "..."));
    }
    if (turn.calls.empty() || !turn.text.empty()) {
      messages.push_back(message_of(name_of(turn.role), turn.text));
    }
    for (const PastCall& call : turn.calls) {
      tell(zh ? fmt::format("\n\n工具\"{}\"被调用时使用了以下参数：\n{}", call.name, call.arguments)
              : fmt::format("\n\nThe tool \"{}\" was called with these arguments: \n{}", call.name,
                            call.arguments));
    }
    for (const PastCall& call : turn.calls) {
      if (!call.result) continue;
      tell((zh ? "\n\n该工具返回了以下结果：\n"
               : "\n\nThe tool has returned the following result: \n") +
           *call.result);
    }
  }
  return messages;
}

std::string python_json(const Json& value) {
  // Templates write JSON as Python does; there is no need for a second writer.
  static const ChatTemplate writer{"{{ value | tojson }}"};
  const Json none = Json::array(), variables = {{"value", value}};
  RenderInput input;
  input.messages = &none;
  input.variables = &variables;
  return writer.render(input).text;
}

}  // namespace qw::tools
