#include "text/jinja/local_time.h"

#include <array>
#include <charconv>
#include <chrono>
#include <ctime>

#include "base/error.h"

namespace qw {
namespace {

constexpr std::array<std::string_view, 7> kDays{"Sunday",   "Monday", "Tuesday", "Wednesday",
                                                "Thursday", "Friday", "Saturday"};
constexpr std::array<std::string_view, 12> kMonths{"January",   "February", "March",    "April",
                                                   "May",       "June",     "July",     "August",
                                                   "September", "October",  "November", "December"};

std::chrono::sys_days days_of(int year, int month, int day) {
  return std::chrono::year(year) / month / day;
}

int weekday_of(const LocalTime& t) {  // 0 is Sunday
  return static_cast<int>(std::chrono::weekday(days_of(t.year, t.month, t.day)).c_encoding());
}

int yearday_of(const LocalTime& t) {  // 0 is 1 January
  return static_cast<int>((days_of(t.year, t.month, t.day) - days_of(t.year, 1, 1)).count());
}

struct IsoWeek {
  int year;
  int week;
};

IsoWeek iso_week(const LocalTime& t) {
  const int monday_based = (weekday_of(t) + 6) % 7;
  const auto thursday = days_of(t.year, t.month, t.day) + std::chrono::days(3 - monday_based);
  const std::chrono::year_month_day date(thursday);
  const int year = static_cast<int>(date.year());
  return {year, static_cast<int>((thursday - days_of(year, 1, 1)).count()) / 7 + 1};
}

std::string padded(long value, int width, char flag, char pad = '0') {
  if (flag == '-') return fmt::format("{}", value);
  if (flag == '_') pad = ' ';
  if (flag == '0') pad = '0';
  std::string digits = fmt::format("{}", value);
  const auto wanted = static_cast<size_t>(width);
  return digits.size() < wanted ? std::string(wanted - digits.size(), pad) + digits : digits;
}

/// Numbers; empty when `directive` is not one of them.
std::string number_field(const LocalTime& t, char directive, char flag) {
  const int hour12 = t.hour % 12 == 0 ? 12 : t.hour % 12;
  switch (directive) {
    case 'd':
      return padded(t.day, 2, flag);
    case 'e':
      return padded(t.day, 2, flag, ' ');
    case 'm':
      return padded(t.month, 2, flag);
    case 'Y':
      return fmt::format("{}", t.year);
    case 'y':
      return padded(t.year % 100, 2, flag);
    case 'C':
      return padded(t.year / 100, 2, flag);
    case 'H':
      return padded(t.hour, 2, flag);
    case 'k':
      return padded(t.hour, 2, flag, ' ');
    case 'I':
      return padded(hour12, 2, flag);
    case 'l':
      return padded(hour12, 2, flag, ' ');
    case 'M':
      return padded(t.minute, 2, flag);
    case 'S':
      return padded(t.second, 2, flag);
    case 'f':
      return padded(t.microsecond, 6, '0');
    case 'j':
      return padded(yearday_of(t) + 1, 3, flag);
    case 'u':
      return fmt::format("{}", weekday_of(t) == 0 ? 7 : weekday_of(t));
    case 'w':
      return fmt::format("{}", weekday_of(t));
    case 'U':
      return padded((yearday_of(t) + 7 - weekday_of(t)) / 7, 2, flag);
    case 'W':
      return padded((yearday_of(t) + 7 - (weekday_of(t) + 6) % 7) / 7, 2, flag);
    case 'V':
      return padded(iso_week(t).week, 2, flag);
    case 'G':
      return fmt::format("{}", iso_week(t).year);
    case 'g':
      return padded(iso_week(t).year % 100, 2, flag);
    default:
      return {};
  }
}

std::string field(const LocalTime& t, char directive, char flag) {
  const auto day = kDays[static_cast<size_t>(weekday_of(t))];
  const auto month = kMonths[static_cast<size_t>(t.month - 1)];
  switch (directive) {
    case 'a':
      return std::string(day.substr(0, 3));
    case 'A':
      return std::string(day);
    case 'b':
    case 'h':
      return std::string(month.substr(0, 3));
    case 'B':
      return std::string(month);
    case 'p':
      return t.hour < 12 ? "AM" : "PM";
    case 'P':
      return t.hour < 12 ? "am" : "pm";
    case 'n':
      return "\n";
    case 't':
      return "\t";
    case '%':
      return "%";
    case 'z':
    case 'Z':
      return "";  // a naive time has no zone
    case 'c':
      return format_time(t, "%a %b %e %H:%M:%S %Y");
    case 'D':
    case 'x':
      return format_time(t, "%m/%d/%y");
    case 'F':
      return format_time(t, "%Y-%m-%d");
    case 'T':
    case 'X':
      return format_time(t, "%H:%M:%S");
    case 'R':
      return format_time(t, "%H:%M");
    case 'r':
      return format_time(t, "%I:%M:%S %p");
    default:
      break;
  }
  std::string number = number_field(t, directive, flag);
  if (!number.empty()) return number;
  return flag == '\0' ? std::string{'%', directive} : std::string{'%', flag, directive};
}

}  // namespace

LocalTime LocalTime::now() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  std::tm tm{};
  localtime_r(&seconds, &tm);
  const auto since = std::chrono::duration_cast<std::chrono::microseconds>(now.time_since_epoch());
  return {tm.tm_year + 1900,
          tm.tm_mon + 1,
          tm.tm_mday,
          tm.tm_hour,
          tm.tm_min,
          tm.tm_sec,
          static_cast<int>(since.count() % 1'000'000)};
}

LocalTime LocalTime::parse(std::string_view iso) {
  const auto bad = [&] {
    fail(ErrorKind::kInvalidArgument, "chat_template",
         "now: expected an ISO time like 2024-02-04T08:05:09, got {}", printable(iso));
  };
  size_t at = 0;
  const auto number = [&](size_t digits) {
    int value = 0;
    if (iso.size() < at + digits) bad();
    const char* end = iso.data() + at + digits;
    const auto result = std::from_chars(iso.data() + at, end, value);
    if (result.ec != std::errc() || result.ptr != end || value < 0) bad();
    at += digits;
    return value;
  };
  const auto skip = [&](std::string_view any_of) {
    if (at >= iso.size() || any_of.find(iso[at]) == std::string_view::npos) bad();
    ++at;
  };
  LocalTime t;
  t.year = number(4);
  skip("-");
  t.month = number(2);
  skip("-");
  t.day = number(2);
  if (at < iso.size()) {
    skip("T ");
    t.hour = number(2);
    skip(":");
    t.minute = number(2);
    skip(":");
    t.second = number(2);
  }
  if (at < iso.size()) {
    skip(".");
    const size_t digits = iso.size() - at;
    if (digits == 0 || digits > 6) bad();
    t.microsecond = number(digits);
    for (size_t i = digits; i < 6; ++i)
      t.microsecond *= 10;
  }
  const std::chrono::year_month_day date = std::chrono::year(t.year) / t.month / t.day;
  if (!date.ok() || t.hour > 23 || t.minute > 59 || t.second > 60) bad();
  return t;
}

std::string format_time(const LocalTime& time, std::string_view format) {
  std::string out;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 == format.size()) {
      out += format[i];
      continue;
    }
    char directive = format[++i];
    char flag = '\0';
    if ((directive == '-' || directive == '_' || directive == '0') && i + 1 < format.size()) {
      flag = directive;
      directive = format[++i];
    }
    out += field(time, directive, flag);
  }
  return out;
}

}  // namespace qw
