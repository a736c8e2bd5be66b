// Regular expressions: the part of ECMAScript's and Python's that means a regular language.
//
// Level 6 (engine/grammar). Classes, \d \w \s (ASCII, and white space of Unicode) and their
// opposites, groups, alternatives, quantifiers, `.` (all but line ends), escapes by number,
// \p{...}, ^ and $ at the ends. Refused with their position: look-around, back-references, \b,
// flags, anchors in the middle.
#pragma once

#include <string_view>

#include "engine/grammar/expression.h"

namespace qw::grammar {

enum class RegexMatch {
  kWhole,     // the pattern is the whole text; ^ and $ change nothing
  kAnywhere,  // the text holds the pattern somewhere, as JSON Schema has it
};

/// Errors: invalid_argument (not a pattern), unsupported; with the offset in `pattern`.
Node parse_regex(std::string_view pattern, RegexMatch match);

}  // namespace qw::grammar
