#include "kernels/isa.h"

#include <fmt/ranges.h>

#include <array>
#include <cstdlib>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace qw::kernels {

namespace {

enum class Family { kAny, kX86_64, kAArch64 };

#if defined(__x86_64__)
constexpr Family kThisFamily = Family::kX86_64;
#elif defined(__aarch64__)
constexpr Family kThisFamily = Family::kAArch64;
#else
constexpr Family kThisFamily = Family::kAny;
#endif

struct LevelRow {
  std::string_view name;
  IsaLevel includes;  // whoever has this level runs the kernels of that one as well
  Family family;
};

constexpr std::array<LevelRow, kIsaLevels> kLevels = {{
    {"generic", IsaLevel::kGeneric, Family::kAny},
    {"avx2", IsaLevel::kGeneric, Family::kX86_64},
    {"avxvnni", IsaLevel::kAvx2, Family::kX86_64},
    {"avx512", IsaLevel::kAvx2, Family::kX86_64},
    {"avx512vnni", IsaLevel::kAvx512, Family::kX86_64},
    {"avx512bf16", IsaLevel::kAvx512Vnni, Family::kX86_64},
    {"neon", IsaLevel::kGeneric, Family::kAArch64},
    {"neondot", IsaLevel::kNeon, Family::kAArch64},
}};

const LevelRow& row_of(IsaLevel level) noexcept {
  return kLevels[static_cast<size_t>(level)];
}

constexpr uint32_t bit_of(IsaLevel level) noexcept {
  return 1U << static_cast<int>(level);
}

bool built(const LevelRow& row) noexcept {
  return row.family == Family::kAny || row.family == kThisFamily;
}

std::string_view name_of(Family family) noexcept {
  return family == Family::kX86_64 ? "x86-64" : family == Family::kAArch64 ? "AArch64" : "any";
}

/// Adds a level whose own features the CPU has; it counts only with all that it includes.
void offer(Isa& isa, IsaLevel level, bool features) noexcept {
  if (!features || !has(isa, row_of(level).includes)) return;
  isa.levels |= bit_of(level);
  isa.level = level;
}

bool bit(uint32_t word, int index) noexcept {
  return (word >> index & 1U) != 0;
}

constexpr int kOsXsave = 27;  // in CPUID(1).ECX: XGETBV may be used

#if defined(__x86_64__)
/// XCR0: the register state that the operating system saves on a context switch.
uint64_t saved_state() noexcept {
  uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

Isa detect() noexcept {
  X86Features features;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) != 0) features.leaf1_ecx = c;
  if (bit(features.leaf1_ecx, kOsXsave)) features.xcr0 = saved_state();  // else an illegal one
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0) {
    features.leaf7_ebx = b;
    features.leaf7_ecx = c;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) features.leaf7_1_eax = a;
  }
  return isa_of(features);
}
#elif defined(__aarch64__)
Isa detect() noexcept {
  Isa isa;
  const unsigned long features = getauxval(AT_HWCAP);
  offer(isa, IsaLevel::kNeon, (features & HWCAP_ASIMD) != 0);
  offer(isa, IsaLevel::kNeonDot, (features & HWCAP_ASIMDDP) != 0);
  return isa;
}
#else
Isa detect() noexcept {
  return {};
}
#endif

/// `isa` without what stands above `level`, or beside it.
Isa capped(const Isa& isa, IsaLevel level) noexcept {
  uint32_t kept = bit_of(IsaLevel::kGeneric);
  for (IsaLevel at = level; at != IsaLevel::kGeneric; at = row_of(at).includes)
    kept |= bit_of(at);
  return {level, isa.levels & kept};
}

/// Names of what choose_isa() would take on a CPU with these features. Not a ladder: a CPU with
/// AVX-512 may lack AVX-VNNI.
std::vector<std::string_view> names_had(const Isa& isa) {
  std::vector<std::string_view> out;
  for (IsaLevel level : levels_of(isa))
    out.push_back(name_of(level));
  return out;
}

[[noreturn]] void fail_unknown(std::string_view source, std::string_view got) {
  std::vector<std::string_view> names;
  names.reserve(std::size(kLevels));
  for (const LevelRow& row : kLevels)
    names.push_back(row.name);
  const std::string_view last = names.back();
  names.pop_back();
  fail(ErrorKind::kInvalidArgument, "isa", "{}: expected {} or {}, got \"{}\"", source,
       fmt::join(names, ", "), last, printable(got));
}

}  // namespace

std::string_view name_of(IsaLevel level) noexcept {
  return row_of(level).name;
}

bool has(const Isa& isa, IsaLevel level) noexcept {
  return (isa.levels & bit_of(level)) != 0;
}

std::vector<IsaLevel> levels_of(const Isa& isa) {
  std::vector<IsaLevel> out;
  for (int i = 0; i < kIsaLevels; ++i) {
    if (has(isa, static_cast<IsaLevel>(i))) out.push_back(static_cast<IsaLevel>(i));
  }
  return out;
}

Isa isa_of(const X86Features& features) noexcept {
  const uint32_t c1 = features.leaf1_ecx, b7 = features.leaf7_ebx;
  const bool avx = bit(c1, kOsXsave) && bit(c1, 28), fma = bit(c1, 12), f16c = bit(c1, 29);
  const bool ymm = (features.xcr0 & 0x06) == 0x06, zmm = (features.xcr0 & 0xE6) == 0xE6;
  const bool avx2 = bit(b7, 5), bmi2 = bit(b7, 8);
  const bool foundation = bit(b7, 16) && bit(b7, 17) && bit(b7, 30) && bit(b7, 31);  // F DQ BW VL
  Isa isa;
  offer(isa, IsaLevel::kAvx2, ymm && avx && avx2 && bmi2 && fma && f16c);
  offer(isa, IsaLevel::kAvxVnni, bit(features.leaf7_1_eax, 4));
  offer(isa, IsaLevel::kAvx512, zmm && foundation);
  offer(isa, IsaLevel::kAvx512Vnni, bit(features.leaf7_ecx, 11));
  offer(isa, IsaLevel::kAvx512Bf16, bit(features.leaf7_1_eax, 5));
  return isa;
}

Isa detect_isa() {
  return detect();
}

Isa choose_isa(std::string_view cap) {
  std::string_view source = "isa";
  if (cap.empty()) {
    if (const char* variable = std::getenv("QIANWEN_ISA"); variable != nullptr) cap = variable;
    source = "QIANWEN_ISA";
  }
  const Isa isa = detect_isa();
  if (cap.empty()) return isa;
  for (int i = 0; i < kIsaLevels; ++i) {
    const auto level = static_cast<IsaLevel>(i);
    const LevelRow& row = row_of(level);
    if (row.name != cap) continue;
    if (!built(row)) {
      fail(ErrorKind::kUnsupported, "isa",
           "{}: expected one that this CPU has ({}), got {}, which is of {} processors", source,
           fmt::join(names_had(isa), ", "), cap, name_of(row.family));
    }
    if (!has(isa, level)) {
      fail(ErrorKind::kUnsupported, "isa", "{}: expected one that this CPU has ({}), got {}",
           source, fmt::join(names_had(isa), ", "), cap);
    }
    return capped(isa, level);
  }
  fail_unknown(source, cap);
}

std::vector<std::string> built_isa_paths() {
  std::vector<std::string> out;
  for (const LevelRow& row : kLevels) {
    if (built(row)) out.emplace_back(row.name);
  }
  return out;
}

}  // namespace qw::kernels
