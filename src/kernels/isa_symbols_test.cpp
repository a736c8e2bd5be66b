// Code compiled for a newer CPU must not be reachable from older ones: an inline function emitted
// by a file of kernels/cpu/<isa>/ could be the copy that the linker keeps for everybody.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/isa.h"

namespace qw::kernels {
namespace {

std::vector<std::string> lines_of(const std::string& command) {
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::vector<std::string> out;
  char line[4096];
  while (pipe != nullptr && std::fgets(line, sizeof line, pipe.get()) != nullptr) {
    out.emplace_back(line);
    while (!out.back().empty() && out.back().back() == '\n')
      out.back().pop_back();
  }
  return out;
}

std::filesystem::path library() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / "libqw_kernels.a";
}

/// Names that an object file of one instruction set offers to the linker but should not.
std::vector<std::string> leaks(const std::vector<std::string>& nm_lines,
                               const std::set<std::string>& isas) {
  std::vector<std::string> out;
  std::string isa;
  for (const std::string& line : nm_lines) {
    if (!line.empty() && line.back() == ':') {  // "x_avx512.cpp.o:"
      const std::string stem = line.substr(0, line.find('.'));
      const std::string tail = stem.substr(stem.rfind('_') + 1);
      isa = isas.count(tail) != 0 ? tail : "";
      continue;
    }
    if (isa.empty() || line.size() < 20) continue;
    const char kind = line[17];
    const std::string name = line.substr(19);
    if (kind == 'U' || std::islower(static_cast<unsigned char>(kind)) != 0) {
      // Local, undefined or "unique": only weak ('w', 'v', 'u') ones are shared.
      if (kind != 'w' && kind != 'v' && kind != 'u') continue;
    }
    // Data, no code: pointers to the exception handler, AddressSanitizer's marks of globals.
    if (name.starts_with("DW.ref.") || name.starts_with("__odr_asan.")) continue;
    // Clang's way out of noexcept: two calls, no instruction that an older CPU lacks.
    if (name == "__clang_call_terminate") continue;
    if (name.find("qw::kernels::" + isa + "::") != 0) out.push_back(isa + ": " + line);
  }
  return out;
}

TEST(IsaSymbols, OnlyTheNamespaceOfTheIsaIsExported) {
  if (!std::filesystem::exists(library())) GTEST_SKIP() << "no " << library();
  const std::vector<std::string> nm =
      lines_of("nm -C --defined-only '" + library().string() + "' 2>/dev/null");
  if (nm.empty()) GTEST_SKIP() << "no nm";
  std::set<std::string> isas;
  for (const std::string& isa : built_isa_paths()) {
    if (isa != "generic") isas.insert(isa);
  }
  for (const std::string& isa : isas) {
    EXPECT_THAT(nm, testing::Contains("limits_" + isa + ".cpp.o:"))
        << "the archive's members are not named as this test expects";
  }
  EXPECT_THAT(leaks(nm, isas), testing::IsEmpty());
}

TEST(IsaSymbols, TheCheckSeesALeak) {
  const std::set<std::string> isas = {"avx2"};
  EXPECT_THAT(
      leaks({"linear_avx2.cpp.o:", "0000000000000000 W std::min<int>(int const&, int const&)"},
            isas),
      testing::SizeIs(1));
  EXPECT_THAT(
      leaks({"linear_avx2.cpp.o:", "0000000000000000 T qw::kernels::avx2::linear_int8_kernels()"},
            isas),
      testing::IsEmpty());
  EXPECT_THAT(
      leaks({"linear_avx2.cpp.o:", "0000000000000000 t qw::(anonymous namespace)::gemv()"}, isas),
      testing::IsEmpty());
  EXPECT_THAT(
      leaks({"registry.cpp.o:", "0000000000000000 W std::min<int>(int const&, int const&)"}, isas),
      testing::IsEmpty());
}

std::string refusal(const std::string& name) {
  try {
    choose_isa(name);
  } catch (const Error& error) {
    return error.message();
  }
  return "";
}

// FMA, OSXSAVE, AVX, F16C; AVX2, BMI2; AVX-512 F, DQ, BW, VL; what the operating system saves.
constexpr X86Features kHaswell = {0x38001000, 0x120, 0, 0, 0x7};
constexpr X86Features kSkylakeX = {0x38001000, 0xC0030120, 0, 0, 0xE7};
constexpr uint32_t kVnni = 1U << 11, kVbmi = 1U << 1, kAvxVnni = 1U << 4, kBf16 = 1U << 5;

TEST(IsaChoice, FollowsTheFeaturesOfEachCpu) {
  const auto level = [](X86Features cpu, uint32_t leaf7_ecx, uint32_t leaf7_1_eax) {
    cpu.leaf7_ecx = leaf7_ecx;
    cpu.leaf7_1_eax = leaf7_1_eax;
    return isa_of(cpu).level;
  };
  EXPECT_EQ(level({}, 0, 0), IsaLevel::kGeneric);
  EXPECT_EQ(level({0x18000000, 0, 0, 0, 0x7}, 0, 0), IsaLevel::kGeneric);  // Sandy Bridge
  EXPECT_EQ(level(kHaswell, 0, 0), IsaLevel::kAvx2);
  EXPECT_EQ(level(kHaswell, 0, kAvxVnni), IsaLevel::kAvxVnni);  // Alder Lake
  EXPECT_EQ(level(kSkylakeX, 0, 0), IsaLevel::kAvx512);
  EXPECT_EQ(level(kSkylakeX, kVbmi, 0), IsaLevel::kAvx512);              // Cannon Lake
  EXPECT_EQ(level(kSkylakeX, kVnni, 0), IsaLevel::kAvx512Vnni);          // Cascade Lake
  EXPECT_EQ(level(kSkylakeX, kVnni, kBf16), IsaLevel::kAvx512Bf16);      // Cooper Lake
  EXPECT_EQ(level(kSkylakeX, kVnni | kVbmi, 0), IsaLevel::kAvx512Vnni);  // Ice Lake
  EXPECT_EQ(level(kSkylakeX, kVnni | kVbmi, kAvxVnni | kBf16), IsaLevel::kAvx512Bf16);
}

TEST(IsaChoice, NeedsEveryFeatureAndTheSavedRegisters) {
  X86Features all = kSkylakeX;
  all.leaf7_ecx = kVnni;
  all.leaf7_1_eax = kBf16;
  const auto without = [&](uint32_t X86Features::*word, int index) {
    X86Features less = all;
    less.*word &= ~(1U << index);
    return isa_of(less).level;
  };
  for (const int index : {12, 27, 28, 29})
    EXPECT_EQ(without(&X86Features::leaf1_ecx, index), IsaLevel::kGeneric) << index;
  for (const int index : {5, 8})
    EXPECT_EQ(without(&X86Features::leaf7_ebx, index), IsaLevel::kGeneric) << index;
  for (const int index : {16, 17, 30, 31})
    EXPECT_EQ(without(&X86Features::leaf7_ebx, index), IsaLevel::kAvx2) << index;
  EXPECT_EQ(without(&X86Features::leaf7_ecx, 11), IsaLevel::kAvx512);
  for (const uint64_t missing : {0x02, 0x04, 0x20, 0x40, 0x80}) {
    all.xcr0 = 0xE7 & ~missing;
    EXPECT_EQ(isa_of(all).level, missing < 0x20 ? IsaLevel::kGeneric : IsaLevel::kAvx2) << missing;
  }
}

TEST(IsaChoice, CapsToWhatALevelIncludes) {
  EXPECT_EQ(levels_of(choose_isa("generic")), std::vector{IsaLevel::kGeneric});
  const Isa isa = detect_isa();
  EXPECT_TRUE(has(isa, isa.level) && has(isa, IsaLevel::kGeneric));
  using enum IsaLevel;
  const std::vector<std::vector<IsaLevel>> chains = {
      {kGeneric, kAvx2},
      {kGeneric, kAvx2, kAvxVnni},
      {kGeneric, kAvx2, kAvx512},
      {kGeneric, kAvx2, kAvx512, kAvx512Vnni},
      {kGeneric, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16},
      {kGeneric, kNeon},
      {kGeneric, kNeon, kNeonDot},
  };
  for (const std::vector<IsaLevel>& chain : chains) {
    const IsaLevel level = chain.back();
    if (!has(isa, level)) continue;
    const Isa capped = choose_isa(name_of(level));
    EXPECT_EQ(capped.level, level);
    EXPECT_EQ(levels_of(capped), chain) << name_of(level);
  }
}

TEST(IsaChoice, RefusesWithTheNamesThatMayBeChosen) {
  EXPECT_THAT(refusal("avx1024"), testing::HasSubstr("neon or neondot, got \"avx1024\""));
  const Isa isa = detect_isa();
  const std::vector<std::string> built = built_isa_paths();
  for (int i = 0; i < kIsaLevels; ++i) {
    const auto level = static_cast<IsaLevel>(i);
    const std::string name(name_of(level)), message = refusal(name);
    EXPECT_EQ(message.empty(), has(isa, level)) << name;
    if (message.empty()) continue;
    EXPECT_THAT(message, testing::HasSubstr("(generic")) << "whatever stands above what is not";
    EXPECT_EQ(message.find(name + ","), message.rfind(name + ","));  // at the end, if at all
    const bool other = std::find(built.begin(), built.end(), name) == built.end();
    EXPECT_EQ(message.find(" processors") != std::string::npos, other) << message;
  }
}

}  // namespace
}  // namespace qw::kernels
