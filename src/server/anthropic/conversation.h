// Anthropic's system prompt, messages and tools, as blocks, to what the rest of the server reads.
//
// Level 7 (server).
#pragma once

#include <optional>
#include <string>

#include "server/generation/task.h"
#include "server/shape.h"

namespace qw::server::anthropic {

/// What /v1/messages and /v1/messages/count_tokens have in common, in OpenAI's form.
struct Conversation {
  /// Where a message is in what the client sent, and where its calls are.
  struct Place {
    std::string message;
    std::vector<std::string> calls;
  };

  std::string system;         // "": none
  std::vector<Place> places;  // of the messages
  Json messages;  // contents are strings, calls and results have their places; null: none given
  Json offered = Json::array();  // tools
  ToolChoice tool_choice;
  std::optional<bool> parallel_tool_calls;
  std::string tool_format;  // "": the model's
};

/// system: a string or text blocks. Errors: RequestError.
std::string read_system(const Json& value);
/// What blocks of text, messages, tools and the choice among them have.
ShapePtr text_blocks_shape();
ShapePtr messages_shape();
ShapePtr tools_shape();
ShapePtr tool_choice_shape();
/// Errors: RequestError naming the message (role, a block of a kind that cannot be read).
Json read_messages(const Json& value, std::vector<Conversation::Place>& places);
/// tools with "input_schema". Errors: RequestError (tools that only Anthropic's servers have).
Json read_tools(const Json& value);
void read_tool_choice(const Json& value, Conversation& conversation);

/// The conversation as a task's. An assistant's message at the end is gone on with.
void set_conversation(const Conversation& conversation, GenerationTask& task);

/// model, system, messages, tools, and what is refused in both.
template <typename Task>
void add_conversation_fields(FieldTable<Task>& table) {
  table.push_back(string_field<Task>("model", &Task::model));
  table.push_back(honoured<Task>(
                      "system",
                      [](const Json& value, Task& task) { task.system = read_system(value); },
                      "a text or text blocks")
                      .as(types::any_of({types::string(), types::list(types::object())}))
                      .with(text_blocks_shape()));
  table.push_back(
      honoured<Task>(
          "messages",
          [](const Json& value, Task& task) { task.messages = read_messages(value, task.places); },
          "texts, blocks of text, tool_use and tool_result; images and documents are refused; an "
          "assistant's at the end is gone on with")
          .as(types::messages())
          .with(messages_shape())
          .must());
  table.push_back(honoured<Task>(
                      "tools",
                      [](const Json& value, Task& task) { task.offered = read_tools(value); },
                      "those with an input_schema")
                      .as(types::list(types::object()))
                      .with(tools_shape()));
  table.push_back(honoured<Task>(
                      "tool_choice",
                      [](const Json& value, Task& task) { read_tool_choice(value, task); },
                      "auto, any, tool, none; disable_parallel_tool_use")
                      .as(types::object())
                      .with(tool_choice_shape()));
  table.push_back(tool_format_field<Task>(&Task::tool_format));
  table.push_back(
      ignored<Task>("thinking", "these models do not think apart", Json{{"type", "disabled"}}));
  table.push_back(refused<Task>("mcp_servers", "the server calls no other server"));
}

}  // namespace qw::server::anthropic
