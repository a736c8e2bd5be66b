#include "text/jinja/search.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace qw::jinja {

size_t find_first(std::string_view text, std::string_view wanted, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (wanted.empty()) return from;
  const auto* found = static_cast<const char*>(
      memmem(text.data() + from, text.size() - from, wanted.data(), wanted.size()));
  return found == nullptr ? std::string_view::npos : static_cast<size_t>(found - text.data());
}

size_t find_last(std::string_view text, std::string_view wanted, size_t last) {
  constexpr size_t kShort = 16;  // the naive search is at its best, and its worst is small
  const size_t n = wanted.size();
  if (n <= kShort || n > text.size()) return text.rfind(wanted, last);
  const auto letter = [&](size_t i) { return wanted[n - 1 - i]; };  // of `wanted` read backwards
  std::vector<uint32_t> border(n, 0);  // longest proper border of its first i + 1 letters
  for (size_t i = 1, length = 0; i < n; ++i) {
    while (length > 0 && letter(i) != letter(length))
      length = border[length - 1];
    if (letter(i) == letter(length)) ++length;
    border[i] = static_cast<uint32_t>(length);
  }
  size_t length = 0;
  for (size_t at = std::min(last, text.size() - n) + n; at-- > 0;) {
    while (length > 0 && text[at] != letter(length))
      length = border[length - 1];
    if (text[at] == letter(length)) ++length;
    if (length == n) return at;
  }
  return std::string_view::npos;
}

}  // namespace qw::jinja
