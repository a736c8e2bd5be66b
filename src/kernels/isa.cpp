#include "kernels/isa.h"

#include <fmt/ranges.h>

#include <array>
#include <cstdint>
#include <cstdlib>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace qw::kernels {

namespace {

constexpr std::array<std::string_view, 6> kNames = {"generic", "avx2",       "avxvnni",
                                                    "avx512",  "avx512vnni", "avx512bf16"};

#if defined(__x86_64__)
bool bit(uint32_t word, int index) noexcept {
  return (word >> index & 1U) != 0;
}

/// XCR0: the register state that the operating system saves on a context switch.
uint64_t saved_state() noexcept {
  uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}
#endif

/// `isa` without what stands above `level`, or beside it.
Isa capped(Isa isa, IsaLevel level) {
  isa.avx2 = isa.avx2 && level >= IsaLevel::kAvx2;
  isa.avxvnni = isa.avxvnni && level == IsaLevel::kAvxVnni;
  isa.avx512 = isa.avx512 && level >= IsaLevel::kAvx512;
  isa.avx512vnni = isa.avx512vnni && level >= IsaLevel::kAvx512Vnni;
  isa.avx512bf16 = isa.avx512bf16 && level >= IsaLevel::kAvx512Bf16;
  isa.level = level;
  return isa;
}

/// What choose_isa() would take on a CPU with these features. Not a ladder: a CPU with AVX-512 may
/// lack AVX-VNNI.
std::vector<std::string_view> names_had(const Isa& isa) {
  std::vector<std::string_view> out;
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (has(isa, static_cast<IsaLevel>(i))) out.push_back(kNames[i]);
  }
  return out;
}

}  // namespace

std::string_view name_of(IsaLevel level) noexcept {
  return kNames[static_cast<size_t>(level)];
}

bool has(const Isa& isa, IsaLevel level) noexcept {
  switch (level) {
    case IsaLevel::kGeneric:
      return true;
    case IsaLevel::kAvx2:
      return isa.avx2;
    case IsaLevel::kAvxVnni:
      return isa.avxvnni;
    case IsaLevel::kAvx512:
      return isa.avx512;
    case IsaLevel::kAvx512Vnni:
      return isa.avx512vnni;
    case IsaLevel::kAvx512Bf16:
      return isa.avx512bf16;
  }
  return false;
}

Isa detect_isa() {
  Isa isa;
#if defined(__x86_64__)
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return isa;
  const bool osxsave = bit(c, 27), fma = bit(c, 12), f16c = bit(c, 29), avx = bit(c, 28);
  if (!osxsave || !avx) return isa;
  const uint64_t state = saved_state();
  const bool ymm = (state & 0x06) == 0x06, zmm = (state & 0xE6) == 0xE6;
  uint32_t b7 = 0, c7 = 0;
  if (__get_cpuid_count(7, 0, &a, &b7, &c7, &d) == 0) return isa;
  uint32_t a71 = 0;
  if (a >= 1) __get_cpuid_count(7, 1, &a71, &b, &c, &d);
  const bool avx2 = bit(b7, 5), bmi2 = bit(b7, 8);
  isa.avx2 = ymm && avx2 && bmi2 && fma && f16c;
  isa.avxvnni = isa.avx2 && bit(a71, 4);
  const bool foundation = bit(b7, 16) && bit(b7, 17) && bit(b7, 30) && bit(b7, 31);  // F DQ BW VL
  isa.avx512 = isa.avx2 && zmm && foundation;
  isa.avx512vnni = isa.avx512 && bit(c7, 11) && bit(c7, 1);  // VNNI and VBMI
  isa.avx512bf16 = isa.avx512vnni && bit(a71, 5);
#endif
  for (auto level : {IsaLevel::kAvx2, IsaLevel::kAvxVnni, IsaLevel::kAvx512, IsaLevel::kAvx512Vnni,
                     IsaLevel::kAvx512Bf16}) {
    if (has(isa, level)) isa.level = level;
  }
  return isa;
}

Isa choose_isa(std::string_view cap) {
  std::string_view source = "isa";
  if (cap.empty()) {
    if (const char* variable = std::getenv("QIANWEN_ISA"); variable != nullptr) cap = variable;
    source = "QIANWEN_ISA";
  }
  const Isa isa = detect_isa();
  if (cap.empty()) return isa;
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] != cap) continue;
    const auto level = static_cast<IsaLevel>(i);
    if (!has(isa, level)) {
      fail(ErrorKind::kUnsupported, "isa", "{}: expected one that this CPU has ({}), got {}",
           source, fmt::join(names_had(isa), ", "), cap);
    }
    return capped(isa, level);
  }
  fail(ErrorKind::kInvalidArgument, "isa",
       "{}: expected generic, avx2, avxvnni, avx512, avx512vnni or avx512bf16, got \"{}\"", source,
       printable(cap));
}

std::vector<std::string> built_isa_paths() {
#if defined(__x86_64__)
  return {kNames.begin(), kNames.end()};
#else
  return {std::string(kNames[0])};
#endif
}

}  // namespace qw::kernels
