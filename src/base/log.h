// Logging to stderr by spdlog: results go to stdout, everything else goes through here.
//
// Level 0 (base). The logger is ours alone: a program that uses the library has its own.
#pragma once

#include <spdlog/spdlog.h>

#include <string_view>

namespace qw {

/// Where to log. Warnings and errors only, until init_logging() says otherwise.
spdlog::logger& logger();

/// Sets the level.
/// level: trace, debug, info, warning, error, off; Error{kInvalidArgument} otherwise.
void init_logging(std::string_view level);

}  // namespace qw
