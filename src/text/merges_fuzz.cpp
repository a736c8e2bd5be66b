// Fuzz target: merges.txt, vocab.json and qwen.tiktoken from any bytes, and merging by any merges.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "text/byte_level.h"
#include "text/tokenizer.h"
#include "text/tokenizer_files.h"
#include "text/tokenizer_json.h"

namespace {

/// The 256 bytes and whatever the merges make of them: a vocabulary that fits any merges.
void encode_with(std::vector<qw::MergeText> merges, std::string_view text) {
  qw::TokenizerSpec spec;
  for (int byte = 0; byte < 256; ++byte) {
    spec.tokens.push_back(qw::bytes_to_byte_level(std::string(1, static_cast<char>(byte))));
  }
  for (const auto& merge : merges) {
    for (const std::string& token : {merge.left, merge.right, merge.left + merge.right}) {
      if (std::find(spec.tokens.begin(), spec.tokens.end(), token) == spec.tokens.end()) {
        spec.tokens.push_back(token);
      }
    }
  }
  spec.merges = std::move(merges);
  spec.split = qw::SplitPattern::kNone;
  const qw::Tokenizer tokenizer(spec);
  const auto ids = tokenizer.encode(text, {.invalid_utf8 = qw::InvalidUtf8::kReplace});
  for (const int32_t id : ids) {
    if (!tokenizer.has_token(id)) std::abort();
  }
}

template <typename Action>
void attempt(Action&& action) {
  try {
    action();
  } catch (const qw::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  attempt([&] { encode_with(qw::read_merges_txt(bytes, "fuzz"), bytes); });
  attempt([&] { qw::read_vocab_json(bytes, "fuzz"); });
  attempt([&] { qw::read_tiktoken(bytes, "fuzz"); });
  return 0;
}
