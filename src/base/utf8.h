// One UTF-8 decoder for the whole project: strict, with Python's notion of a maximal subpart.
//
// Level 0 (base). Source: Unicode 15, section 3.9, table 3-7 and "U+FFFD substitution of maximal
// subparts", which is what Python's errors="replace" does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace qw {

/// One step of decoding. valid: `length` bytes form `code_point`. Not valid: the first `length`
/// bytes (1..3) are the maximal subpart that one U+FFFD replaces; `truncated` says that they are
/// a proper prefix of some character and the text ended there, so more bytes could mend it.
struct Utf8Step {
  uint32_t code_point = 0xFFFD;
  size_t length = 0;
  bool valid = false;
  bool truncated = false;
};

/// Decodes the first character of `text` (not empty).
Utf8Step decode_utf8(std::string_view text) noexcept;

/// The number of ASCII bytes at the start of `text`: where they are most of it, passes over it go
/// eight bytes at a time.
inline size_t ascii_prefix(std::string_view text) noexcept {
  size_t i = 0;
  for (uint64_t word = 0; i + sizeof word <= text.size(); i += sizeof word) {
    std::memcpy(&word, text.data() + i, sizeof word);
    if ((word & 0x8080808080808080u) != 0) break;
  }
  while (i < text.size() && static_cast<unsigned char>(text[i]) < 0x80)
    ++i;
  return i;
}

/// Appends the UTF-8 form of `code_point` (at most 0x10FFFF, not a surrogate).
void append_utf8(std::string& out, uint32_t code_point);

/// The offset of the first byte that is not part of a valid character, or npos.
size_t find_invalid_utf8(std::string_view text) noexcept;

/// `text` with every maximal invalid subpart as U+FFFD, as Python's errors="replace".
std::string replace_invalid_utf8(std::string_view text);

}  // namespace qw
