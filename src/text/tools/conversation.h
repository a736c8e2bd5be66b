// A conversation with tool calls, checked: every call with its result.
//
// Level 3 (text). What all tool formats start from.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/tools/tool_format.h"

namespace qw::tools {

struct PastCall {
  std::string id;  // may be empty
  std::string name;
  std::string arguments;  // as text
  std::optional<std::string> result;
};

struct Turn {
  enum class Role { kSystem, kUser, kAssistant };
  Role role = Role::kUser;
  std::string text;
  std::vector<PastCall> calls;  // of the assistant
};

/// The turns, results beside their calls. Errors: as ToolFormat::prompt says. `calls_may_wait`:
/// the calls of the last message need no results.
std::vector<Turn> read_conversation(const nlohmann::ordered_json& messages, bool calls_may_wait);

/// Everything that `prompt` of a format needs, checked.
struct Conversation {
  std::vector<Turn> turns;
  std::vector<ToolFunction> functions;  // that are written; empty: none
  bool chinese = false;
  bool ends_with_results = false;
};
Conversation read_chat(const ToolChat& chat);

/// The members of a ToolPrompt that do not depend on the format, with what may be called.
ToolPrompt begin_prompt(const ToolChat& chat, const Conversation& conversation);

/// {"role", "content"}.
nlohmann::ordered_json message_of(std::string_view role, std::string text);
std::string_view name_of(Turn::Role role);

/// For answers without calls: past calls and results told as the user's words, so that the model
/// does not go on calling (Qwen-Agent's _remove_fncall_messages).
nlohmann::ordered_json messages_without_calls(const Conversation& conversation);

/// json.dumps(value, ensure_ascii=False) of Python.
std::string python_json(const nlohmann::ordered_json& value);

}  // namespace qw::tools
