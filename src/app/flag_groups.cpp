#include "app/flag_groups.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>

#include "app/command.h"

namespace qw::app {

void group_compute_flags(CLI::App& app, const std::vector<std::string>& used) {
  // Of an app of its own: what the flags are called, and the heading.
  CLI::App plain;
  CommonOptions unused;
  add_compute_flags(plain, unused, ComputeFlags::kWithoutEffect);
  const std::string own = app.get_option("--json")->get_group();
  for (const CLI::Option* flag : plain.get_options()) {
    if (flag == plain.get_help_ptr()) continue;
    const std::string name = flag->get_name();
    const bool is_used = std::ranges::find(used, name) != used.end();
    const bool is_refused = name == "--adapter" && !is_used;
    app.get_option(name)->group(is_used ? own : is_refused ? "" : flag->get_group());
  }
}

}  // namespace qw::app
