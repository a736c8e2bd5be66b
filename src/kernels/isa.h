// Instruction sets that kernels are written for, found by CPUID, capped by the user.
//
// Level 3 (kernels).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qw::kernels {

/// Ordered: each includes what stands before it where the hardware does; kAvxVnni is AVX2 with
/// 256-bit VNNI, beside the AVX-512 line.
enum class IsaLevel { kGeneric, kAvx2, kAvxVnni, kAvx512, kAvx512Vnni, kAvx512Bf16 };

struct Isa {
  IsaLevel level = IsaLevel::kGeneric;  // the best allowed
  bool avx2 = false, avxvnni = false, avx512 = false, avx512vnni = false, avx512bf16 = false;
};

std::string_view name_of(IsaLevel level) noexcept;  // "generic", "avx2", "avxvnni", "avx512", ...

/// Whether kernels written for `level` may run under `isa`.
bool has(const Isa& isa, IsaLevel level) noexcept;

/// What this CPU and operating system offer (CPUID and XGETBV).
Isa detect_isa();

/// detect_isa() capped at `cap`; "" takes QIANWEN_ISA from the environment, and no cap if that is
/// unset. Errors: invalid_argument for an unknown name, unsupported when the CPU lacks it.
Isa choose_isa(std::string_view cap);

/// Paths compiled into this binary, for --version.
std::vector<std::string> built_isa_paths();

}  // namespace qw::kernels
