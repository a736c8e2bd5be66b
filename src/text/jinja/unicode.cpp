#include "text/jinja/unicode.h"

#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include "base/utf8.h"

namespace qw::jinja {
namespace {

std::string utf8_of(const icu::UnicodeString& text) {
  std::string out;
  text.toUTF8String(out);
  return out;
}

icu::UnicodeString icu_of(std::string_view text) {
  return icu::UnicodeString::fromUTF8(
      icu::StringPiece(text.data(), static_cast<int32_t>(text.size())));
}

bool is_ascii(std::string_view text) {
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) return false;
  }
  return true;
}

UChar32 icu_char(uint32_t code_point) {
  return static_cast<UChar32>(code_point);
}

bool is_cased(uint32_t code_point) {
  return u_hasBinaryProperty(icu_char(code_point), UCHAR_CASED) != 0;
}

/// The full title case mapping: a simple one if there is one, else the upper case expansion with
/// what follows its first letter in lower case ("ß" gives "Ss").
std::string title_char(std::string_view ch) {
  size_t length = 0;
  const uint32_t code_point = code_point_at(ch, 0, &length);
  const UChar32 title = u_totitle(icu_char(code_point));
  if (title != icu_char(code_point) || u_istitle(title) != 0) {
    std::string out;
    append_utf8(out, static_cast<uint32_t>(title));
    return out;
  }
  const std::string upper = to_upper(ch);
  size_t first = 0;
  while (first < upper.size() && !is_cased(code_point_at(upper, first, &length)))
    first += length;
  if (first < upper.size()) first += length;
  return upper.substr(0, first) + to_lower(std::string_view(upper).substr(first));
}

}  // namespace

bool is_space(uint32_t c) noexcept {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

uint32_t code_point_at(std::string_view text, size_t at, size_t* length) noexcept {
  const Utf8Step step = decode_utf8(text.substr(at));
  *length = step.length;
  return step.code_point;
}

size_t count_chars(std::string_view text) noexcept {
  size_t n = 0;
  for (const char c : text)
    n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return n;
}

std::vector<size_t> char_offsets(std::string_view text) {
  std::vector<size_t> offsets;
  offsets.reserve(text.size() + 1);
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80) offsets.push_back(i);
  }
  offsets.push_back(text.size());
  return offsets;
}

size_t byte_of_char(std::string_view text, size_t index) noexcept {
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) continue;
    if (index-- == 0) return i;
  }
  return text.size();
}

std::string to_upper(std::string_view text) {
  if (is_ascii(text)) {
    std::string out(text);
    for (char& c : out)
      c = static_cast<char>(c >= 'a' && c <= 'z' ? c - 32 : c);
    return out;
  }
  icu::UnicodeString wide = icu_of(text);
  return utf8_of(wide.toUpper(icu::Locale::getRoot()));
}

std::string to_lower(std::string_view text) {
  if (is_ascii(text)) {
    std::string out(text);
    for (char& c : out)
      c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    return out;
  }
  icu::UnicodeString wide = icu_of(text);
  return utf8_of(wide.toLower(icu::Locale::getRoot()));
}

std::string to_title(std::string_view text) {
  std::string out;
  bool after_cased = false;
  for (size_t i = 0, length = 0; i < text.size(); i += length) {
    const uint32_t c = code_point_at(text, i, &length);
    const std::string_view ch = text.substr(i, length);
    out += after_cased ? to_lower(ch) : title_char(ch);
    after_cased = is_cased(c);
  }
  return out;
}

std::string capitalize(std::string_view text) {
  if (text.empty()) return {};
  size_t length = 0;
  code_point_at(text, 0, &length);
  return title_char(text.substr(0, length)) + to_lower(text.substr(length));
}

std::string swap_case(std::string_view text) {
  std::string out;
  for (size_t i = 0, length = 0; i < text.size(); i += length) {
    const uint32_t c = code_point_at(text, i, &length);
    const std::string_view ch = text.substr(i, length);
    out += u_hasBinaryProperty(icu_char(c), UCHAR_UPPERCASE) != 0 ? to_lower(ch) : to_upper(ch);
  }
  return out;
}

namespace {

bool is_case(std::string_view text, UProperty wanted, UProperty other) {
  bool any = false;
  for (size_t i = 0, length = 0; i < text.size(); i += length) {
    const UChar32 c = icu_char(code_point_at(text, i, &length));
    if (u_hasBinaryProperty(c, other) != 0 || u_istitle(c) != 0) return false;
    any = any || u_hasBinaryProperty(c, wanted) != 0;
  }
  return any;
}

}  // namespace

bool is_lower(std::string_view text) {
  return is_case(text, UCHAR_LOWERCASE, UCHAR_UPPERCASE);
}
bool is_upper(std::string_view text) {
  return is_case(text, UCHAR_UPPERCASE, UCHAR_LOWERCASE);
}

bool all_chars(std::string_view text, bool (*predicate)(uint32_t)) {
  for (size_t i = 0, length = 0; i < text.size(); i += length) {
    if (!predicate(code_point_at(text, i, &length))) return false;
  }
  return !text.empty();
}

bool is_alpha(uint32_t c) {
  return (U_GET_GC_MASK(icu_char(c)) & U_GC_L_MASK) != 0;
}
bool is_decimal(uint32_t c) {
  return u_charType(icu_char(c)) == U_DECIMAL_DIGIT_NUMBER;
}

bool is_digit(uint32_t c) {
  const int32_t type = u_getIntPropertyValue(icu_char(c), UCHAR_NUMERIC_TYPE);
  return type == U_NT_DECIMAL || type == U_NT_DIGIT;
}

bool is_numeric(uint32_t c) {
  return u_getIntPropertyValue(icu_char(c), UCHAR_NUMERIC_TYPE) != U_NT_NONE;
}

bool is_alnum(uint32_t c) {
  return is_alpha(c) || is_numeric(c);
}

bool is_printable(uint32_t c) {
  if (c == 0x20) return true;
  constexpr uint32_t kHidden = U_GC_C_MASK | U_GC_Z_MASK;  // other, separators
  return (U_GET_GC_MASK(icu_char(c)) & kHidden) == 0;
}

}  // namespace qw::jinja
