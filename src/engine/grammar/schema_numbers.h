// Numbers between bounds, digit by digit.
//
// Level 6 (engine/grammar).
#pragma once

#include <optional>
#include <string>

#include "engine/grammar/expression.h"

namespace qw::grammar {

/// A bound of a number: `digits` of its absolute value without leading zeros, "0" at least, and
/// `fraction` without trailing ones.
struct Decimal {
  bool negative = false;
  std::string digits = "0", fraction;
  bool is_zero() const { return digits == "0" && fraction.empty(); }
};
/// From a JSON number's shortest text, an exponent included. Errors: unsupported (more than 400
/// digits).
Decimal parse_decimal(const std::string& text);
/// < 0, 0, > 0
int compare(const Decimal& a, const Decimal& b);

struct NumberBounds {
  std::optional<Decimal> min, max;
  bool min_excluded = false, max_excluded = false;
  bool empty(bool integers) const;
};

/// JSON's integers within `bounds`, without fraction and exponent; never "-0".
Node integer_node(const NumberBounds& bounds);
/// JSON's numbers. Between bounds they are written without exponent.
Node number_node(const NumberBounds& bounds);

}  // namespace qw::grammar
