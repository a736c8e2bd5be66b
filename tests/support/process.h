// Runs a program as a user would: arguments, standard input, both outputs, exit code, a time limit.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace qw::test {

struct Ran {
  int code = -1;  // exit code; 128 + N when ended by signal N
  bool timed_out = false;
  std::string out, err;
  /// The last non-empty line of err.
  std::string last_error_line() const;
};

struct RunOptions {
  std::string input = {};    // given to stdin, then closed
  bool close_stdin = false;  // stdin is not there at all
  /// Called once the first byte of stdout came; what it returns is given to stdin, too.
  std::function<std::string()> after_output = {};
  int signal_after_output = 0;    // this signal once the first byte of stdout or stderr came
  std::string signal_after = {};  // or once stderr has this
  std::vector<std::string> environment = {};  // NAME=VALUE, added
  int timeout_s = 120;
};

/// What a forked child does last: its environment and signals, then the program in its place.
[[noreturn]] void become_program(const std::string& program, const std::vector<std::string>& args,
                                 const std::vector<std::string>& environment);

/// Runs `program` (a path). Never hangs: it is killed at the time limit.
Ran run_program(const std::string& program, const std::vector<std::string>& args,
                const RunOptions& options = {});

/// The qianwen program of this build.
Ran qianwen(const std::vector<std::string>& args, const RunOptions& options = {});

}  // namespace qw::test
