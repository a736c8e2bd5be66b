// Instruction sets that kernels are written for, found by asking the CPU, capped by the user.
//
// Level 3 (kernels).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/isa_level.h"

namespace qw::kernels {

struct Isa {
  IsaLevel level = IsaLevel::kGeneric;  // the best allowed
  uint32_t levels = 1;                  // bit i: kernels written for IsaLevel i may run
};

std::string_view name_of(IsaLevel level) noexcept;  // "generic", "avx2", ..., "neon", "neondot"

/// Whether kernels written for `level` may run under `isa`.
bool has(const Isa& isa, IsaLevel level) noexcept;

/// Every level that `isa` has, in the order of IsaLevel.
std::vector<IsaLevel> levels_of(const Isa& isa);

/// What an x86-64 CPU and its operating system say. Zero: not offered.
struct X86Features {
  uint32_t leaf1_ecx = 0;                 // CPUID(1)
  uint32_t leaf7_ebx = 0, leaf7_ecx = 0;  // CPUID(7, 0)
  uint32_t leaf7_1_eax = 0;               // CPUID(7, 1)
  uint64_t xcr0 = 0;  // the register state that the operating system saves on a context switch
};

/// The levels that these features allow: every instruction of a level, and its registers saved.
/// Source: Intel SDM, volume 1, sections 14.3 and 15.2.
Isa isa_of(const X86Features& features) noexcept;

/// What this CPU and operating system offer: CPUID and XGETBV on x86-64, the kernel's AT_HWCAP on
/// AArch64.
Isa detect_isa();

/// detect_isa() capped at `cap`; "" takes QIANWEN_ISA from the environment, and no cap if that is
/// unset. Errors: invalid_argument for an unknown name, unsupported when the CPU lacks it or is of
/// another family.
Isa choose_isa(std::string_view cap);

/// Paths compiled into this binary, for --version and --help.
std::vector<std::string> built_isa_paths();

}  // namespace qw::kernels
