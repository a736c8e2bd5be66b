// Code compiled for a newer CPU must not be reachable from older ones: an inline function emitted
// by a file of kernels/cpu/<isa>/ could be the copy that the linker keeps for everybody.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
  int seen = 0;
  for (const std::string& line : nm) {
    for (const std::string& isa : isas)
      seen += line == "linear_int8_" + isa + ".cpp.o:";
  }
  EXPECT_GE(seen, 4) << "the archive's members are not named as this test expects";
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

TEST(IsaChoice, CapsAndRefuses) {
  EXPECT_EQ(choose_isa("generic").level, IsaLevel::kGeneric);
  EXPECT_FALSE(choose_isa("generic").avx2);
  const Isa isa = detect_isa();
  if (isa.avx512vnni) {
    const Isa capped = choose_isa("avx512");
    EXPECT_TRUE(capped.avx2 && capped.avx512);
    EXPECT_FALSE(capped.avx512vnni || capped.avx512bf16 || capped.avxvnni);
  }
  EXPECT_ANY_THROW(choose_isa("avx1024"));
  if (!isa.avx512) {
    EXPECT_ANY_THROW(choose_isa("avx512"));
  }
  for (const char* name : {"avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16"}) {
    try {
      choose_isa(name);
    } catch (const Error& error) {  // says what may be chosen, whatever stands above what is not
      EXPECT_NE(error.message().find("(generic"), std::string::npos) << error.message();
      EXPECT_EQ(error.message().find(std::string(name) + ","), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace qw::kernels
