// Tool calls as text: how a family of models is told of tools, and how its calls are read back.
//
// Level 3 (text). A format turns a conversation with tools (the form of the OpenAI API) into
// messages that a checkpoint's ordinary chat template renders, and the generated text into calls.
// Three formats: `qwen` (Qwen1.5's own, as Qwen-Agent writes it), `react`, and `hermes`
// (Qwen2.5's). All that a format writes is message content, so that special tokens written by
// users, tools and their results stay text; and only generated text is ever parsed, so that no
// text in a prompt can become a call. See docs/tool-calling.md.
#pragma once

#include <cstddef>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace qw {

/// A function that the model may call.
struct ToolFunction {
  std::string name;
  std::string description;                                   // may be empty
  std::shared_ptr<const nlohmann::ordered_json> parameters;  // JSON schema of its arguments
  std::shared_ptr<const nlohmann::ordered_json> function;    // as given, all members
};

/// Reads tools in the form of the OpenAI API: [{"type": "function", "function": {"name",
/// "description", "parameters"}}]. Without parameters: an object without properties. Errors:
/// invalid_argument naming the tool's index, for any other form, a name that is no name (see
/// is_function_name) or occurs twice.
std::vector<ToolFunction> read_tools(const nlohmann::ordered_json& tools);

/// Whether every format can write `name`: 1 to 128 bytes of letters, digits, '_', '-' and '.', or
/// anything beyond ASCII except the flower of Qwen's markers.
bool is_function_name(std::string_view name);

struct ToolChoice {
  enum class Mode {
    kAuto,      // the model chooses
    kNone,      // it does not hear of the tools, and calls none
    kRequired,  // at least one call
    kNamed,     // a call of `name`
  };
  Mode mode = Mode::kAuto;
  std::string name;  // of kNamed
};

/// Of what a format writes around the tools.
enum class PromptLanguage {
  kFromText,  // Chinese if a system or user message has a character of U+4E00 to U+9FFF
  kEnglish,
  kChinese,
};

/// A conversation with tools. The JSON is borrowed for the call.
struct ToolChat {
  /// Array of {"role", "content", ...}: system (or developer), user, assistant with `tool_calls`,
  /// and tool with `tool_call_id`. A tool message without an id answers the first call that has
  /// no result yet (and, if it has a `name`, that name). Results may come in any order.
  const nlohmann::ordered_json* messages = nullptr;
  const nlohmann::ordered_json* tools = nullptr;  // null or empty: none
  ToolChoice choice;
  /// Several calls in one answer. Not given: they are read if the model makes them, but the
  /// prompt is the one for single calls, which is what the models know best.
  std::optional<bool> parallel_tool_calls;
  PromptLanguage language = PromptLanguage::kFromText;
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  /// Whether the chat template writes tools itself (template_renders_tools).
  bool template_renders_tools = false;
};

/// What to render, and what the parser and the structure of the answer need to know.
struct ToolPrompt {
  std::shared_ptr<const nlohmann::ordered_json> messages;
  std::shared_ptr<const nlohmann::ordered_json> tools;  // null unless the template writes them
  bool add_generation_prompt = true;
  /// Set if the answer goes on in the assistant's last message, behind the results of tools.
  bool continue_final_message = false;
  bool resumes_after_result = false;
  std::vector<ToolFunction> functions;  // that may be called; empty: none
  bool must_call = false;
  bool may_repeat = true;  // several calls in one answer
};

struct ToolEvent {
  enum class Kind {
    kText,       // `text`: more of the answer
    kThought,    // `text`: more of what the model says to itself (react)
    kCallBegin,  // `text`: the function's name
    kArguments,  // `text`: more of the arguments
    kCallEnd,    // `valid`: whether all arguments together are a JSON object
  };
  Kind kind = Kind::kText;
  size_t call = 0;  // which call of the answer, from 0
  std::string text;
  bool valid = false;
  bool operator==(const ToolEvent&) const = default;
};

/// Reads calls out of generated text, while it is generated.
///
/// What may still become a marker is held back. However the text is cut, the events joined are the
/// same. Nothing is lost: what is not well formed is text, or arguments, as it stands:
///   - a call of a name that is no tool's: text, markers included;
///   - a call without arguments: arguments {}; none if they were cut off before they began;
///   - arguments that are no JSON object: as they stand, without outer white space; `valid` false;
///   - markers inside JSON strings and blocks of code: part of them.
/// The code that Qwen's code_interpreter takes is an object with one string to clients:
/// {"code": "..."}, shown when it is complete.
/// White space between text and a call belongs to neither.
class ToolCallParser {
 public:
  virtual ~ToolCallParser() = default;

  /// Takes generated text, whole characters.
  virtual std::vector<ToolEvent> push(std::string_view text) = 0;
  /// The end of generation. truncated: it was cut off; a call whose arguments were not even
  /// announced is text then, for the model may have meant to give some.
  virtual std::vector<ToolEvent> finish(bool truncated = false) = 0;
  /// Whether the answer is over by its format (the place of a result, one call of one allowed):
  /// generation may stop, and what is pushed from now on is not looked at.
  virtual bool done() const noexcept = 0;
};

/// How answers with calls are built, for constrained decoding. With `text` for free text in which
/// neither `trigger` nor `final_mark` occurs, `any` for any text, and call := open name separator
/// arguments close:
///   calls  := call (next call)* end                 the repetition if may_repeat
///   answer := lead calls                            if must_call and not text_first
///   answer := text calls                            if must_call and text_first
///   answer := text | text calls | text final_mark any       otherwise, the last if there is one
/// `open` begins with `trigger`, which ends the free text. `end` is a stop string, or empty for
/// the end token. `stops` end the answer wherever they stand (ToolFormat::stop_strings()): text
/// before a call that must be made has none of them, nor has code. starts_line: a mark that begins
/// with a line end stands at the answer's beginning without it, behind any white space.
///
/// What the parser reads as a call in an answer of this form has arguments of this form, and in one
/// that must call it reads a call.
struct ToolCallStructure {
  enum class Arguments { kJson, kCodeBlock };
  struct Function {
    std::string name;
    std::shared_ptr<const nlohmann::ordered_json> parameters;
    Arguments arguments = Arguments::kJson;  // kCodeBlock: "\n```py\n" code "\n```"
  };
  std::vector<Function> functions;  // empty: answer := text
  bool must_call = false, text_first = true, may_repeat = false, starts_line = false;
  std::string lead, trigger, final_mark, open, separator, close, next, end;
  std::vector<std::string> stops;
};

/// One way of writing tools and calls. Stateless.
class ToolFormat {
 public:
  virtual ~ToolFormat() = default;
  virtual std::string_view name() const noexcept = 0;
  /// What ends generation, besides the end tokens, when tools are given.
  virtual std::vector<std::string> stop_strings() const = 0;
  /// The messages to render. Errors: invalid_argument, naming the index of the message or tool:
  /// content that is no text (images), an unknown role, a call without result or a result without
  /// call, a named choice of no tool.
  virtual ToolPrompt prompt(const ToolChat& chat) const = 0;
  /// Of what the model answers to `prompt`.
  virtual std::unique_ptr<ToolCallParser> parser(const ToolPrompt& prompt) const = 0;
  virtual ToolCallStructure structure(const ToolPrompt& prompt) const = 0;
};

/// "qwen", "react", "hermes".
std::vector<std::string_view> tool_format_names();
/// Errors: invalid_argument, naming those there are.
const ToolFormat& tool_format(std::string_view name);

/// Whether a chat template, by its source, writes tools itself in the form of Hermes.
bool template_renders_tools(std::string_view template_source);
/// `hermes` for a template that writes tools in that form, else `qwen`.
const ToolFormat& default_tool_format(std::string_view template_source);

/// An answer as a whole.
struct ToolAnswer {
  struct Call {
    std::string name, arguments;
    bool valid = false;
    bool operator==(const Call&) const = default;
  };
  std::string text, thought;
  std::vector<Call> calls;
  bool operator==(const ToolAnswer&) const = default;

  void add(const std::vector<ToolEvent>& events);
  /// Whether there are calls, and every one has all of its arguments: they may be made.
  bool has_whole_calls() const noexcept;
};

}  // namespace qw
