// Progress of long work: rate and time left on a terminal, plain lines otherwise, all on stderr.
//
// Level 0 (base).
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace qw {

enum class ProgressUnit { kBytes, kItems, kTokens };

/// "12/s", "34 tokens/s", "1.5 MB/s"; of items or tokens that take more than a second each how long
/// one takes: "12.5 s each".
std::string progress_rate(double per_second, ProgressUnit unit);

class Progress {
 public:
  using Unit = ProgressUnit;
  /// total 0: unknown. quiet: count, but print nothing. Nothing is printed for work under 0.5 s.
  Progress(std::string label, int64_t total, Unit unit, bool quiet = false);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void add(int64_t amount);  // thread safe
  void finish();             // prints the last line; the destructor calls it too

 private:
  using Clock = std::chrono::steady_clock;
  void print(Clock::time_point now, bool last);

  std::mutex mutex_;
  std::string label_;
  int64_t total_, done_ = 0;
  Unit unit_;
  bool quiet_, terminal_, printed_ = false, finished_ = false;
  Clock::time_point start_, last_print_;
};

}  // namespace qw
