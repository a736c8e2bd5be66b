// A few threads for what a request costs before it reaches the engine: JSON, templates, tokens.
//
// Level 7 (server). The server's own thread must stay free for clients, the engine's for tokens.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace qw::server {

class Workers {
 public:
  explicit Workers(int n_threads);
  ~Workers() { stop(); }
  /// Ends the threads. Tasks that have begun end; the others are dropped, and so is what comes
  /// later. Any thread but theirs.
  void stop();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  /// Runs `task`, which must not throw, on one of the threads.
  void post(std::function<void()> task);

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace qw::server
