// A GBNF grammar as a fuzzer writes it: an Error at worst, and a grammar that can be followed.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "engine/grammar/grammar_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  return qw::grammar::fuzz_grammar([&] { return qw::Grammar::from_gbnf(text); });
}
