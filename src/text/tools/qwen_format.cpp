// The format of Qwen1.5 (and Qwen2): ✿FUNCTION✿, ✿ARGS✿, ✿RESULT✿, ✿RETURN✿ in the assistant's
// turn.
//
// The models were trained on this very text, so it is a fact of the format. Source: Qwen-Agent
// 0.0.34, qwen_agent/llm/fncall_prompts/qwen_fncall_prompt.py (Apache-2.0), which
// tests/golden/tool_calls compares.
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/tools/call_parser.h"
#include "text/tools/conversation.h"
#include "text/tools/formats.h"

namespace qw::tools {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFunction = "✿FUNCTION✿";
constexpr std::string_view kArgs = "✿ARGS✿";
constexpr std::string_view kResult = "✿RESULT✿";
constexpr std::string_view kReturn = "✿RETURN✿";
constexpr std::string_view kCodeInterpreter = "code_interpreter";  // takes code, not JSON

// ---- code as arguments: a fenced block in the text, a JSON object to clients

/// The parameter of a function that takes code: its only one, or "code".
std::string code_parameter(const ToolFunction& function) {
  const auto properties = function.parameters->find("properties");
  const bool one = properties != function.parameters->end() && properties->is_object() &&
                   properties->size() == 1;
  return one ? properties->begin().key() : "code";
}

/// {"code": "..."} as a block on lines of its own; anything else as it stands.
std::string arguments_in_text(const PastCall& call) {
  if (call.arguments.starts_with("```")) return fmt::format("\n{}", call.arguments);
  if (call.name != kCodeInterpreter) return call.arguments;
  const Json json = Json::parse(call.arguments, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || json.size() != 1 || !json.front().is_string()) return call.arguments;
  return fmt::format("\n```py\n{}\n```", json.front().get_ref<const std::string&>());
}

/// A block as {"code": "..."}; anything else as it stands.
std::string code_as_json(const std::string& parameter, const std::string& text) {
  constexpr std::string_view kFence = "```", kLastFence = "\n```";
  const size_t line = text.find("\n"), last = text.rfind(kLastFence);
  if (!text.starts_with(kFence) || line == std::string::npos || !text.ends_with(kLastFence)) {
    return text;
  }
  const std::string code = last > line ? text.substr(line + 1, last - line - 1) : "";
  return python_json(Json{{parameter, code}});
}

// ---- the prompt

std::string describe(const ToolFunction& function, bool zh) {
  const bool code = function.name == kCodeInterpreter;
  const std::string_view arguments =
      zh ? (code ? "此工具的输入应为Markdown代码块。" : "此工具的输入应为JSON对象。")
         : (code ? "Enclose the code within triple backticks (`) at the beginning and end of the "
                   "code."
                 : "Format the arguments as a JSON object.");
  return fmt::format("### {0}\n\n{0}: {1} {2}{3} {4}", function.name, function.description,
                     zh ? "输入参数：" : "Parameters: ", python_json(*function.parameters),
                     arguments);
}

std::string commands(const std::string& names, bool zh) {
  return zh ? fmt::format(
                  "## 你可以在回复中插入零次、一次或多次以下命令以调用工具：\n\n"
                  "{}: 工具名称，必须是[{}]之一。\n{}: 工具输入\n{}: 工具结果\n"
                  "{}: 根据工具结果进行回复，需将图片用![](url)渲染出来",
                  kFunction, names, kArgs, kResult, kReturn)
            : fmt::format(
                  "## When you need to call a tool, please insert the following command in your "
                  "reply, which can be called zero or multiple times according to your needs:\n\n"
                  "{}: The tool to use, should be one of [{}]\n{}: The input of the tool\n"
                  "{}: Tool results\n"
                  "{}: Reply based on tool results. Images need to be rendered as ![](url)",
                  kFunction, names, kArgs, kResult, kReturn);
}

std::string parallel_commands(const std::string& names, bool zh) {
  return zh ? fmt::format(
                  "## 你可以在回复中插入以下命令以并行调用N个工具：\n\n"
                  "{0}: 工具1的名称，必须是[{1}]之一\n{2}: 工具1的输入\n{0}: 工具2的名称\n"
                  "{2}: 工具2的输入\n...\n{0}: 工具N的名称\n{2}: 工具N的输入\n{3}: 工具1的结果\n"
                  "{3}: 工具2的结果\n...\n{3}: 工具N的结果\n"
                  "{4}: 根据工具结果进行回复，需将图片用![](url)渲染出来",
                  kFunction, names, kArgs, kResult, kReturn)
            : fmt::format(
                  "## Insert the following command in your reply when you need to call N tools in "
                  "parallel:\n\n"
                  "{0}: The name of tool 1, should be one of [{1}]\n{2}: The input of tool 1\n"
                  "{0}: The name of tool 2\n{2}: The input of tool 2\n...\n"
                  "{0}: The name of tool N\n{2}: The input of tool N\n{3}: The result of tool 1\n"
                  "{3}: The result of tool 2\n...\n{3}: The result of tool N\n"
                  "{4}: Reply based on tool results. Images need to be rendered as ![](url)",
                  kFunction, names, kArgs, kResult, kReturn);
}

std::string system_text(const std::vector<ToolFunction>& functions, bool zh, bool parallel) {
  std::string text = zh ? "# 工具\n\n## 你拥有如下工具：\n\n"
                        : "# Tools\n\n## You have access to the following tools:\n\n";
  std::string names;
  for (const ToolFunction& function : functions) {
    text += describe(function, zh) + "\n\n";
    names += (names.empty() ? "" : ",") + function.name;
  }
  return text + (parallel ? parallel_commands(names, zh) : commands(names, zh));
}

/// Writes turns as messages. Everything between two messages of the user is one turn of the
/// assistant: text, calls, results and the answer to them.
class Writer {
 public:
  void add(const Turn& turn) {
    if (turn.role != Turn::Role::kAssistant) {
      messages_.push_back(message_of(name_of(turn.role), turn.text));
      awaits_answer_ = false;
      return;
    }
    if (!turn.text.empty() || turn.calls.empty()) append(turn.text);
    for (const PastCall& call : turn.calls) {
      append(fmt::format("{}{}: {}\n{}: {}", in_assistant() ? "\n" : "", kFunction, call.name,
                         kArgs, arguments_in_text(call)));
    }
    bool has_results = false;
    for (const PastCall& call : turn.calls) {
      if (!call.result) continue;
      append(fmt::format("\n{}: {}", kResult, *call.result));
      has_results = true;
    }
    if (has_results) append(fmt::format("\n{}: ", kReturn), true);
  }

  /// Leaves out the ": " before an answer that is to be generated: the token of ':' may take in
  /// what stands before or behind it ("✿:" is one in some vocabularies, ": The" is not two in
  /// others), and then the model would go on from tokens that it never saw.
  Json finish() {
    if (awaits_answer_) {
      std::string& text = messages_.back()["content"].get_ref<std::string&>();
      text.erase(text.size() - 2);
    }
    return std::move(messages_);
  }

 private:
  bool in_assistant() const {
    return !messages_.empty() && messages_.back()["role"] == "assistant";
  }
  void append(const std::string& text, bool awaits_answer = false) {
    if (!in_assistant()) messages_.push_back(message_of("assistant", ""));
    messages_.back()["content"].get_ref<std::string&>() += text;
    if (!text.empty()) awaits_answer_ = awaits_answer;
  }

  Json messages_ = Json::array();
  bool awaits_answer_ = false;  // the last message ends in "✿RETURN✿: "
};

// ---- the answer

class QwenParser final : public CallParser {
 public:
  explicit QwenParser(const ToolPrompt& prompt)
      : CallParser(prompt), state_(prompt.resumes_after_result ? State::kColon : State::kText) {
    for (const ToolFunction& function : prompt.functions) {
      if (function.name == kCodeInterpreter) code_parameter_ = code_parameter(function);
    }
  }

 private:
  enum class State { kColon, kColonSpace, kText, kName, kArguments, kAfter };
  enum Marker { kMarkResult, kMarkReturn, kMarkFunction, kMarkArgs };
  static constexpr std::array<std::string_view, 4> kMarkers = {kResult, kReturn,
                                                               "✿FUNCTION✿:", "✿ARGS✿:"};
  /// Arguments without a function are text.
  static constexpr std::span<const std::string_view> kInText{kMarkers.data(), 3};
  static constexpr std::span<const std::string_view> kNothing{};

  bool step() override {
    switch (state_) {
      case State::kColon:
        if (!take_if(':')) return false;
        state_ = State::kColonSpace;
        return true;
      case State::kColonSpace:
        if (!take_if(' ')) return false;
        state_ = State::kText;
        return true;
      case State::kText:
        return read_text();
      case State::kName:
        return read_call();
      case State::kArguments:
        return read_call_arguments();
      case State::kAfter:
        return read_after();
    }
    return false;
  }

  bool read_text() {
    const Found found = read_until(has_functions() ? kInText : kNothing, ToolEvent::Kind::kText);
    if (found.marker < 0) return false;
    const std::string text(rest().substr(0, found.at + found.length));
    if (found.marker != kMarkFunction) say(text.substr(0, found.at));  // white space at the end
    take(text.size());
    return follow(found.marker, text);
  }

  /// What a marker begins, or ends. `text`: the marker as it stands.
  bool follow(int marker, std::string text) {
    if (marker == kMarkResult || marker == kMarkReturn || !may_call()) {
      end_answer();
      return false;
    }
    if (marker == kMarkFunction) {
      candidate_ = std::move(text);
      state_ = State::kName;
    } else {  // more arguments: one more call of the same function
      begin_call(name_, name_ == kCodeInterpreter);
      state_ = State::kArguments;
    }
    return true;
  }

  bool read_call() {
    const Name name = read_name(kMarkers);
    if (name.kind == Name::Kind::kUndecided) return false;
    if (name.kind == Name::Kind::kUnknown) {
      say(candidate_);
      state_ = State::kText;
      return true;
    }
    take(name.length);
    name_ = name.name;
    begin_call(name_, name_ == kCodeInterpreter);
    if (name.marker == kMarkArgs) {
      state_ = State::kArguments;
      return true;
    }
    end_call();
    return name.marker >= 0 && follow(name.marker, std::string(kMarkers[kMarkFunction]));
  }

  bool read_call_arguments() {
    const Arguments got = read_arguments(kMarkers);
    if (got.kind == Arguments::Kind::kNeedsText) return false;
    end_call();
    if (got.kind == Arguments::Kind::kMarker) {
      return follow(got.marker, std::string(kMarkers[kMarkFunction]));
    }
    state_ = State::kAfter;
    return got.kind == Arguments::Kind::kClosed;
  }

  bool read_after() {
    take_space();
    if (rest().empty()) return false;
    const AtStart here = at_start(rest(), kMarkers);
    if (here.kind == AtStart::Kind::kUndecided) return false;
    if (here.kind == AtStart::Kind::kNone) {
      state_ = State::kText;
      return true;
    }
    take(kMarkers[static_cast<size_t>(here.marker)].size());
    return follow(here.marker, std::string(kMarkers[kMarkFunction]));
  }

  std::string held_arguments(const std::string& text) const override {
    return code_as_json(code_parameter_, text);
  }

  State state_;
  std::string code_parameter_;
  std::string candidate_;  // the marker before a name that is not decided
  std::string name_;       // of the last call
};

class QwenFormat final : public ToolFormat {
 public:
  std::string_view name() const noexcept override { return "qwen"; }

  std::vector<std::string> stop_strings() const override {
    return {std::string(kResult), std::string(kReturn)};
  }

  ToolPrompt prompt(const ToolChat& chat) const override {
    const Conversation conversation = read_chat(chat);
    ToolPrompt prompt = begin_prompt(chat, conversation);
    if (conversation.functions.empty()) {
      prompt.messages = std::make_shared<const Json>(messages_without_calls(conversation));
      return prompt;
    }
    const std::string system = system_text(conversation.functions, conversation.chinese,
                                           chat.parallel_tool_calls.value_or(false));
    Writer writer;
    const bool has_system = conversation.turns.front().role == Turn::Role::kSystem;
    if (!has_system) writer.add({Turn::Role::kSystem, system, {}});
    for (size_t i = 0; i < conversation.turns.size(); ++i) {
      Turn turn = conversation.turns[i];
      if (i == 0 && has_system) turn.text += "\n\n" + system;
      writer.add(turn);
    }
    prompt.messages = std::make_shared<const Json>(writer.finish());
    if (conversation.ends_with_results &&
        (chat.add_generation_prompt || chat.continue_final_message)) {
      prompt.add_generation_prompt = false;
      prompt.continue_final_message = prompt.resumes_after_result = true;
    }
    return prompt;
  }

  std::unique_ptr<ToolCallParser> parser(const ToolPrompt& prompt) const override {
    return std::make_unique<QwenParser>(prompt);
  }

  ToolCallStructure structure(const ToolPrompt& prompt) const override {
    ToolCallStructure out;
    using Arguments = ToolCallStructure::Arguments;
    for (const ToolFunction& function : prompt.functions) {
      out.functions.push_back(
          {function.name, argument_schema(function),
           function.name == kCodeInterpreter ? Arguments::kCodeBlock : Arguments::kJson});
    }
    out.must_call = prompt.must_call;
    out.text_first = !prompt.must_call;
    out.may_repeat = prompt.may_repeat;
    if (prompt.resumes_after_result) out.lead = ": \n";
    out.trigger = prompt.functions.empty() ? kFunction : fmt::format("{}:", kFunction);
    out.open = fmt::format("{}: ", kFunction);
    out.separator = fmt::format("\n{}: ", kArgs);
    out.next += '\n';  // not an assignment: GCC bug 105651 warns of it
    out.end = fmt::format("\n{}", kResult);
    out.stops = stop_strings();
    return out;
  }
};

}  // namespace

const ToolFormat& qwen_format() {
  static const QwenFormat format;
  return format;
}

}  // namespace qw::tools
