// A wall-clock time and Python's strftime on it, in the C locale.
//
// Level 3 (text). Own code because std::strftime follows the process's locale, and a prompt must
// not. Source: the directives of Python's datetime.strftime over glibc.
#pragma once

#include <string>
#include <string_view>

namespace qw {

struct LocalTime {
  int year = 1970;
  int month = 1;  // 1..12
  int day = 1;    // 1..31
  int hour = 0;
  int minute = 0;
  int second = 0;
  int microsecond = 0;

  /// The local time now.
  static LocalTime now();
  /// Parses ISO 8601 as `2024-02-04`, `2024-02-04T08:05:09` or with fractions of a second.
  /// Errors: invalid_argument.
  static LocalTime parse(std::string_view iso);
};

/// Python's `time.strftime(format)`. An unknown directive is written as it stands.
std::string format_time(const LocalTime& time, std::string_view format);

}  // namespace qw
