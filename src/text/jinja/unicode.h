// Code points as Python's str sees them: white space, case, counting.
//
// Level 3 (text). Case mapping is ICU's full mapping in the root locale, which is what Python's
// str.upper, lower and title do; white space is Python's own list (str.isspace).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qw::jinja {

/// Python's str.isspace for one code point.
bool is_space(uint32_t code_point) noexcept;

/// The code point that starts at byte `at`, and its length in bytes. Text must be valid UTF-8.
uint32_t code_point_at(std::string_view text, size_t at, size_t* length) noexcept;

/// The number of code points.
size_t count_chars(std::string_view text) noexcept;
/// Byte offsets of every code point, and text.size() at the end: n + 1 entries.
std::vector<size_t> char_offsets(std::string_view text);
/// Byte offset of code point `index`; text.size() when it is past the end.
size_t byte_of_char(std::string_view text, size_t index) noexcept;

std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
/// Python's str.title: the first cased letter after an uncased character in title case.
std::string to_title(std::string_view text);
/// Python's str.capitalize: the first character in title case, the rest in lower case.
std::string capitalize(std::string_view text);
std::string swap_case(std::string_view text);

/// Python's str.islower, isupper: at least one cased character, and none of the other case.
bool is_lower(std::string_view text);
bool is_upper(std::string_view text);
/// Whether every code point (at least one) satisfies `predicate`.
bool all_chars(std::string_view text, bool (*predicate)(uint32_t));
bool is_alpha(uint32_t code_point);
bool is_digit(uint32_t code_point);
bool is_decimal(uint32_t code_point);
bool is_numeric(uint32_t code_point);
bool is_alnum(uint32_t code_point);
/// Python's repr prints it as it is (else as an escape).
bool is_printable(uint32_t code_point);

}  // namespace qw::jinja
