#include "base/thread_pool.h"

#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string>
#include <utility>

#include "base/error.h"

namespace qw {

namespace {

void relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // waits about as long as x86's pause; yield is a no-op on most cores
#endif
}

// How long a worker spins for the next job before it sleeps in the kernel: longer than the
// serial gaps between operations of one token, shorter than what a user notices as a busy core.
// 50 to 100 microseconds on Zen 3, November 2026.
constexpr int kSpins = 4000;

// What half a share's word can count.
constexpr uint64_t kMaxChunks = 0xFFFFFFFF;

/// The team whose job the calling thread is in, so that nesting is an error and not a deadlock.
thread_local const ThreadPool* t_at_work = nullptr;

class AtWork {
 public:
  explicit AtWork(const ThreadPool* pool) noexcept : outer_(std::exchange(t_at_work, pool)) {}
  ~AtWork() { t_at_work = outer_; }
  AtWork(const AtWork&) = delete;
  AtWork& operator=(const AtWork&) = delete;

 private:
  const ThreadPool* outer_;
};

/// While it lives, threads that are made take no signal that comes from outside: those are the
/// application's, whose handlers (a line editor's, say) may not expect another thread. Faults of a
/// thread's own stay its own.
class NoSignals {
 public:
  NoSignals() noexcept {
    sigset_t all;
    sigfillset(&all);
    for (const int own : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS})
      sigdelset(&all, own);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~NoSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  NoSignals(const NoSignals&) = delete;
  NoSignals& operator=(const NoSignals&) = delete;

 private:
  sigset_t before_;
};

}  // namespace

ThreadPool::ThreadPool(int n_threads) {
  QW_CHECK(n_threads >= 1, "a team needs a thread");
  try {
    shares_ = std::vector<Share>(static_cast<size_t>(n_threads));
    workers_.reserve(static_cast<size_t>(n_threads - 1));
    const NoSignals no_signals;
    for (int i = 1; i < n_threads; ++i)
      workers_.emplace_back([this, i] { worker_loop(i); });
  } catch (const std::exception& error) {  // of the system, or no memory for so many
    const size_t n_made = workers_.size() + 1;
    stop_workers();  // a thread that is destroyed unjoined ends the process
    fail(ErrorKind::kOutOfMemory, "threads", "team: expected {} threads, got {}: {}", n_threads,
         n_made, error.what());
  }
}

ThreadPool::~ThreadPool() {
  stop_workers();
}

void ThreadPool::stop_workers() noexcept {
  stop_.store(true);
  ticket_.fetch_add(2);
  ticket_.notify_all();
  for (auto& worker : workers_)
    worker.join();
}

int64_t ThreadPool::Share::take_first() noexcept {
  uint64_t seen = chunks.load(std::memory_order_relaxed);
  for (;;) {
    const uint64_t begin = seen >> 32, end = seen & 0xFFFFFFFF;
    if (begin >= end) return -1;
    if (chunks.compare_exchange_weak(seen, of(begin + 1, end), std::memory_order_relaxed))
      return static_cast<int64_t>(begin);
  }
}

int64_t ThreadPool::Share::take_last() noexcept {
  uint64_t seen = chunks.load(std::memory_order_relaxed);
  for (;;) {
    const uint64_t begin = seen >> 32, end = seen & 0xFFFFFFFF;
    if (begin >= end) return -1;
    if (chunks.compare_exchange_weak(seen, of(begin, end - 1), std::memory_order_relaxed))
      return static_cast<int64_t>(end - 1);
  }
}

int64_t ThreadPool::take(int thread) noexcept {
  const size_t own = static_cast<size_t>(thread), count = shares_.size();
  int64_t chunk = shares_[own].take_first();
  for (size_t i = 1; chunk < 0 && i < count; ++i)
    chunk = shares_[(own + i) % count].take_last();
  return chunk;
}

void ThreadPool::run_chunks(int thread) noexcept {
  for (int64_t chunk = take(thread); chunk >= 0; chunk = take(thread)) {
    if (failed_.load(std::memory_order_relaxed)) continue;
    const int64_t begin = chunk * job_.grain;
    try {
      (*job_.body)(begin, std::min(begin + job_.grain, job_.n_items), thread);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }
}

void ThreadPool::worker_loop(int thread) {
  const AtWork at_work(this);
  uint64_t seen = 0;
  for (;;) {
    uint64_t ticket = ticket_.load();
    for (int spin = 0; ticket == seen && spin < kSpins; ++spin) {
      relax();
      ticket = ticket_.load(std::memory_order_relaxed);
    }
    if (ticket == seen) {
      ticket_.wait(seen);
      ticket = ticket_.load();
    }
    if (stop_.load()) return;
    seen = ticket;
    if ((ticket & 1) == 0) continue;
    // Enter first, then look again: either the caller sees us and waits, or we see it closed.
    active_.fetch_add(1);
    if (ticket_.load() == ticket) run_chunks(thread);
    active_.fetch_sub(1);
  }
}

void ThreadPool::parallel_for(int64_t n_items, int64_t grain,
                              FunctionRef<void(int64_t, int64_t, int)> body) {
  if (n_items <= 0) return;
  QW_CHECK(grain >= 1, "a chunk needs an item");
  QW_CHECK(t_at_work != this, "a parallel loop within a parallel loop");
  // Even a loop that one thread runs takes its turn: bodies own what belongs to their thread's
  // number, and the caller is always number 0.
  const std::lock_guard lock(call_mutex_);
  const AtWork at_work(this);
  if (workers_.empty() || n_items <= grain) {
    for (int64_t begin = 0; begin < n_items; begin += grain)
      body(begin, std::min(begin + grain, n_items), 0);
    return;
  }
  const auto n_chunks = static_cast<uint64_t>((n_items - 1) / grain + 1);
  const uint64_t n = shares_.size();
  QW_CHECK(n_chunks <= kMaxChunks, "{} chunks", n_chunks);
  job_ = {&body, n_items, grain};
  for (uint64_t t = 0; t < n; ++t) {
    shares_[t].chunks.store(Share::of(n_chunks * t / n, n_chunks * (t + 1) / n),
                            std::memory_order_relaxed);
  }
  failed_.store(false, std::memory_order_relaxed);
  ticket_.fetch_add(1);
  ticket_.notify_all();
  run_chunks(0);
  ticket_.fetch_add(1);
  for (int spin = 0; active_.load() != 0; ++spin) {
    if (spin < kSpins) {
      relax();
    } else {
      sched_yield();  // a worker lost its core in the middle of a chunk
    }
  }
  if (failed_.load()) {
    std::exception_ptr error = std::move(error_);
    error_ = nullptr;
    std::rethrow_exception(error);
  }
}

int physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
  std::set<std::string> cores;
  int logical = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    ++logical;
    const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    std::string siblings;
    std::getline(std::ifstream(topology + "thread_siblings_list"), siblings);
    cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
  }
  return std::max(1, std::min(logical, static_cast<int>(cores.size())));
}

}  // namespace qw
