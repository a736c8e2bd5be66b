#include "base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

namespace qw {

namespace {

std::string amount(double value, Progress::Unit unit) {
  if (unit == Progress::Unit::kBytes) {
    return value >= 1e9 ? fmt::format("{:.2f} GB", value * 1e-9)
                        : fmt::format("{:.1f} MB", value * 1e-6);
  }
  return fmt::format("{:.0f}{}", value, unit == Progress::Unit::kTokens ? " tokens" : "");
}

std::string duration(double seconds) {
  const int64_t total = std::lround(seconds);
  if (total >= 3600) return fmt::format("{}h{:02}m", total / 3600, total / 60 % 60);
  if (total >= 60) return fmt::format("{}m{:02}s", total / 60, total % 60);
  return fmt::format("{}s", total);
}

/// Of one item.
std::string long_time(double seconds) {
  return seconds < 100 ? fmt::format("{:.1f} s", seconds) : duration(seconds);
}

}  // namespace

std::string progress_rate(double per_second, ProgressUnit unit) {
  if (unit == ProgressUnit::kBytes || per_second >= 1 || !(per_second > 0))
    return amount(per_second, unit) + "/s";
  return fmt::format("{} {}", long_time(1 / per_second),
                     unit == ProgressUnit::kTokens ? "per token" : "each");
}

Progress::Progress(std::string label, int64_t total, Unit unit, bool quiet)
    : label_(std::move(label)),
      total_(total),
      unit_(unit),
      quiet_(quiet),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_print_(start_) {}

Progress::~Progress() {
  finish();
}

void Progress::add(int64_t amount) {
  const std::lock_guard lock(mutex_);
  done_ += amount;
  const auto now = Clock::now();
  const auto interval =
      terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10000);
  const auto first = terminal_ ? std::chrono::milliseconds(500) : std::chrono::milliseconds(5000);
  if (now - start_ >= first &&
      now - last_print_ >= (printed_ ? interval : std::chrono::milliseconds(0))) {
    print(now, false);
  }
}

void Progress::finish() {
  const std::lock_guard lock(mutex_);
  if (finished_) return;
  finished_ = true;
  if (printed_) print(Clock::now(), true);
}

void Progress::print(Clock::time_point now, bool last) {
  if (quiet_) return;
  const double seconds = std::max(1e-9, std::chrono::duration<double>(now - start_).count());
  const double rate = static_cast<double>(done_) / seconds;
  std::string line = label_ + ": " + amount(static_cast<double>(done_), unit_);
  if (total_ > 0) {
    line += fmt::format(" of {} ({:.0f} %)", amount(static_cast<double>(total_), unit_),
                        100.0 * static_cast<double>(done_) / static_cast<double>(total_));
  }
  line += ", " + progress_rate(rate, unit_);
  if (last) {
    line += fmt::format(", took {}", duration(seconds));
  } else if (total_ > done_ && rate > 0) {
    line += fmt::format(", {} left", duration(static_cast<double>(total_ - done_) / rate));
  }
  if (terminal_) {
    std::fprintf(stderr, "\r\033[K%s%s", line.c_str(), last ? "\n" : "");
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
  printed_ = true;
  last_print_ = now;
}

}  // namespace qw
