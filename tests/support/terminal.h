// Runs a program as a person would: on a terminal, waiting for what it shows, typing, interrupting.
//
// Part of the tests.
#pragma once

#include <string>
#include <vector>

#include "support/process.h"

namespace qw::test {

/// Waits until `shown` appears after what earlier steps waited for, then types (once the program
/// edits lines itself: a Ctrl-D before that is swallowed by the terminal) and signals.
struct TerminalStep {
  std::string shown;
  std::string typed = {};
  int signal = 0;        // 0: none
  bool hang_up = false;  // then the terminal is gone, as when its window is closed; the last step
};

/// The program's terminal output comes back as `out`. Never hangs: it is killed at the time limit,
/// which a text that never appears runs into. `environment`: NAME=VALUE, added.
Ran run_on_terminal(const std::string& program, const std::vector<std::string>& args,
                    const std::vector<TerminalStep>& steps,
                    const std::vector<std::string>& environment, int timeout_s = 60);

}  // namespace qw::test
