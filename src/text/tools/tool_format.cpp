#include "text/tools/tool_format.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "text/tools/formats.h"

namespace qw {
namespace {

using Json = nlohmann::ordered_json;
constexpr std::string_view kComponent = "tools";
constexpr size_t kMaxNameBytes = 128;

const Json* member(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

ToolFunction read_tool(const Json& tool, size_t index) {
  const Json* type = tool.is_object() ? member(tool, "type") : nullptr;
  const Json* function = tool.is_object() ? member(tool, "function") : nullptr;
  if (!function || !function->is_object() || (type && *type != "function")) {
    fail(ErrorKind::kInvalidArgument, kComponent,
         "tools[{}]: expected {{\"type\": \"function\", \"function\": {{...}}}}, got {}", index,
         printable(tool.dump(), 60));
  }
  ToolFunction out;
  out.function = std::make_shared<const Json>(*function);
  const Json* name = member(*function, "name");
  if (!name || !name->is_string() || !is_function_name(name->get_ref<const std::string&>())) {
    fail(ErrorKind::kInvalidArgument, kComponent,
         "tools[{}].function.name: expected 1 to {} letters, digits, '_', '-' or '.', got {}",
         index, kMaxNameBytes, name ? printable(name->dump()) : "none");
  }
  out.name = name->get<std::string>();
  if (const Json* description = member(*function, "description")) {
    if (!description->is_string()) {
      fail(ErrorKind::kInvalidArgument, kComponent,
           "tools[{}].function.description: expected a string, got {}", index,
           printable(description->dump(), 60));
    }
    out.description = description->get<std::string>();
  }
  const Json* parameters = member(*function, "parameters");
  if (parameters && !parameters->is_object()) {
    fail(ErrorKind::kInvalidArgument, kComponent,
         "tools[{}].function.parameters: expected a JSON schema of an object, got {}", index,
         printable(parameters->dump(), 60));
  }
  out.parameters = std::make_shared<const Json>(
      parameters ? *parameters : Json{{"type", "object"}, {"properties", Json::object()}});
  return out;
}

}  // namespace

bool is_function_name(std::string_view name) {
  const auto fits = [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x80 || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
  };
  return !name.empty() && name.size() <= kMaxNameBytes &&
         std::all_of(name.begin(), name.end(), fits) &&
         name.find(tools::kFlower) == std::string_view::npos;
}

std::shared_ptr<const Json> tools::argument_schema(const ToolFunction& function) {
  if (function.function == nullptr || member(*function.function, "parameters") != nullptr)
    return function.parameters;
  static const auto kNone =
      std::make_shared<const Json>(Json{{"type", "object"}, {"additionalProperties", false}});
  return kNone;
}

std::vector<ToolFunction> read_tools(const Json& tools) {
  if (tools.is_null()) return {};  // calls of earlier turns alone
  if (!tools.is_array()) {
    fail(ErrorKind::kInvalidArgument, kComponent, "tools: expected an array, got {}",
         printable(tools.dump(), 60));
  }
  std::vector<ToolFunction> functions;
  std::set<std::string> names;
  for (size_t i = 0; i < tools.size(); ++i) {
    functions.push_back(read_tool(tools[i], i));
    if (!names.insert(functions.back().name).second) {
      fail(ErrorKind::kInvalidArgument, kComponent,
           "tools[{}].function.name: expected a name of its own, got '{}' twice", i,
           functions.back().name);
    }
  }
  return functions;
}

std::vector<std::string_view> tool_format_names() {
  return {tools::qwen_format().name(), tools::react_format().name(), tools::hermes_format().name()};
}

const ToolFormat& tool_format(std::string_view name) {
  for (const ToolFormat* format :
       {&tools::qwen_format(), &tools::react_format(), &tools::hermes_format()}) {
    if (format->name() == name) return *format;
  }
  fail(ErrorKind::kInvalidArgument, kComponent,
       "tool format: expected qwen, react or hermes, got '{}'", printable(name));
}

bool template_renders_tools(std::string_view source) {
  return source.find("tools") != std::string_view::npos &&
         source.find("<tool_call>") != std::string_view::npos;
}

const ToolFormat& default_tool_format(std::string_view template_source) {
  return template_renders_tools(template_source) ? tools::hermes_format() : tools::qwen_format();
}

void ToolAnswer::add(const std::vector<ToolEvent>& events) {
  for (const ToolEvent& event : events) {
    switch (event.kind) {
      case ToolEvent::Kind::kText:
        text += event.text;
        break;
      case ToolEvent::Kind::kThought:
        thought += event.text;
        break;
      case ToolEvent::Kind::kCallBegin:
        calls.push_back({event.text, "", false});
        break;
      case ToolEvent::Kind::kArguments:
        calls.at(event.call).arguments += event.text;
        break;
      case ToolEvent::Kind::kCallEnd:
        calls.at(event.call).valid = event.valid;
        break;
    }
  }
}

bool ToolAnswer::has_whole_calls() const noexcept {
  return !calls.empty() && std::ranges::all_of(calls, &Call::valid);
}

}  // namespace qw
