// Tools of a request: what the model is told, what its answer may be, and its calls as they come.
//
// Level 7 (server). Between the tool formats (text/tools) and the engine; dialects fill a ToolTask
// and get ToolEvents.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/grammar/grammar_cache.h"
#include "server/fields.h"
#include "text/tools/tool_format.h"

namespace qw::server {

struct ToolTask {
  Json messages;  // OpenAI's form
  Json tools;     // OpenAI's form; empty: none
  ToolChoice choice;
  std::optional<bool> parallel_tool_calls;
  std::string format;  // "": the model's
  /// For answers that have no place of their own for thoughts: they are text, with an empty line
  /// between them and what follows.
  bool thoughts_are_text = false;
  bool add_generation_prompt = true, continue_final_message = false;
  std::vector<ClientName> names;  // of parts of messages and tools that were sent in another form
};

bool has_tools(const ToolTask& task);
/// Whether a conversation needs a tool format: there are tools, or calls and results in it.
bool needs_tool_format(const ToolTask& task);

/// "auto", "none", "required", or {"type": "function", "function": {"name"}}. Errors: RequestError.
ToolChoice read_tool_choice(const std::string& field, const Json& value);

/// What that may be.
Json tool_choice_schema();

/// The name of a tool format, or "" for the model's. Errors: RequestError.
std::string read_tool_format(const std::string& field, const Json& value);
Json tool_format_schema();
/// In which format the tools of a request are told and called, in every dialect.
template <typename Task, typename Part>
Field<Task> tool_format_field(Part part) {
  auto read = [part](const Json& value, Task& task) {
    std::invoke(part, task) = read_tool_format("tool_format", value);
  };
  return honoured<Task>("tool_format", std::move(read),
                        "qwen, react or hermes; by default the model's")
      .as(tool_format_schema());
}

/// Refuses a choice that only tools could fulfil where there are none. Errors: RequestError.
void check_tool_choice(const ToolTask& task);
/// What is said of parallel_tool_calls (as the client calls it) where there are no tools.
std::string parallel_without_tools(const std::string& field);

/// A structure as JSON and back, for receipts. Errors: RequestError (a member of another type).
Json structure_json(const ToolCallStructure& structure);
ToolCallStructure structure_of_json(const Json& json);

/// What an answer with calls may look like: arguments are instances of their function's schema. A
/// schema that cannot be followed is replaced by "any object", with a note about it.
struct ToolGrammar {
  std::string key;  // tells any two different ones apart
  std::function<std::shared_ptr<const Grammar>()> build;
};
/// What an answer without calls is held to, and the client's field that says so.
struct AnswerForm {
  GrammarSource source;
  std::string field;
};
/// nullopt: any text will do. Errors of its build(): RequestError (parameters that are no schema, a
/// form that is none).
std::optional<ToolGrammar> grammar_of(const ToolCallStructure& structure,
                                      const std::optional<AnswerForm>& form);

/// An object of those members of a JSON object that was cut off which are certainly whole, with
/// nothing of the last one where that could have gone on: {"a": 1, "b": 2 is {"a": 1}. "{}": there
/// are none.
std::string whole_members(const std::string& cut_object);

/// Reads the calls out of the answers of one request. One thread.
class ToolStreams {
 public:
  /// thoughts_are_text: see ToolTask.
  ToolStreams(const ToolFormat& format, ToolPrompt prompt, bool thoughts_are_text = false);

  /// The parser of a choice takes text, or learns that the text has ended.
  std::vector<ToolEvent> push(int choice, std::string_view text);
  std::vector<ToolEvent> finish(int choice, bool truncated);
  /// Whether an answer that ended so may have ended within a call: at its length, or at a stop
  /// string that is none of the format's.
  bool is_cut(FinishReason reason, std::string_view stop_string) const;
  /// Whether the answer has calls, and every one all of its arguments.
  bool has_whole_calls(int choice) const;
  /// The id of a call, "call_" and 24 hexadecimal digits. No other call has it: results find their
  /// calls by ids over all turns of a conversation, whose requests may all have the same seed.
  std::string call_id(int choice, size_t call) const;
  /// A whole answer.
  ToolAnswer parse(std::string_view text, bool truncated) const;

 private:
  const ToolFormat& format_;
  ToolPrompt prompt_;
  bool thoughts_are_text_;
  uint64_t request_;  // a random number
  struct Stream {
    std::unique_ptr<ToolCallParser> parser;
    bool has_called = false, has_broken = false, has_thought = false;
  };
  std::vector<ToolEvent> take(Stream& stream, std::vector<ToolEvent> events) const;
  std::map<int, Stream> streams_;
};

}  // namespace qw::server
