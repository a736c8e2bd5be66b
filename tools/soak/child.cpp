#include "soak/child.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>

#include "support/process.h"

namespace qw::soak {

Child::~Child() {
  if (alive()) kill_hard();
}

void Child::start(uint16_t port) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
  std::vector<std::string> args = {"serve", "--json", "--port", std::to_string(port)};
  args.insert(args.end(), args_.begin(), args_.end());
  const pid_t pid = fork();
  if (pid < 0) throw std::runtime_error("fork");
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // it must not outlive whoever watches it
    const int log = ::open(log_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(ends[1], STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    test::become_program(program_, args, {});
  }
  ::close(ends[1]);
  pid_ = pid;
  std::string line;
  char c = 0;
  while (::read(ends[0], &c, 1) == 1 && c != '\n')
    line += c;
  ::close(ends[0]);
  const auto json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains("port"))
    throw std::runtime_error("the server did not start:\n" + log_tail());
  port_ = json["port"];
}

/// Takes note of its end, if that has come.
int Child::wait(bool block) {
  int status = 0;
  if (pid_ < 0 || waitpid(pid_, &status, block ? 0 : WNOHANG) != pid_) return code_;
  pid_ = -1;
  code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return code_;
}

bool Child::alive() {
  wait(false);
  return pid_ >= 0;
}

void Child::kill_hard() {
  kill(pid_, SIGKILL);
  wait(true);
}

int Child::end(int timeout_s) {
  if (pid_ < 0) return code_;
  kill(pid_, SIGTERM);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(timeout_s);
  while (alive() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  if (alive()) kill_hard();
  return code_;
}

Footprint Child::footprint() const {
  Footprint out;
  const std::string folder = fmt::format("/proc/{}/", pid_);
  std::ifstream status(folder + "status");
  for (std::string line; std::getline(status, line);) {
    const auto number = [&] { return std::stoll(line.substr(line.find(':') + 1)); };
    if (line.starts_with("VmRSS:")) out.resident_bytes = number() << 10;
    if (line.starts_with("RssAnon:")) out.anonymous_bytes = number() << 10;
    if (line.starts_with("Threads:")) out.n_threads = number();
  }
  std::error_code ignored;
  const auto files = std::filesystem::directory_iterator(folder + "fd", ignored);
  if (!ignored) out.n_files = std::distance(files, std::filesystem::directory_iterator());
  return out;
}

std::string Child::log_tail() const {
  constexpr std::streamoff kBytes = 4000;
  std::ifstream in(log_, std::ios::ate);
  const std::streamoff size = in.tellg();
  in.seekg(std::max<std::streamoff>(0, size - kBytes));
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace qw::soak
