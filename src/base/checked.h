// Arithmetic on sizes that come from files: every product and sum is checked.
//
// Level 0 (base). A size product on foreign bytes must go through these, so that an overflowing
// header becomes a clear Error{kCorrupt} and never a short buffer.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/error.h"

namespace qw {

namespace detail {
inline std::string in_brackets(std::string_view where) {
  return where.empty() ? std::string() : fmt::format(" ({})", printable(where, 4096));
}
}  // namespace detail

/// a * b, or Error{kCorrupt} that names `what` (a field, a tensor) and `where` it stands (a file, a
/// command-line flag); both are made printable here. Operands must not be negative.
template <typename T>
T checked_mul(T a, T b, std::string_view what, std::string_view where = {}) {
  static_assert(std::is_integral_v<T>);
  T out{};
  if (a < T{0} || b < T{0} || __builtin_mul_overflow(a, b, &out)) {
    fail(ErrorKind::kCorrupt, "size", "{}: expected a product of 0 to {}, got {} * {}{}",
         printable(what), std::numeric_limits<T>::max(), a, b, detail::in_brackets(where));
  }
  return out;
}

/// a + b, or Error{kCorrupt} as above. Operands must not be negative.
template <typename T>
T checked_add(T a, T b, std::string_view what, std::string_view where = {}) {
  static_assert(std::is_integral_v<T>);
  T out{};
  if (a < T{0} || b < T{0} || __builtin_add_overflow(a, b, &out)) {
    fail(ErrorKind::kCorrupt, "size", "{}: expected a sum of 0 to {}, got {} + {}{}",
         printable(what), std::numeric_limits<T>::max(), a, b, detail::in_brackets(where));
  }
  return out;
}

/// value as type To, or Error{kCorrupt} as above.
template <typename To, typename From>
To checked_cast(From value, std::string_view what, std::string_view where = {}) {
  const To out = static_cast<To>(value);
  if (static_cast<From>(out) != value || ((out < To{}) != (value < From{}))) {
    fail(ErrorKind::kCorrupt, "size", "{}: expected {} to {}, got {}{}", printable(what),
         std::numeric_limits<To>::min(), std::numeric_limits<To>::max(), value,
         detail::in_brackets(where));
  }
  return out;
}

template <typename T>
constexpr T ceil_div(T a, T b) noexcept {
  return (a + b - 1) / b;
}
template <typename T>
constexpr T round_up(T a, T b) noexcept {
  return ceil_div(a, b) * b;
}

}  // namespace qw
