// Fuzz target: any bytes as tokenizer.json or tokenizer_config.json load, or fail with qw::Error.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "text/tokenizer.h"
#include "text/tokenizer_config.h"
#include "text/tokenizer_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    qw::TokenizerSpec spec = qw::read_tokenizer_json(bytes, "fuzz");
    qw::mark_named_tokens_special(spec);
    const qw::Tokenizer tokenizer(spec);
    const auto ids = tokenizer.encode(bytes, {.invalid_utf8 = qw::InvalidUtf8::kReplace});
    tokenizer.decode(ids);
  } catch (const qw::Error&) {
  }
  try {
    qw::TokenizerSpec spec;
    qw::apply_tokenizer_config(bytes, "fuzz", spec);
    qw::mark_named_tokens_special(spec);
  } catch (const qw::Error&) {
  }
  return 0;
}
