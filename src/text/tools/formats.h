// The tool formats that there are. Level 3 (text).
#pragma once

#include <string_view>

#include "text/tools/tool_format.h"

namespace qw::tools {

/// Of the markers of the format `qwen`: U+273F.
inline constexpr std::string_view kFlower = "✿";

const ToolFormat& qwen_format();
const ToolFormat& react_format();
const ToolFormat& hermes_format();

}  // namespace qw::tools
