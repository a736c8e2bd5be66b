// Where a command's help lists the flags that every command takes.
//
// Level 8 (app).
#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

namespace qw::app {

/// Of the flags of add_compute_flags() those in `used` go to the command's own; the others stay, or
/// come, under a heading that says that they have no effect. --adapter, which commands that read
/// weights as they are refuse, is shown only where it is in `used`.
void group_compute_flags(CLI::App& app, const std::vector<std::string>& used);

}  // namespace qw::app
