#include "backend/cpu_limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "backend/cpu_linear_memory.h"
#include "kernels/limits.h"

namespace qw {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr int kRounds = 5;
constexpr int64_t kPiece = int64_t{4} << 20;  // bytes handed to a thread at a time
constexpr double kRoundSeconds = 0.03;

AlignedBytes buffer_beyond_caches() {
  constexpr int64_t kWanted = int64_t{1} << 30;
  try {
    return AlignedBytes(kWanted, "bandwidth probe");
  } catch (const Error&) {
    return AlignedBytes(kWanted / 4, "bandwidth probe");
  }
}

void check(const CancelFlag* cancel) {
  if (cancel != nullptr) cancel->check("measuring");
}

double measure_read(const kernels::LimitProbes& probes, ThreadPool& pool,
                    const CancelFlag* cancel) {
  const AlignedBytes buffer = buffer_beyond_caches();
  const int64_t n_pieces = buffer.size() / kPiece;
  pool.parallel_for(n_pieces, 1, [&](int64_t begin, int64_t end, int) {
    // The slow part: the system hands out every page now.
    if (cancel != nullptr && cancel->cancelled()) return;
    std::memset(buffer.data() + begin * kPiece, 1, static_cast<size_t>((end - begin) * kPiece));
  });
  std::atomic<uint64_t> seen{0};  // keeps the reads alive
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    check(cancel);
    const auto start = Clock::now();
    pool.parallel_for(n_pieces, 1, [&](int64_t begin, int64_t end, int) {
      seen.fetch_add(probes.read(buffer.data() + begin * kPiece, (end - begin) * kPiece));
    });
    best = std::max(best, static_cast<double>(buffer.size()) / seconds_since(start));
  }
  return seen.load() != 0 ? best : 0;
}

/// Operations per second of all threads; 0 when there is no such unit.
double measure_peak(int64_t (*probe)(int64_t) noexcept, ThreadPool& pool,
                    const CancelFlag* cancel) {
  if (probe == nullptr) return 0;
  int64_t n = 1 << 14;  // calibrated on one thread, which also wakes the core
  for (;; n *= 2) {
    check(cancel);
    const auto start = Clock::now();
    probe(n);
    if (seconds_since(start) > kRoundSeconds / 4) break;
  }
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    check(cancel);
    std::atomic<int64_t> ops{0};
    const auto start = Clock::now();
    pool.parallel_for(pool.size() * 4, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        ops.fetch_add(probe(n));
    });
    best = std::max(best, static_cast<double>(ops.load()) / seconds_since(start));
  }
  return best;
}

}  // namespace

HostLimits measure_limits(const kernels::Isa& isa, ThreadPool& pool, const CancelFlag* cancel) {
  const kernels::LimitProbes probes = kernels::limit_probes(isa);
  HostLimits limits;
  limits.read_gb_per_second = measure_read(probes, pool, cancel) * 1e-9;
  limits.int8_gop_per_second = measure_peak(probes.int8_dot, pool, cancel) * 1e-9;
  limits.bf16_gflop_per_second = measure_peak(probes.bf16_dot, pool, cancel) * 1e-9;
  limits.f32_gflop_per_second = measure_peak(probes.f32_fma, pool, cancel) * 1e-9;
  return limits;
}

}  // namespace qw
