#include "backend/cpu_limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

namespace qw {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr int kRounds = 5, kShortRounds = 3;
constexpr int64_t kPiece = int64_t{4} << 20;  // bytes handed to a thread at a time
constexpr double kRoundSeconds = 0.03, kShortRoundSeconds = 0.01;
constexpr int64_t kSharesPerThread = 4;  // of a round of arithmetic, so that threads end together

AlignedBytes buffer_beyond_caches() {
  constexpr int64_t kWanted = int64_t{1} << 30;
  try {
    return AlignedBytes(kWanted, "bandwidth probe");
  } catch (const Error&) {
    return AlignedBytes(kWanted / 4, "bandwidth probe");
  }
}

template <class Round>
double best_of(int n_rounds, const Round& round) {
  double best = 0;
  for (int i = 0; i < n_rounds; ++i)
    best = std::max(best, round());
  return best;
}

}  // namespace

std::string_view name_of(ComputeUnit unit) noexcept {
  constexpr std::array<std::string_view, kComputeUnits.size()> kNames = {"int8", "bf16", "f32"};
  return kNames[static_cast<size_t>(unit)];
}

double& HostLimits::peak(ComputeUnit unit) noexcept {
  if (unit == ComputeUnit::kInt8) return int8_gop_per_second;
  return unit == ComputeUnit::kBf16 ? bf16_gflop_per_second : f32_gflop_per_second;
}

LimitProbe::LimitProbe(const kernels::Isa& isa, ThreadPool& pool, const CancelFlag* cancel)
    : pool_(pool),
      cancel_(cancel),
      probes_(kernels::limit_probes(isa)),
      units_{Unit{probes_.int8_dot}, Unit{probes_.bf16_dot}, Unit{probes_.f32_fma}},
      buffer_(buffer_beyond_caches()),
      n_pieces_(buffer_.size() / kPiece) {
  fill_buffer();
  at_start_.read_gb_per_second = best_of(kRounds, [&] { return read_round(n_pieces_); }) * 1e-9;
  for (const ComputeUnit kind : kComputeUnits) {
    Unit& unit = units_[static_cast<size_t>(kind)];
    if (unit.probe == nullptr) continue;
    calibrate(unit);
    const auto n =
        static_cast<int64_t>(static_cast<double>(unit.n) * (kRoundSeconds / kShortRoundSeconds));
    at_start_.peak(kind) = best_of(kRounds, [&] { return peak_round(unit, n); }) * 1e-9;
  }
}

HostLimits LimitProbe::now(std::span<const ComputeUnit> units) {
  HostLimits limits = at_start_;
  const double bytes = at_start_.read_gb_per_second * 1e9 * kShortRoundSeconds;
  const int64_t n_pieces = std::max<int64_t>(static_cast<int64_t>(bytes) / kPiece,
                                             kSharesPerThread * int64_t{pool_.size()});
  limits.read_gb_per_second = best_of(kShortRounds, [&] { return read_round(n_pieces); }) * 1e-9;
  for (const ComputeUnit kind : units) {
    const Unit& unit = units_[static_cast<size_t>(kind)];
    if (unit.probe == nullptr) continue;
    limits.peak(kind) = best_of(kShortRounds, [&] { return peak_round(unit, unit.n); }) * 1e-9;
  }
  return limits;
}

void LimitProbe::check() const {
  if (cancel_ != nullptr) cancel_->check("measuring");
}

void LimitProbe::fill_buffer() {
  pool_.parallel_for(n_pieces_, 1, [&](int64_t begin, int64_t end, int) {
    // The slow part: the system hands out every page now.
    if (cancel_ != nullptr && cancel_->cancelled()) return;
    std::memset(buffer_.data() + begin * kPiece, 1, static_cast<size_t>((end - begin) * kPiece));
  });
}

/// On one thread, which also wakes the core.
void LimitProbe::calibrate(Unit& unit) const {
  for (unit.n = 1 << 12;; unit.n *= 2) {
    check();
    const auto start = Clock::now();
    unit.probe(unit.n);
    if (seconds_since(start) > kShortRoundSeconds / kSharesPerThread) break;
  }
}

double LimitProbe::read_round(int64_t n_pieces) {
  check();
  std::atomic<uint64_t> seen{0};  // keeps the reads alive
  const auto start = Clock::now();
  pool_.parallel_for(n_pieces, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      seen.fetch_add(probes_.read(buffer_.data() + (next_piece_ + i) % n_pieces_ * kPiece, kPiece));
  });
  const double taken = seconds_since(start);
  next_piece_ = (next_piece_ + n_pieces) % n_pieces_;
  return seen.load() != 0 ? static_cast<double>(n_pieces * kPiece) / taken : 0;
}

double LimitProbe::peak_round(const Unit& unit, int64_t n) const {
  check();
  std::atomic<int64_t> ops{0};
  const auto start = Clock::now();
  pool_.parallel_for(pool_.size() * kSharesPerThread, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      ops.fetch_add(unit.probe(n));
  });
  return static_cast<double>(ops.load()) / seconds_since(start);
}

HostLimits measure_limits(const kernels::Isa& isa, ThreadPool& pool, const CancelFlag* cancel) {
  return LimitProbe(isa, pool, cancel).at_start();
}

}  // namespace qw
