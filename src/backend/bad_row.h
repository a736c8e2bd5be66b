// The first row that a parallel loop found at fault, whoever found it first in time.
//
// Level 4 (backend).
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>

namespace qw {

class BadRow {
 public:
  void note(int64_t row) noexcept {
    int64_t seen = row_.load(std::memory_order_relaxed);
    while (row < seen && !row_.compare_exchange_weak(seen, row, std::memory_order_relaxed)) {
    }
  }
  /// -1: none.
  int64_t row() const noexcept { return row_.load() == kNone ? -1 : row_.load(); }
  void clear() noexcept { row_.store(kNone); }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> row_{kNone};
};

}  // namespace qw
