// Finding one text in another in linear time, whatever the two are.
//
// Level 3 (text). std::string's find and rfind take the product of the lengths on texts such as
// "aaaa...", and both texts come from a template. Sources: the two-way algorithm (Crochemore and
// Perrin, 1991) behind memmem, and the failure function of Knuth, Morris and Pratt (1977).
#pragma once

#include <cstddef>
#include <string_view>

namespace qw::jinja {

/// text.find(wanted, from): the first place from byte `from` on, or npos.
size_t find_first(std::string_view text, std::string_view wanted, size_t from = 0);

/// text.rfind(wanted, last): the last place that is not behind byte `last`, or npos.
size_t find_last(std::string_view text, std::string_view wanted,
                 size_t last = std::string_view::npos);

}  // namespace qw::jinja
