// Probes for the limits of a host: streaming reads and the peak of each arithmetic unit.
//
// Level 3 (kernels). Plain data only: included by files compiled for one instruction set. Timing
// and threads are backend/cpu_limits.h.
#pragma once

#include <stdint.h>

namespace qw::kernels {

struct Isa;

struct LimitProbes {
  /// Reads [bytes, bytes + n_bytes), a multiple of 1024; the result depends on every byte.
  uint64_t (*read)(const uint8_t* bytes, int64_t n_bytes) noexcept;
  // Each runs `n` rounds of independent chains of one instruction and returns the operations done,
  // a multiply and an addition each counted. Null: the unit is missing.
  int64_t (*int8_dot)(int64_t n) noexcept;  // 4-term products of u8 and s8, summed in int32
  int64_t (*bf16_dot)(int64_t n) noexcept;
  int64_t (*f32_fma)(int64_t n) noexcept;
};

/// The probes of the best instruction set that `isa` allows.
LimitProbes limit_probes(const Isa& isa) noexcept;

}  // namespace qw::kernels
