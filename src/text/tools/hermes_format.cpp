// The format of Qwen2.5, from Hermes: <tool_call>{"name", "arguments"}</tool_call>.
//
// A template that knows tools writes them itself, and gets the messages in the form that templates
// expect. For another template the same text is written as Qwen-Agent writes it (0.0.34,
// qwen_agent/llm/fncall_prompts/nous_fncall_prompt.py, Apache-2.0); tests/golden/tool_calls.
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/guarded_json.h"
#include "base/json_limits.h"
#include "text/tools/call_parser.h"
#include "text/tools/conversation.h"
#include "text/tools/formats.h"

namespace qw::tools {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kOpen = "<tool_call>";
constexpr std::string_view kClose = "</tool_call>";

/// Arguments as JSON if they are, else as a string.
Json arguments_as_json(const std::string& arguments) {
  Json value = Json::parse(arguments, nullptr, /*allow_exceptions=*/false);
  return value.is_discarded() ? Json(arguments) : value;
}

// ---- the prompt

Json messages_for_template(const Conversation& conversation) {
  Json messages = Json::array();
  for (const Turn& turn : conversation.turns) {
    Json message = message_of(name_of(turn.role), turn.text);
    for (const PastCall& call : turn.calls) {
      Json item = {
          {"type", "function"},
          {"function", {{"name", call.name}, {"arguments", arguments_as_json(call.arguments)}}}};
      if (!call.id.empty()) item["id"] = call.id;
      message["tool_calls"].push_back(std::move(item));
    }
    messages.push_back(std::move(message));
    for (const PastCall& call : turn.calls) {
      if (!call.result) continue;
      Json result = message_of("tool", *call.result);
      result["name"] = call.name;
      if (!call.id.empty()) result["tool_call_id"] = call.id;
      messages.push_back(std::move(result));
    }
  }
  return messages;
}

std::string system_text(const std::vector<ToolFunction>& functions) {
  std::string lines;
  for (const ToolFunction& function : functions) {
    lines += python_json({{"type", "function"}, {"function", *function.function}}) + "\n";
  }
  return fmt::format(
      "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
      "You are provided with function signatures within <tools></tools> XML tags:\n"
      "<tools>\n{}</tools>\n\n"
      "For each function call, return a json object with function name and arguments within "
      "<tool_call></tool_call> XML tags:\n"
      "<tool_call>\n{{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n</tool_call>",
      lines);
}

std::string call_text(const PastCall& call) {
  const Json json = {{"name", call.name}, {"arguments", arguments_as_json(call.arguments)}};
  return fmt::format("{}\n{}\n{}", kOpen, python_json(json), kClose);
}

/// Calls in the assistant's messages, results in the user's.
Json messages_in_text(const Conversation& conversation) {
  Json messages = Json::array();
  const auto append = [&](std::string_view role, const std::string& text) {
    if (messages.empty() || messages.back()["role"] != role) {
      messages.push_back(message_of(role, text));
      return;
    }
    auto& content = messages.back()["content"].get_ref<std::string&>();
    if (!content.empty() && !content.ends_with('\n')) content += '\n';
    content += text;
  };
  const std::string system = system_text(conversation.functions);
  if (conversation.turns.front().role != Turn::Role::kSystem) {
    messages.push_back(message_of("system", system));
  }
  for (const Turn& turn : conversation.turns) {
    if (turn.role != Turn::Role::kAssistant) {
      messages.push_back(message_of(name_of(turn.role), turn.text));
      if (messages.size() == 1) messages[0]["content"].get_ref<std::string&>() += "\n\n" + system;
      continue;
    }
    if (!turn.text.empty() || turn.calls.empty()) append("assistant", turn.text);
    for (const PastCall& call : turn.calls)
      append("assistant", call_text(call));
    bool first = true;
    for (const PastCall& call : turn.calls) {
      if (!call.result) continue;
      const std::string text = fmt::format("<tool_response>\n{}\n</tool_response>", *call.result);
      if (first)
        messages.push_back(message_of("user", text));
      else
        messages.back()["content"].get_ref<std::string&>() += "\n" + text;
      first = false;
    }
  }
  return messages;
}

// ---- the answer

class HermesParser final : public CallParser {
 public:
  explicit HermesParser(const ToolPrompt& prompt) : CallParser(prompt) {}

 private:
  enum class State { kText, kHead, kWhole, kArguments, kTail, kAfter };
  static constexpr std::array<std::string_view, 1> kBegin = {kOpen};
  static constexpr std::array<std::string_view, 1> kEnd = {kClose};

  bool step() override {
    switch (state_) {
      case State::kText:
        return read_text();
      case State::kHead:
        return read_head();
      case State::kWhole:
        return read_whole();
      case State::kArguments:
        return read_call_arguments();
      case State::kTail:
        return read_tail();
      case State::kAfter:
        return read_after();
    }
    return false;
  }

  bool go(State next) {
    state_ = next;
    return true;
  }

  bool not_a_call() {
    say(candidate_);
    return go(State::kText);
  }

  bool read_text() {
    const Found found = read_until(has_functions() ? std::span(kBegin) : std::span(kBegin).first(0),
                                   ToolEvent::Kind::kText);
    if (found.marker < 0) return false;
    if (!may_call()) {
      end_answer();
      return false;
    }
    candidate_ = rest().substr(0, found.at + found.length);
    take(candidate_.size());
    return go(State::kHead);
  }

  /// Walks over pieces with white space between them.
  struct Walk {
    std::string_view text;
    size_t at = 0;
    enum class Outcome { kYes, kNo, kNeedsText } outcome = Outcome::kYes;

    void space() { at += std::min(text.substr(at).find_first_not_of(kSpace), text.size() - at); }
    Walk& piece(std::string_view literal) {
      if (outcome != Outcome::kYes) return *this;
      space();
      if (text.substr(at).starts_with(literal))
        at += literal.size();
      else
        outcome = literal.starts_with(text.substr(at)) ? Outcome::kNeedsText : Outcome::kNo;
      return *this;
    }
    /// To the end of a string whose first quote was read. One with escapes is not read.
    std::string_view string() {
      if (outcome != Outcome::kYes) return {};
      const size_t begin = at, end = text.find_first_of("\"\\\n", at);
      if (end == std::string_view::npos)
        outcome = Outcome::kNeedsText;
      else if (text[end] != '"')
        outcome = Outcome::kNo;
      if (outcome != Outcome::kYes) return {};
      at = end + 1;
      return text.substr(begin, end - begin);
    }
  };

  /// {"name": "...", "arguments": { in this order, as trained, so that arguments can be streamed.
  bool read_head() {
    Walk walk{rest()};
    walk.piece("{").piece("\"name\"").piece(":").piece("\"");
    const std::string name(walk.string());
    if (walk.outcome == Walk::Outcome::kYes && !is_known(name)) return not_a_call();
    walk.piece(",").piece("\"arguments\"").piece(":");
    walk.space();
    const size_t arguments = walk.at;
    walk.piece("{");
    if (walk.outcome == Walk::Outcome::kNeedsText && !ending()) return false;
    if (walk.outcome != Walk::Outcome::kYes) return go(State::kWhole);
    take(arguments);
    begin_call(name);
    return go(State::kArguments);
  }

  /// Any other order of members, once the object is complete.
  bool read_whole() {
    const std::string_view text = rest();
    const size_t begin = std::min(text.find_first_not_of(kSpace), text.size());
    JsonSpan span;
    if (!text.substr(begin).starts_with('{')) {
      return begin == text.size() && !ending() ? false : not_a_call();
    }
    const size_t end = begin + span.read(text.substr(begin));
    if (span.state() == JsonSpan::State::kOpen && !ending()) return false;
    if (span.state() != JsonSpan::State::kClosed) return not_a_call();
    const Json json = parse_bounded(text.substr(begin, end - begin));
    const auto name = json.is_object() ? json.find("name") : json.end();
    if (!json.is_object() || name == json.end() || !name->is_string() ||
        !is_known(name->get_ref<const std::string&>())) {
      return not_a_call();
    }
    take(end);
    begin_call(name->get<std::string>());
    for (const char* key : {"arguments", "parameters"}) {
      const auto arguments = json.find(key);
      if (arguments == json.end()) continue;
      add_arguments(arguments->is_string() ? arguments->get<std::string>()
                                           : python_json(*arguments));
      break;
    }
    end_call();
    closes_object_ = false;
    return go(State::kTail);
  }

  /// Discarded unless it is JSON of reasonable depth.
  static Json parse_bounded(std::string_view text) {
    try {
      const JsonLimits limits;
      return parse_guarded_or_discard<Json>(
          text, JsonLimitGuard(limits, ErrorKind::kInvalidArgument, "tool call"));
    } catch (const Error&) {
      return Json(Json::value_t::discarded);
    }
  }

  bool read_call_arguments() {
    const Arguments got = read_arguments(kEnd);
    if (got.kind == Arguments::Kind::kNeedsText) return false;
    end_call();
    closes_object_ = true;
    return go(got.kind == Arguments::Kind::kClosed ? State::kTail : State::kText);
  }

  bool read_tail() {
    Walk walk{rest()};
    if (closes_object_) walk.piece("}");
    walk.piece(kClose);
    if (walk.outcome == Walk::Outcome::kNeedsText && !ending()) return false;
    take(walk.at);
    return go(walk.outcome == Walk::Outcome::kYes ? State::kAfter : State::kText);
  }

  bool read_after() {
    take_space();
    return !rest().empty() && go(State::kText);
  }

  State state_ = State::kText;
  std::string candidate_;  // the marker before a call that is not decided
  bool closes_object_ = true;
};

class HermesFormat final : public ToolFormat {
 public:
  std::string_view name() const noexcept override { return "hermes"; }

  std::vector<std::string> stop_strings() const override { return {}; }

  ToolPrompt prompt(const ToolChat& chat) const override {
    const Conversation conversation = read_chat(chat);
    ToolPrompt prompt = begin_prompt(chat, conversation);
    Json messages;
    if (chat.template_renders_tools) {
      messages = messages_for_template(conversation);
      if (!conversation.functions.empty()) prompt.tools = std::make_shared<const Json>(*chat.tools);
    } else {
      messages = conversation.functions.empty() ? messages_without_calls(conversation)
                                                : messages_in_text(conversation);
    }
    prompt.messages = std::make_shared<const Json>(std::move(messages));
    return prompt;
  }

  std::unique_ptr<ToolCallParser> parser(const ToolPrompt& prompt) const override {
    return std::make_unique<HermesParser>(prompt);
  }

  ToolCallStructure structure(const ToolPrompt& prompt) const override {
    ToolCallStructure out;
    for (const ToolFunction& function : prompt.functions)
      out.functions.push_back({function.name, argument_schema(function), {}});
    out.must_call = prompt.must_call;
    out.text_first = !prompt.must_call;
    out.may_repeat = prompt.may_repeat;
    out.trigger = kOpen;
    out.open = fmt::format("{}\n{{\"name\": \"", kOpen);
    out.separator = "\", \"arguments\": ";
    out.close = fmt::format("}}\n{}", kClose);
    out.next = "\n";
    return out;
  }
};

}  // namespace

const ToolFormat& hermes_format() {
  static const HermesFormat format;
  return format;
}

}  // namespace qw::tools
