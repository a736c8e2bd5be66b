#include "app/line_editor.h"

#include <editline/readline.h>
#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "app/command.h"
#include "app/input.h"

namespace qw::app {

namespace fs = std::filesystem;

namespace {

constexpr int kHistoryLines = 1000;

std::string history_file() {
  const char* state = std::getenv("XDG_STATE_HOME");
  const char* home = std::getenv("HOME");
  fs::path folder;
  if (state != nullptr && *state != '\0') {
    folder = state;
  } else if (home != nullptr && *home != '\0') {
    folder = fs::path(home) / ".local" / "state";
  } else {
    return "";
  }
  std::error_code error;
  fs::create_directories(folder / "qianwen", error);
  return error ? "" : (folder / "qianwen" / "history").string();
}

}  // namespace

LineEditor::LineEditor() : interactive_(isatty(STDIN_FILENO) == 1 && isatty(STDERR_FILENO) == 1) {
  if (!interactive_) return;
  // UTF-8 input needs a UTF-8 locale; C.UTF-8 is there where no locale was generated.
  const char* locale = std::setlocale(LC_CTYPE, "");
  if (locale == nullptr || std::string(locale) == "C" || std::string(locale) == "POSIX")
    std::setlocale(LC_CTYPE, "C.UTF-8");
  rl_initialize();
  using_history();
  stifle_history(kHistoryLines);
  history_path_ = history_file();
  if (!history_path_.empty()) read_history(history_path_.c_str());
}

LineEditor::~LineEditor() {
  if (interactive_ && !history_path_.empty()) write_history(history_path_.c_str());
}

void LineEditor::remember(const std::string& line) {
  if (interactive_ && !line.empty()) add_history(line.c_str());
}

LineEditor::Result LineEditor::read(const std::string& prompt) {
  std::string line;
  if (!interactive_) {
    if (!std::getline(std::cin, line)) {
      if (!interrupted().cancelled()) check_stdin();
      return {interrupted().cancelled() ? Status::kInterrupted : Status::kEnd, ""};
    }
    if (!line.empty() && line.back() == '\r') line.pop_back();
    return {Status::kLine, std::move(line)};
  }
  if (termination_asked()) return {Status::kInterrupted, ""};
  interrupted().reset();
  char* text = readline(prompt.c_str());
  if (text == nullptr) {
    if (interrupted().cancelled()) {
      if (!termination_asked()) interrupted().reset();
      std::fputs("\n", stderr);
      return {Status::kInterrupted, ""};
    }
    return {Status::kEnd, ""};
  }
  line = text;
  std::free(text);  // libedit allocates with malloc
  return {Status::kLine, std::move(line)};
}

}  // namespace qw::app
