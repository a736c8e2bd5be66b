// Reading a line from a person (editing, history, UTF-8, by libedit) or from a pipe.
//
// Level 8 (app). libedit: BSD licence, packaged everywhere, readline's keys.
#pragma once

#include <optional>
#include <string>

namespace qw::app {

class LineEditor {
 public:
  /// Interactive when stdin and stderr are terminals; history is kept in
  /// $XDG_STATE_HOME/qianwen/history (or ~/.local/state/...).
  LineEditor();
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  bool interactive() const noexcept { return interactive_; }

  /// kInterrupted: Ctrl-C, and SIGTERM or SIGHUP, after which termination_asked().
  enum class Status { kLine, kInterrupted, kEnd };
  struct Result {
    Status status;
    std::string text;  // without the newline
  };
  /// Errors: io, when a pipe cannot be read.
  Result read(const std::string& prompt);
  void remember(const std::string& line);

 private:
  bool interactive_ = false;
  std::string history_path_;
};

}  // namespace qw::app
