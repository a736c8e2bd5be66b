// A flag that asks long work to stop, set from a signal handler, another thread or a client.
//
// Level 0 (base).
#pragma once

#include <atomic>

#include "base/error.h"

namespace qw {

class CancelFlag {
 public:
  void cancel() noexcept { flag_.store(true, std::memory_order_relaxed); }
  void reset() noexcept { flag_.store(false, std::memory_order_relaxed); }
  bool cancelled() const noexcept { return flag_.load(std::memory_order_relaxed); }
  /// Throws Error{kCancelled} once the flag is set; `what` names the interrupted work.
  void check(std::string_view what) const {
    if (cancelled())
      fail(ErrorKind::kCancelled, "cancel", "{}: expected to reach its end, got interrupted", what);
  }

 private:
  std::atomic<bool> flag_{false};
};

}  // namespace qw
