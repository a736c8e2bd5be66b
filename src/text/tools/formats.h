// The tool formats that there are. Level 3 (text).
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "text/tools/tool_format.h"

namespace qw::tools {

/// Of the markers of the format `qwen`: U+273F.
inline constexpr std::string_view kFlower = "✿";

/// What arguments of the function may be: its parameters; where it was given without any, {} only.
/// (A prompt says the same of such a function as Qwen-Agent: an object without properties, which as
/// a schema would be any object.)
std::shared_ptr<const nlohmann::ordered_json> argument_schema(const ToolFunction& function);

const ToolFormat& qwen_format();
const ToolFormat& react_format();
const ToolFormat& hermes_format();

}  // namespace qw::tools
