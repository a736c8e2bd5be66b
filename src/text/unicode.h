// The Unicode knowledge of the Qwen tokenizer: \p{L}, \p{N}, \s and NFC, of the right age.
//
// Level 3 (text). The reference tokenizer has its character classes from Unicode 14 and its
// normalisation data from Unicode 9. ICU is newer, but knows the age of every character, so both
// can be reproduced exactly: a character younger than the table counts as unassigned.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qw {

/// Classes of the pre-tokenizer's regular expressions; they exclude one another.
enum class CharClass : uint8_t {
  kOther,    // [^\s\p{L}\p{N}]
  kLetter,   // \p{L}
  kNumber,   // \p{N}
  kSpace,    // \s but for the two below
  kNewline,  // \r and \n
};

/// A character of valid UTF-8 and the number of its bytes.
struct Char {
  uint32_t code_point;
  uint32_t length;
};

/// Decodes the character at `p`. The text must be valid UTF-8: nothing is checked.
inline Char decode_valid_utf8(const char* p) noexcept {
  const auto byte = [p](int i) { return static_cast<uint32_t>(static_cast<unsigned char>(p[i])); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F),
          4};
}

/// Properties of every code point in a two-stage table (64 KiB or so, built once from ICU).
class CharTable {
 public:
  static const CharTable& get();

  CharClass class_of(uint32_t code_point) const noexcept {
    return static_cast<CharClass>(entry(code_point) & kClassMask);
  }
  /// True where NFC may change something: the character has a combining class, or could be
  /// composed with its predecessor, or is never found in NFC. False makes a safe place to cut.
  bool needs_nfc_check(uint32_t code_point) const noexcept {
    return (entry(code_point) & kNfcFlag) != 0;
  }

 private:
  CharTable();
  uint8_t entry(uint32_t code_point) const noexcept {
    return blocks_[static_cast<size_t>(block_of_[code_point >> 8]) << 8 | (code_point & 0xFF)];
  }
  static constexpr uint8_t kClassMask = 0x07;
  static constexpr uint8_t kNfcFlag = 0x80;

  std::array<uint16_t, 0x1100> block_of_;
  std::vector<uint8_t> blocks_;
};

/// Canonical composition (NFC) with the data of Unicode 9. `text` must be valid UTF-8.
/// Returns false, leaving `out` alone, when the text is normalised already; true when `out` holds
/// the result. Time O(n log n) in the longest run of combining marks, linear otherwise.
/// Source: Unicode Standard Annex 15; mappings from ICU.
bool normalize_nfc(std::string_view text, std::string& out);

/// True for \w of the reference's added-token rule: letters, marks, decimal digits, connectors.
bool is_word_character(uint32_t code_point) noexcept;

}  // namespace qw
