// What this host can do at most, measured: the denominators of every speed that we print.
//
// Level 4 (backend).
#pragma once

#include "base/cancel.h"
#include "base/thread_pool.h"
#include "kernels/isa.h"

namespace qw {

struct HostLimits {
  double read_gb_per_second = 0;     // 10^9 bytes, all threads streaming over memory far beyond L3
  double int8_gop_per_second = 0;    // 10^9 multiplications and additions, all threads
  double bf16_gflop_per_second = 0;  // 0: no bf16 dot product on this CPU, or capped away
  double f32_gflop_per_second = 0;
};

/// Takes about a second and 1 GiB of memory for its time (a quarter where that is refused). The
/// best of several rounds: a limit is what is left when nobody disturbs. `cancel` (may be null)
/// ends it within a round. Errors: out_of_memory, cancelled.
HostLimits measure_limits(const kernels::Isa& isa, ThreadPool& pool,
                          const CancelFlag* cancel = nullptr);

}  // namespace qw
