// GPT-2's byte alphabet: every byte as one printable character, so that vocabularies are text.
//
// Level 3 (text). Printable Latin-1 bytes stand for themselves; the 68 others, in order, are
// U+0100, U+0101, ... (a space is U+0120). Source: the encoder of GPT-2 (Radford et al., 2019).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace qw {

/// The code point that stands for `byte`.
uint32_t byte_level_code_point(uint8_t byte) noexcept;

/// The text form of raw bytes, e.g. " the" -> "\u0120the".
std::string bytes_to_byte_level(std::string_view bytes);

/// The bytes that a token's text stands for; empty when some character is not of the alphabet.
std::optional<std::string> bytes_of_byte_level(std::string_view text);

}  // namespace qw
