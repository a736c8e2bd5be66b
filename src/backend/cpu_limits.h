// What this host can do at most, measured: the denominators of every speed that we print.
//
// Level 4 (backend).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "backend/cpu_linear_memory.h"
#include "base/cancel.h"
#include "base/thread_pool.h"
#include "kernels/isa.h"
#include "kernels/limits.h"

namespace qw {

/// What multiplies: 8-bit integers, pairs of bf16, f32.
enum class ComputeUnit { kInt8, kBf16, kF32 };
inline constexpr std::array<ComputeUnit, 3> kComputeUnits = {ComputeUnit::kInt8, ComputeUnit::kBf16,
                                                             ComputeUnit::kF32};
std::string_view name_of(ComputeUnit unit) noexcept;  // "int8", "bf16", "f32"

struct HostLimits {
  double read_gb_per_second = 0;     // 10^9 bytes, all threads streaming over memory far beyond L3
  double int8_gop_per_second = 0;    // 10^9 multiplications and additions, all threads
  double bf16_gflop_per_second = 0;  // 0: no bf16 dot product on this CPU, or capped away
  double f32_gflop_per_second = 0;

  double& peak(ComputeUnit unit) noexcept;
  double peak(ComputeUnit unit) const noexcept { return HostLimits(*this).peak(unit); }
};

/// Measures the limits, and on a machine that others share measures them again. Keeps 1 GiB of
/// memory while it lives (a quarter where that is refused), so that every read is of memory.
class LimitProbe {
 public:
  /// Takes about a second: the best of several rounds, since a limit is what is left when nobody
  /// disturbs. `pool` must outlive the probe, `cancel` (may be null) too; it ends a measurement
  /// within a round. Errors: out_of_memory, cancelled.
  explicit LimitProbe(const kernels::Isa& isa, ThreadPool& pool,
                      const CancelFlag* cancel = nullptr);

  /// As measured by the constructor.
  const HostLimits& at_start() const noexcept { return at_start_; }
  /// Reading and these units as they are now, in some tens of milliseconds each: the best of three
  /// rounds of about 10 ms. A round reads on where the last one ended, so whatever it reads has
  /// left the caches. Other units: as at the start. Errors: cancelled.
  HostLimits now(std::span<const ComputeUnit> units);

 private:
  struct Unit {
    int64_t (*probe)(int64_t) noexcept = nullptr;  // null: there is no such unit
    int64_t n = 0;                                 // rounds that take a few milliseconds
  };
  void check() const;
  void fill_buffer();
  void calibrate(Unit& unit) const;
  /// Bytes per second of all threads over the next n_pieces pieces of the buffer, round and round.
  double read_round(int64_t n_pieces);
  /// Operations per second of all threads.
  double peak_round(const Unit& unit, int64_t n) const;

  ThreadPool& pool_;
  const CancelFlag* cancel_;
  kernels::LimitProbes probes_;
  std::array<Unit, kComputeUnits.size()> units_;  // by ComputeUnit
  AlignedBytes buffer_;
  int64_t n_pieces_ = 0, next_piece_ = 0;
  HostLimits at_start_;
};

/// LimitProbe::at_start() of a probe of its own, whose memory is given back.
HostLimits measure_limits(const kernels::Isa& isa, ThreadPool& pool,
                          const CancelFlag* cancel = nullptr);

}  // namespace qw
