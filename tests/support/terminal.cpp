#include "support/terminal.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <stdexcept>

namespace qw::test {

namespace {

[[noreturn]] void become(const std::string& program, const std::vector<std::string>& args,
                         const std::vector<std::string>& environment, const char* terminal) {
  setsid();
  const int end = open(terminal, O_RDWR);  // the first one that a session opens controls it
  if (end < 0) _exit(126);
  ioctl(end, TIOCSCTTY, 0);
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    dup2(end, stream);
  become_program(program, args, environment);
}

/// Whether the program takes keys one by one, not lines from the terminal's own editor.
bool edits_lines(int terminal) {
  termios mode{};
  return tcgetattr(terminal, &mode) == 0 && (mode.c_lflag & ICANON) == 0;
}

}  // namespace

Ran run_on_terminal(const std::string& program, const std::vector<std::string>& args,
                    const std::vector<TerminalStep>& steps,
                    const std::vector<std::string>& environment, int timeout_s) {
  int person = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (person < 0 || grantpt(person) != 0 || unlockpt(person) != 0)
    throw std::runtime_error("terminal");
  const std::string terminal = ptsname(person);
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork");
  if (child == 0) become(program, args, environment, terminal.c_str());

  Ran ran;
  const auto read_for = [&](int milliseconds) {
    pollfd readable{person, POLLIN, 0};  // a terminal that is gone is -1: poll only waits
    std::array<char, 4096> buffer;
    if (poll(&readable, 1, milliseconds) <= 0 || (readable.revents & POLLIN) == 0) return false;
    const ssize_t n = read(person, buffer.data(), buffer.size());
    if (n > 0) ran.out.append(buffer.data(), static_cast<size_t>(n));
    return n > 0;
  };
  size_t step = 0, seen = 0;
  int status = 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(timeout_s);
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() > deadline) {
      ran.timed_out = true;
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      break;
    }
    read_for(20);
    while (step < steps.size()) {
      const size_t at = ran.out.find(steps[step].shown, seen);
      if (at == std::string::npos || (!steps[step].typed.empty() && !edits_lines(person))) break;
      seen = at + steps[step].shown.size();
      const std::string& typed = steps[step].typed;
      if (write(person, typed.data(), typed.size()) < 0) throw std::runtime_error("typing");
      if (steps[step].signal != 0) kill(child, steps[step].signal);
      if (steps[step++].hang_up) {
        ::close(person);
        person = -1;
      }
    }
  }
  // What the program said last may have come after the last look.
  while (read_for(0)) {
  }
  if (person >= 0) ::close(person);
  ran.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ran;
}

}  // namespace qw::test
