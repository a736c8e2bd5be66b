// ReAct, as the first Qwen models were taught it: Thought, Action, Action Input, Observation.
//
// Source: QwenLM/Qwen, openai_api.py (parse_messages, parse_response), whose words are the
// format; the idea is Yao et al., "ReAct", 2022. tests/golden/tool_calls compares.
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/tools/call_parser.h"
#include "text/tools/conversation.h"
#include "text/tools/formats.h"

namespace qw::tools {
namespace {

using Json = nlohmann::ordered_json;

// ---- the prompt

std::string instruction(const std::vector<ToolFunction>& functions) {
  std::string descriptions, names;
  for (const ToolFunction& function : functions) {
    descriptions += fmt::format(
        "{0}: Call this tool to interact with the {0} API. What is the {0} API useful for? {1} "
        "Parameters: {2}\n\n",
        function.name, function.description, python_json(*function.parameters));
    names += (names.empty() ? "" : ", ") + function.name;
  }
  return fmt::format(
      "Answer the following questions as best you can. You have access to the following APIs:\n\n"
      "{}Use the following format:\n\nQuestion: the input question you must answer\n"
      "Thought: you should always think about what to do\n"
      "Action: the action to take, should be one of [{}]\nAction Input: the input to the action\n"
      "Observation: the result of the action\n"
      "... (this Thought/Action/Action Input/Observation can be repeated zero or more times)\n"
      "Thought: I now know the final answer\n"
      "Final Answer: the final answer to the original input question\n\nBegin!",
      descriptions, names);
}

/// An assistant's message as steps. Calls made together are steps one after another.
std::string steps_of(const Turn& turn) {
  if (turn.calls.empty()) {
    return fmt::format("Thought: I now know the final answer.\nFinal Answer: {}", turn.text);
  }
  std::string text = turn.text.starts_with("Thought:") ? turn.text : "Thought: " + turn.text;
  for (const PastCall& call : turn.calls) {
    if (&call != &turn.calls.front()) text += "\nThought: ";
    text += fmt::format("\nAction: {}\nAction Input: {}", call.name, call.arguments);
    if (call.result) text += "\nObservation: " + *call.result;
  }
  return text;
}

Json messages_with_tools(const Conversation& conversation) {
  const std::vector<Turn>& turns = conversation.turns;
  // The tools stand before the last question that has an answer, or that is begun to be answered;
  // before there is one, before the last question.
  const Turn* question = nullptr;
  bool has_answer = false;
  for (size_t i = turns.size(); i-- > 0 && !has_answer;) {
    if (turns[i].role != Turn::Role::kUser) continue;
    has_answer = i + 1 < turns.size() && turns[i + 1].role == Turn::Role::kAssistant;
    if (has_answer || !question) question = &turns[i];
  }
  if (!question) {
    fail(ErrorKind::kInvalidArgument, "tools",
         "messages: expected a user message to put the tools into, got none (format react)");
  }
  Json messages = Json::array();
  for (const Turn& turn : turns) {
    const bool goes_on = turn.role == Turn::Role::kAssistant && !messages.empty() &&
                         messages.back()["role"] == "assistant";
    if (goes_on) {
      messages.back()["content"].get_ref<std::string&>() += fmt::format("\n{}", steps_of(turn));
    } else if (turn.role == Turn::Role::kAssistant) {
      messages.push_back(message_of("assistant", steps_of(turn)));
    } else if (&turn == question) {
      messages.push_back(
          message_of("user", instruction(conversation.functions) + "\n\nQuestion: " + turn.text));
    } else {
      messages.push_back(message_of(name_of(turn.role), turn.text));
    }
  }
  return messages;
}

// ---- the answer

class ReactParser final : public CallParser {
 public:
  explicit ReactParser(const ToolPrompt& prompt) : CallParser(prompt) {
    if (!has_functions())
      state_ = State::kFinal;
    else if (prompt.resumes_after_result)
      state_ = State::kThoughtSpace;
  }

 private:
  enum class State {
    kStart,
    kThoughtSpace,
    kThought,
    kFinalSpace,
    kFinal,
    kText,
    kName,
    kArguments
  };
  enum Label { kLabelAction, kLabelObservation, kLabelFinal };
  static constexpr std::array<std::string_view, 3> kLabels = {
      "\nAction:", "\nObservation:", "\nFinal Answer:"};
  static constexpr std::array<std::string_view, 3> kFirst = {
      "Action:", "Thought:", "Final Answer:"};
  static constexpr std::array<std::string_view, 2> kAfterName = {"Action Input:", "Observation:"};

  bool step() override {
    switch (state_) {
      case State::kStart:
        return read_start();
      case State::kThoughtSpace:
        return take_if(' ') && go(State::kThought);
      case State::kThought:
        return read_words(kLabels, ToolEvent::Kind::kThought);
      case State::kFinalSpace:
        return take_if(' ') && go(State::kFinal);
      case State::kFinal:
        read_until({}, ToolEvent::Kind::kText);
        return false;
      case State::kText:
        return read_words(kLabels, ToolEvent::Kind::kText);
      case State::kName:
        return read_call();
      case State::kArguments:
        return read_call_arguments();
    }
    return false;
  }

  bool go(State next) {
    state_ = next;
    return true;
  }

  /// Text that begins with no label is the answer.
  bool read_start() {
    const std::string_view text = rest();
    const size_t space = std::min(text.find_first_not_of(kSpace), text.size());
    const AtStart here = at_start(text.substr(space), kFirst);
    if (here.kind == AtStart::Kind::kUndecided) return false;
    if (here.kind == AtStart::Kind::kNone) return go(State::kText);
    const size_t length = space + kFirst[static_cast<size_t>(here.marker)].size();
    candidate_ = text.substr(0, length);
    take(length);
    return go(here.marker == 0   ? State::kName
              : here.marker == 1 ? State::kThoughtSpace
                                 : State::kFinalSpace);
  }

  bool read_words(std::span<const std::string_view> labels, ToolEvent::Kind kind) {
    const Found found = read_until(labels, kind);
    if (found.marker < 0) return false;
    candidate_ = rest().substr(0, found.at + found.length);
    take(candidate_.size());
    if (found.marker == kLabelObservation) {
      end_answer();
      return false;
    }
    if (found.marker == kLabelAction) return go(State::kName);
    if (kind == ToolEvent::Kind::kThought) return go(State::kFinalSpace);
    say(candidate_);  // in text a line like any other; behind it is the answer all the same
    return go(State::kFinal);
  }

  bool read_call() {
    const Name name = read_name(kAfterName);
    if (name.kind == Name::Kind::kUndecided) return false;
    if (name.kind == Name::Kind::kUnknown) {
      say(candidate_);
      return go(State::kText);
    }
    take(name.length);
    begin_call(name.name);
    if (name.marker == 0) return go(State::kArguments);
    return end_step();
  }

  bool read_call_arguments() {
    const Arguments got = read_arguments(std::span(kAfterName).last(1));
    return got.kind != Arguments::Kind::kNeedsText && end_step();
  }

  /// The observation comes next, and it is not the model's to write.
  bool end_step() {
    end_call();
    end_answer();
    return false;
  }

  State state_ = State::kStart;
  std::string candidate_;  // "Action:" before a name that is not decided
};

class ReactFormat final : public ToolFormat {
 public:
  std::string_view name() const noexcept override { return "react"; }

  std::vector<std::string> stop_strings() const override { return {"\nObservation:"}; }

  ToolPrompt prompt(const ToolChat& chat) const override {
    const Conversation conversation = read_chat(chat);
    ToolPrompt prompt = begin_prompt(chat, conversation);
    prompt.may_repeat = false;
    if (conversation.functions.empty()) {
      prompt.messages = std::make_shared<const Json>(messages_without_calls(conversation));
      return prompt;
    }
    Json messages = messages_with_tools(conversation);
    if (conversation.ends_with_results &&
        (chat.add_generation_prompt || chat.continue_final_message)) {
      messages.back()["content"].get_ref<std::string&>() += "\nThought:";
      prompt.add_generation_prompt = false;
      prompt.continue_final_message = prompt.resumes_after_result = true;
    }
    prompt.messages = std::make_shared<const Json>(std::move(messages));
    return prompt;
  }

  std::unique_ptr<ToolCallParser> parser(const ToolPrompt& prompt) const override {
    return std::make_unique<ReactParser>(prompt);
  }

  ToolCallStructure structure(const ToolPrompt& prompt) const override {
    ToolCallStructure out;
    for (const ToolFunction& function : prompt.functions)
      out.functions.push_back({function.name, argument_schema(function), {}});
    out.must_call = prompt.must_call;  // after a thought
    out.starts_line = !prompt.resumes_after_result;
    out.trigger = "\nAction:";
    out.final_mark = "\nFinal Answer:";
    out.stops = stop_strings();
    out.open = "\nAction: ";
    out.separator = "\nAction Input: ";
    out.end = "\nObservation:";
    return out;
  }
};

}  // namespace

const ToolFormat& react_format() {
  static const ReactFormat format;
  return format;
}

}  // namespace qw::tools
