// Fuzz target for tool calls: generated text, or a conversation with tools, are the input.
//
// A first byte '{': {"messages", "tools"} as JSON, written by every format. Anything else: two
// bytes that choose a format and its state, then generated text, read whole and cut into pieces.
#include <array>
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/guarded_json.h"
#include "base/json_limits.h"
#include "base/utf8.h"
#include "text/tools/tool_format.h"

namespace {

using Json = nlohmann::ordered_json;
using qw::ToolEvent;

constexpr std::array<std::string_view, 3> kFormats = {"qwen", "react", "hermes"};

void require(bool condition) {
  if (!condition) std::abort();
}

/// Appends events, text of one kind joined.
void join(std::vector<ToolEvent>& all, std::vector<ToolEvent> more) {
  for (ToolEvent& event : more) {
    const bool joins =
        event.kind != ToolEvent::Kind::kCallBegin && event.kind != ToolEvent::Kind::kCallEnd;
    if (joins && !all.empty() && all.back().kind == event.kind)
      all.back().text += event.text;
    else
      all.push_back(std::move(event));
  }
}

void read(std::string_view text, uint8_t choice, uint8_t state) {
  const qw::ToolFormat& format = qw::tool_format(kFormats[choice % kFormats.size()]);
  qw::ToolPrompt prompt;
  const auto empty = std::make_shared<const Json>(Json::object());
  for (const char* name : {"get", "get_weather", "天气"})
    prompt.functions.push_back({name, "", empty, empty});
  prompt.resumes_after_result = (state & 1U) != 0;
  prompt.may_repeat = (state & 2U) != 0;
  const bool truncated = (state & 4U) != 0;
  const size_t piece = 1 + (state >> 3U);

  const auto whole = format.parser(prompt), parts = format.parser(prompt);
  std::vector<ToolEvent> expected, got;
  join(expected, whole->push(text));
  for (size_t i = 0, end = 0; i < text.size(); i = end) {
    for (size_t n = 0; n < piece && end < text.size(); ++n)
      end += qw::decode_utf8(text.substr(end)).length;
    join(got, parts->push(text.substr(i, end - i)));
  }
  require(whole->done() == parts->done());
  join(expected, whole->finish(truncated));
  join(got, parts->finish(truncated));
  require(expected == got);
  // Calls are opened and closed in turn, and what is said to be a JSON object is one.
  bool open = false;
  std::string arguments;
  for (const ToolEvent& event : expected) {
    if (event.kind == ToolEvent::Kind::kCallBegin) {
      require(!open);
      open = true;
      arguments.clear();
    } else if (event.kind == ToolEvent::Kind::kArguments) {
      require(open);
      arguments += event.text;
    } else if (event.kind == ToolEvent::Kind::kCallEnd) {
      require(open && event.valid == (arguments.starts_with('{') && Json::accept(arguments)));
      open = false;
    } else {
      require(!open && !event.text.empty());
    }
  }
  require(!open);
}

void write(const Json& input) {
  if (!input.is_object() || !input.contains("messages")) return;
  for (const std::string_view name : kFormats) {
    for (const bool template_renders_tools : {false, true}) {
      qw::ToolChat chat;
      chat.messages = &input["messages"];
      if (input.contains("tools")) chat.tools = &input["tools"];
      chat.template_renders_tools = template_renders_tools;
      try {
        const qw::ToolPrompt prompt = qw::tool_format(name).prompt(chat);
        require(prompt.messages->is_array() && !prompt.messages->empty());
        for (const Json& message : *prompt.messages)
          require(message["role"].is_string() && message["content"].is_string());
      } catch (const qw::Error& error) {
        require(error.kind() != qw::ErrorKind::kInternal);
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (text.starts_with('{')) {
    try {
      const qw::JsonLimits limits;
      write(qw::parse_guarded<Json>(
          text, qw::JsonLimitGuard(limits, qw::ErrorKind::kInvalidArgument, "input")));
    } catch (const Json::exception&) {
    } catch (const qw::Error& error) {
      require(error.kind() != qw::ErrorKind::kInternal);
    }
  } else if (size >= 2 && qw::find_invalid_utf8(text.substr(2)) == std::string_view::npos) {
    read(text.substr(2), data[0], data[1]);
  }
  return 0;
}
