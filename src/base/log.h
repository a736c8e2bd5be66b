// Logging to stderr by spdlog: results go to stdout, everything else goes through here.
//
// Level 0 (base).
#pragma once

#include <spdlog/spdlog.h>

#include <string_view>

namespace qw {

/// Sends spdlog's default logger to stderr with the project's line format.
/// level: trace, debug, info, warning, error, off; Error{kInvalidArgument} otherwise.
void init_logging(std::string_view level);

}  // namespace qw
