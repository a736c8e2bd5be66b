// The instruction sets that kernels are written for, as a number.
//
// Level 3 (kernels). Plain data only: included by files compiled for one instruction set. What a
// level is called, what it includes and when a CPU has it is in isa.cpp.
#pragma once

namespace qw::kernels {

/// In each processor family, better ones later: of two that a CPU has, the later one is chosen.
enum class IsaLevel : int {
  kGeneric,
  // x86-64
  kAvx2,
  kAvxVnni,  // AVX2 with 256-bit VNNI, beside the AVX-512 line
  kAvx512,
  kAvx512Vnni,
  kAvx512Bf16,
  // AArch64
  kNeon,
  kNeonDot,  // NEON with SDOT
};
inline constexpr int kIsaLevels = static_cast<int>(IsaLevel::kNeonDot) + 1;

}  // namespace qw::kernels
