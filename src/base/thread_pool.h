// A fixed team of threads for parallel loops, made to be called hundreds of times per token.
//
// Level 0 (base). Every thread begins with a contiguous share, so that it streams through memory,
// and then takes chunks from the end of others' shares. The caller never waits for a worker that
// has not begun: when a neighbour process holds a core, the rest of the team does all the work.
// Results must not depend on who computes a chunk; kernels see to that. Work stealing: Blumofe and
// Leiserson 1999.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/function_ref.h"

namespace qw {

class ThreadPool {
 public:
  /// A team of `n_threads` >= 1, the calling thread included. Errors: out_of_memory when the system
  /// refuses a thread.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const noexcept { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(begin, end, thread) for disjoint chunks of at most `grain` items covering
  /// [0, n_items); thread is in [0, size()). Returns when all are done. The first exception
  /// thrown by a body is rethrown here, after the others finished. Several callers take turns:
  /// two bodies with the same `thread` never run at a time. Errors: internal when nested.
  void parallel_for(int64_t n_items, int64_t grain, FunctionRef<void(int64_t, int64_t, int)> body);

 private:
  /// Chunks [begin, end) of a share that nobody has taken, begin in the upper half: its owner takes
  /// from the front, others from the back.
  struct alignas(64) Share {
    std::atomic<uint64_t> chunks{0};
    static uint64_t of(uint64_t begin, uint64_t end) noexcept { return begin << 32 | end; }
    /// The chunk taken, or -1.
    int64_t take_first() noexcept;
    int64_t take_last() noexcept;
  };

  void stop_workers() noexcept;
  void worker_loop(int thread);
  void run_chunks(int thread) noexcept;
  int64_t take(int thread) noexcept;

  struct Job {
    const FunctionRef<void(int64_t, int64_t, int)>* body = nullptr;
    int64_t n_items = 0;
    int64_t grain = 1;
  };

  std::mutex call_mutex_;  // two callers take turns
  Job job_;
  std::exception_ptr error_;
  std::atomic<bool> failed_{false};
  alignas(64) std::atomic<uint64_t> ticket_{0};  // odd: a job is open
  std::vector<Share> shares_;                    // one per thread
  alignas(64) std::atomic<int> active_{0};       // workers that may touch the job
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

/// Physical cores that this process may run on (its affinity mask), at least 1.
int physical_cores();

}  // namespace qw
