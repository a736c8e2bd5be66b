#include "engine/grammar/schema_numbers.h"

#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "engine/grammar/language.h"

namespace qw::grammar {
namespace {

constexpr size_t kMaxDigits = 400;

Node digit_range(char first, char last) {
  return first > last ? never()
                      : chars({{static_cast<uint32_t>(first), static_cast<uint32_t>(last)}});
}
Node digit() {
  return digit_range('0', '9');
}
Node any_digits() {
  return any_number_of(digit());
}
/// An integer without leading zeros.
Node natural() {
  return alternation({literal("0"), sequence({digit_range('1', '9'), any_digits()})});
}

/// Digits of the same length between `low` and `high`, both of that length.
Node same_length(std::string_view low, std::string_view high) {
  if (low.empty()) return nothing();
  const auto n = static_cast<uint32_t>(low.size());
  if (low.find_first_not_of('0') == std::string_view::npos &&
      high.find_first_not_of('9') == std::string_view::npos) {
    return repeat(digit(), n, n);
  }
  const std::string_view low_rest = low.substr(1), high_rest = high.substr(1);
  if (low[0] == high[0])
    return sequence({literal(low.substr(0, 1)), same_length(low_rest, high_rest)});
  const std::string nines(n - 1, '9'), zeros(n - 1, '0');
  return alternation({
      sequence({literal(low.substr(0, 1)), same_length(low_rest, nines)}),
      sequence({digit_range(static_cast<char>(low[0] + 1), static_cast<char>(high[0] - 1)),
                repeat(digit(), n - 1, n - 1)}),
      sequence({literal(high.substr(0, 1)), same_length(zeros, high_rest)}),
  });
}

bool less(const std::string& a, const std::string& b) {
  return a.size() != b.size() ? a.size() < b.size() : a < b;
}

/// Natural numbers between low and high.
Node natural_range(const std::string& low, const std::optional<std::string>& high) {
  if (high && less(*high, low)) return never();
  std::vector<Node> out;
  const size_t last = high ? high->size() : low.size();
  for (size_t n = low.size(); n <= last; ++n) {
    std::string from = low;
    if (n > low.size()) {
      from.assign(n, '0');
      from[0] = '1';
    }
    const std::string to = high && n == high->size() ? *high : std::string(n, '9');
    out.push_back(same_length(from, to));
  }
  if (!high) {
    out.push_back(
        sequence({digit_range('1', '9'), repeat(digit(), static_cast<uint32_t>(low.size()))}));
  }
  return alternation(std::move(out));
}

std::string plus_one(std::string digits) {
  for (size_t i = digits.size(); i-- > 0;) {
    if (digits[i] != '9') return ++digits[i], digits;
    digits[i] = '0';
  }
  digits.insert(digits.begin(), '1');
  return digits;
}

std::string minus_one(std::string digits) {
  for (size_t i = digits.size(); i-- > 0;) {
    if (digits[i] != '0') {
      --digits[i];
      break;
    }
    digits[i] = '9';
  }
  const size_t first = digits.find_first_not_of('0');
  return first == std::string::npos ? "0" : digits.substr(first);
}

/// The part of the bounds for one sign, in absolute values.
struct Magnitudes {
  Decimal low;
  std::optional<Decimal> high;
  bool low_excluded = false, high_excluded = false;
};

/// Magnitudes of the numbers that are not negative (or negative) within bounds; nullopt: none.
std::optional<Magnitudes> magnitudes(const NumberBounds& bounds, bool negative) {
  const auto& near = negative ? bounds.max : bounds.min;
  const auto& far = negative ? bounds.min : bounds.max;
  Magnitudes out;
  if (near && (near->negative == negative || near->is_zero())) {
    out.low = *near;
    out.low_excluded = negative ? bounds.max_excluded : bounds.min_excluded;
  }  // a bound on the other side of zero leaves everything here
  if (far) {
    if (far->negative != negative && !far->is_zero()) return std::nullopt;
    out.high = *far;
    out.high_excluded = negative ? bounds.min_excluded : bounds.max_excluded;
  }
  return out;
}

/// Natural numbers of these magnitudes.
Node integers_of(const Magnitudes& m, bool without_zero) {
  std::string low = m.low.digits;
  if (!m.low.fraction.empty() || m.low_excluded) low = plus_one(low);
  if (without_zero && low == "0") low = "1";
  std::optional<std::string> high;
  if (m.high) {
    high = m.high->digits;
    if (m.high->fraction.empty() && m.high_excluded) {
      if (*high == "0") return never();
      high = minus_one(*high);
    }
  }
  return natural_range(low, high);
}

Node fraction(Node digits) {
  return sequence({literal("."), std::move(digits)});
}
Node any_fraction() {
  return optional(fraction(repeat(digit(), 1)));
}
Node zeros() {
  return any_number_of(literal("0"));
}

/// What may follow an integer part that equals the bound's.
Node fraction_at_least(const std::string& bound, bool excluded) {
  if (bound.empty()) {
    if (!excluded) return any_fraction();
    return fraction(sequence({zeros(), digit_range('1', '9'), any_digits()}));
  }
  Node out = excluded ? sequence({zeros(), digit_range('1', '9'), any_digits()}) : any_digits();
  for (size_t i = bound.size(); i-- > 0;) {
    out = alternation({sequence({digit_range(static_cast<char>(bound[i] + 1), '9'), any_digits()}),
                       sequence({digit_range(bound[i], bound[i]), std::move(out)})});
  }
  return fraction(std::move(out));
}

Node fraction_at_most(const std::string& bound, bool excluded) {
  Node out = excluded ? never() : zeros();
  if (bound.empty()) return excluded ? never() : optional(fraction(repeat(literal("0"), 1)));
  for (size_t i = bound.size(); i-- > 0;) {
    const Node less = sequence({digit_range('0', static_cast<char>(bound[i] - 1)), any_digits()});
    const Node equal = sequence({digit_range(bound[i], bound[i]), std::move(out)});
    out = alternation({less, equal});
    // The text may end here, as what is left of the bound is more than nothing.
    if (i > 0) out = alternation({std::move(out), nothing()});
  }
  return optional(fraction(std::move(out)));
}

Node numbers_of(const Magnitudes& m) {
  const Node at_least = alternation(
      {sequence({natural_range(plus_one(m.low.digits), std::nullopt), any_fraction()}),
       sequence({literal(m.low.digits), fraction_at_least(m.low.fraction, m.low_excluded)})});
  if (!m.high) return at_least;
  std::vector<Node> at_most{
      sequence({literal(m.high->digits), fraction_at_most(m.high->fraction, m.high_excluded)})};
  if (m.high->digits != "0") {
    at_most.push_back(sequence({natural_range("0", minus_one(m.high->digits)), any_fraction()}));
  }
  return Language::of(at_least).both(Language::of(alternation(std::move(at_most)))).node();
}

}  // namespace

Decimal parse_decimal(const std::string& text) {
  Decimal out;
  size_t at = 0;
  if (text[at] == '-') {
    out.negative = true;
    ++at;
  }
  const size_t e = text.find_first_of("eE");
  const std::string mantissa = text.substr(at, e == std::string::npos ? e : e - at);
  const long exponent = e == std::string::npos ? 0 : std::strtol(text.c_str() + e + 1, nullptr, 10);
  const size_t point = mantissa.find('.');
  std::string digits = mantissa.substr(0, point);
  std::string rest = point == std::string::npos ? "" : mantissa.substr(point + 1);
  if (std::abs(exponent) > static_cast<long>(kMaxDigits)) {
    fail(ErrorKind::kUnsupported, "json schema", "bound: expected at most {} digits, got {}",
         kMaxDigits, printable(text));
  }
  for (long i = 0; i < exponent; ++i) {
    digits += rest.empty() ? '0' : rest[0];
    if (!rest.empty()) rest.erase(0, 1);
  }
  for (long i = 0; i > exponent; --i) {
    rest.insert(rest.begin(), digits.empty() ? '0' : digits.back());
    if (!digits.empty()) digits.pop_back();
  }
  digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size()));
  rest.erase(rest.find_last_not_of('0') + 1);
  out.digits = digits.empty() ? "0" : digits;
  out.fraction = rest;
  if (out.is_zero()) out.negative = false;
  return out;
}

int compare(const Decimal& a, const Decimal& b) {
  if (a.negative != b.negative) return a.negative ? -1 : 1;
  int order = 0;
  if (a.digits != b.digits) {
    order = less(a.digits, b.digits) ? -1 : 1;
  } else if (a.fraction != b.fraction) {  // no trailing zeros: as texts
    order = a.fraction < b.fraction ? -1 : 1;
  }
  return a.negative ? -order : order;
}

bool NumberBounds::empty(bool integers) const {
  return is_never(integers ? integer_node(*this) : number_node(*this));
}

Node integer_node(const NumberBounds& bounds) {
  if (!bounds.min && !bounds.max)
    return alternation({natural(), sequence({literal("-"), digit_range('1', '9'), any_digits()})});
  std::vector<Node> out;
  if (const auto m = magnitudes(bounds, true))
    out.push_back(sequence({literal("-"), integers_of(*m, true)}));
  if (const auto m = magnitudes(bounds, false)) out.push_back(integers_of(*m, false));
  return alternation(std::move(out));
}

Node number_node(const NumberBounds& bounds) {
  if (!bounds.min && !bounds.max) {
    // Exponents that keep a number within the range of doubles.
    const Node exponent =
        alternation({repeat(digit(), 1, 2), sequence({digit_range('1', '2'), digit(), digit()})});
    return sequence({optional(literal("-")), natural(), any_fraction(),
                     optional(sequence({chars({{'e', 'e'}, {'E', 'E'}}),
                                        optional(chars({{'+', '+'}, {'-', '-'}})), exponent}))});
  }
  std::vector<Node> out;
  if (const auto m = magnitudes(bounds, true))
    out.push_back(sequence({literal("-"), numbers_of(*m)}));
  if (const auto m = magnitudes(bounds, false)) out.push_back(numbers_of(*m));
  return alternation(std::move(out));
}

}  // namespace qw::grammar
