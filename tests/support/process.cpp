#include "support/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <stdexcept>

namespace qw::test {

namespace {

struct Pipe {
  std::array<int, 2> ends{-1, -1};
  Pipe() {
    if (pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe");
  }
  ~Pipe() {
    close_end(0);
    close_end(1);
  }
  void close_end(size_t end) {
    if (ends[end] >= 0) ::close(ends[end]);
    ends[end] = -1;
  }
};

[[noreturn]] void become(const std::string& program, const std::vector<std::string>& args,
                         const RunOptions& options, Pipe& in, Pipe& out, Pipe& err) {
  if (options.close_stdin) {
    ::close(STDIN_FILENO);
  } else {
    dup2(in.ends[0], STDIN_FILENO);
  }
  dup2(out.ends[1], STDOUT_FILENO);
  dup2(err.ends[1], STDERR_FILENO);
  become_program(program, args, options.environment);
}

}  // namespace

void become_program(const std::string& program, const std::vector<std::string>& args,
                    const std::vector<std::string>& environment) {
  for (const std::string& entry : environment)
    putenv(const_cast<char*>(entry.c_str()));
  std::vector<char*> argv = {const_cast<char*>(program.c_str())};
  for (const std::string& arg : args)
    argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  // Signals as a terminal gives them, whatever the tests themselves were told to ignore (nohup).
  for (const int sent : {SIGHUP, SIGINT, SIGTERM})
    signal(sent, SIG_DFL);
  execv(program.c_str(), argv.data());
  _exit(127);
}

std::string Ran::last_error_line() const {
  size_t end = err.find_last_not_of('\n');
  if (end == std::string::npos) return "";
  const size_t begin = err.rfind('\n', end);
  return err.substr(begin == std::string::npos ? 0 : begin + 1,
                    end - (begin == std::string::npos ? 0 : begin + 1) + 1);
}

Ran run_program(const std::string& program, const std::vector<std::string>& args,
                const RunOptions& options) {
  signal(SIGPIPE, SIG_IGN);
  Pipe in, out, err;
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork");
  if (child == 0) become(program, args, options, in, out, err);
  in.close_end(0);
  out.close_end(1);
  err.close_end(1);

  Ran ran;
  std::string input = options.input;
  size_t written = 0;
  bool more_input = static_cast<bool>(options.after_output);
  bool signalled = options.signal_after_output == 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(options.timeout_s);
  fcntl(in.ends[1], F_SETFL, O_NONBLOCK);
  if (input.empty() && !more_input) in.close_end(1);
  while (out.ends[0] >= 0 || err.ends[0] >= 0) {
    if (std::chrono::steady_clock::now() > deadline) {
      ran.timed_out = true;
      kill(child, SIGKILL);
      break;
    }
    std::array<pollfd, 3> fds = {pollfd{out.ends[0], POLLIN, 0}, pollfd{err.ends[0], POLLIN, 0},
                                 // Poll leaves out what is negative.
                                 pollfd{written < input.size() ? in.ends[1] : -1, POLLOUT, 0}};
    if (poll(fds.data(), fds.size(), 100) < 0 && errno != EINTR) break;
    for (size_t stream = 0; stream < 2; ++stream) {
      if ((fds[stream].revents & (POLLIN | POLLHUP)) == 0) continue;
      std::array<char, 65536> buffer;
      const ssize_t n = read(fds[stream].fd, buffer.data(), buffer.size());
      if (n > 0) {
        (stream == 0 ? ran.out : ran.err).append(buffer.data(), static_cast<size_t>(n));
        if (stream == 0 && more_input) {
          input += options.after_output();
          more_input = false;
        }
        if (!signalled && ran.err.find(options.signal_after) != std::string::npos) {
          kill(child, options.signal_after_output);
          signalled = true;
        }
      } else {
        (stream == 0 ? out : err).close_end(0);
      }
    }
    if (in.ends[1] >= 0 && (fds[2].revents & (POLLOUT | POLLERR | POLLHUP)) != 0) {
      const ssize_t n = write(in.ends[1], input.data() + written, input.size() - written);
      if (n > 0) written += static_cast<size_t>(n);
      if (n < 0 && errno != EAGAIN) in.close_end(1);
    }
    if (written == input.size() && !more_input) in.close_end(1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ran.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ran;
}

Ran qianwen(const std::vector<std::string>& args, const RunOptions& options) {
  return run_program(QIANWEN_PROGRAM, args, options);
}

}  // namespace qw::test
