// The server under test, as a process of its own: started, watched from outside, killed.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace qw::soak {

/// What the system says of a process.
struct Footprint {
  int64_t resident_bytes = 0;   // in all
  int64_t anonymous_bytes = 0;  // without the files that are mapped: where leaks show
  int64_t n_threads = 0, n_files = 0;
};

class Child {
 public:
  /// `args` follow "serve"; what it writes to stderr goes to the file `log`.
  Child(std::string program, std::vector<std::string> args, std::string log)
      : program_(std::move(program)), args_(std::move(args)), log_(std::move(log)) {}
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  /// Starts it and waits until it serves. port 0: any free one. Errors: std::runtime_error.
  void start(uint16_t port);
  void kill_hard();
  /// Asks it to end, and waits. Returns its exit code, or 128 + N when ended by signal N.
  int end(int timeout_s);
  /// Whether it still runs.
  bool alive();

  uint16_t port() const { return port_; }
  Footprint footprint() const;
  /// The last lines that it logged.
  std::string log_tail() const;

 private:
  int wait(bool block);

  std::string program_;
  std::vector<std::string> args_;
  std::string log_;
  pid_t pid_ = -1;
  int code_ = 0;
  uint16_t port_ = 0;
};

}  // namespace qw::soak
