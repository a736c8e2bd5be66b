// Fuzz target: encode and decode any bytes with a small vocabulary; what is NFC comes back.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "base/utf8.h"
#include "text/byte_level.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace {

std::shared_ptr<const qw::Tokenizer> make_tokenizer() {
  qw::TokenizerSpec spec;
  for (int byte = 0; byte < 256; ++byte) {
    spec.tokens.push_back(qw::bytes_to_byte_level(std::string(1, static_cast<char>(byte))));
  }
  const auto merge = [&](std::string_view left, std::string_view right) {
    spec.merges.push_back({qw::bytes_to_byte_level(left), qw::bytes_to_byte_level(right)});
    spec.tokens.push_back(spec.merges.back().left + spec.merges.back().right);
  };
  merge(" ", " ");
  merge("  ", "  ");
  merge("a", "a");
  merge("aa", "aa");
  merge("t", "h");
  merge(" ", "th");
  merge(" th", "e");
  merge("\xCC", "\x81");
  merge("\xE4", "\xBD");
  merge("\xE4\xBD", "\xA0");
  const auto id = static_cast<int32_t>(spec.tokens.size());
  spec.normalizer = {qw::NormalizerStep{}};
  spec.added_tokens = {{id, "<|im_start|>", true}, {id + 1, "<|im_end|>", true}, {id + 2, "<a>"}};
  return std::make_shared<const qw::Tokenizer>(spec);
}

void check(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto tokenizer = make_tokenizer();
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::string text = qw::replace_invalid_utf8(bytes);
  std::string normal;
  if (!qw::normalize_nfc(text, normal)) normal = text;
  std::string again;
  check(!qw::normalize_nfc(normal, again) || again == normal);

  for (const bool parse_special : {true, false}) {
    const auto ids = tokenizer->encode(
        bytes, {.parse_special = parse_special, .invalid_utf8 = qw::InvalidUtf8::kReplace});
    const std::string back = tokenizer->decode(ids);
    // Marks behind an added token are normalised apart from it.
    if (text.find('>') == std::string::npos) check(back == normal);
    qw::Detokenizer stream(tokenizer);
    std::string streamed;
    for (const int32_t id : ids)
      streamed += stream.push(id);
    check(streamed + stream.flush() == back);
  }
  const qw::ByteRange all{0, text.size()};
  for (const int32_t id : tokenizer->encode(text, {.plain_ranges = {&all, 1}})) {
    check(!tokenizer->is_special(id));
  }
  return 0;
}
