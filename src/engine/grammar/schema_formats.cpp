#include "engine/grammar/schema_formats.h"

#include <fmt/format.h>

#include <string>
#include <vector>

#include "engine/grammar/regex.h"

namespace qw::grammar {
namespace {

struct Format {
  std::string_view name;
  std::string pattern;
};

/// RFC 3339 full-date with the right number of days in every month of the Gregorian calendar.
constexpr const char* kDate =
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|"
    "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|"
    "(?:[0-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)";
/// RFC 3339 full-time. Leap seconds, which depend on the offset, are left out.
constexpr const char* kTime =
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]+)?"
    "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
/// RFC 3339, appendix A: ISO 8601 durations.
constexpr const char* kDurationTime =
    "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)";
constexpr const char* kDurationDate =
    "(?:[0-9]+D|[0-9]+M(?:[0-9]+D)?|[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?)";
/// RFC 1123. Four labels at most, which keeps names below 254 characters: three of up to 63, or
/// four of up to 62.
constexpr const char* kHostname =
    "(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    "(?:\\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?){0,2}|"
    "[A-Za-z0-9](?:[A-Za-z0-9-]{0,60}[A-Za-z0-9])?"
    "(?:\\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,60}[A-Za-z0-9])?){3})";
/// RFC 5321 with a plain local part: no quotes, no comments, no address literals.
constexpr const char* kLocalPart =
    "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*";
constexpr const char* kIpv4 =
    "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
    "(?:\\.(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}";

/// RFC 4291, section 2.2.
std::string ipv6() {
  const std::string h = "[0-9A-Fa-f]{1,4}";
  const std::string tail = fmt::format("(?:{}:{}|{})", h, h, kIpv4);
  std::string out = fmt::format("(?:{}:){{6}}{}|::(?:{}:){{5}}{}", h, tail, h, tail);
  for (int left = 0; left <= 4; ++left) {  // left + 1 groups before the gap at most
    out += fmt::format("|(?:(?:{}:){{0,{}}}{})?::(?:{}:){{{}}}{}", h, left, h, h, 4 - left, tail);
  }
  return out + fmt::format("|(?:(?:{}:){{0,5}}{})?::{}|(?:(?:{}:){{0,6}}{})?::", h, h, h, h, h);
}

/// RFC 3986, without IP literals.
std::string uri(bool reference) {
  const std::string pchar = "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})";
  const std::string authority =
      "//(?:(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*@)?"
      "(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*(?::[0-9]*)?";
  const std::string segments = fmt::format("(?:/{}*)*", pchar);
  const std::string rootless = fmt::format("{}+{}", pchar, segments);
  const std::string absolute = fmt::format("/(?:{})?", rootless);
  const std::string tail = fmt::format("(?:\\?(?:{}|[/?])*)?(?:#(?:{}|[/?])*)?", pchar, pchar);
  const std::string full = fmt::format("[A-Za-z][A-Za-z0-9+.-]*:(?:{}{}|{}|{}|){}", authority,
                                       segments, absolute, rootless, tail);
  if (!reference) return full;
  return fmt::format("{}|(?:{}{}|{}|(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{{2}})+{}|){}", full,
                     authority, segments, absolute, segments, tail);
}

const std::vector<Format>& formats() {
  static const std::vector<Format> kFormats = {
      {"date", kDate},
      {"time", kTime},
      {"date-time", fmt::format("{}[Tt]{}", kDate, kTime)},
      {"duration",
       fmt::format("P(?:{}(?:{})?|{}|[0-9]+W)", kDurationDate, kDurationTime, kDurationTime)},
      {"uuid", "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"},
      {"email", fmt::format("{}@{}", kLocalPart, kHostname)},
      {"hostname", kHostname},
      {"ipv4", kIpv4},
      {"ipv6", ipv6()},
      {"uri", uri(false)},
      {"uri-reference", uri(true)},
      {"json-pointer", "(?:/(?:[^/~]|~[01])*)*"},
      {"relative-json-pointer", "(?:0|[1-9][0-9]*)(?:#|(?:/(?:[^/~]|~[01])*)*)"},
  };
  return kFormats;
}

}  // namespace

std::optional<Node> string_format(std::string_view name) {
  for (const Format& format : formats()) {
    if (format.name == name) return parse_regex(format.pattern, RegexMatch::kWhole);
  }
  return std::nullopt;
}

std::string_view string_format_names() {
  static const std::string kNames = [] {
    std::string out;
    for (const Format& format : formats())
      out += fmt::format("{}{}", out.empty() ? "" : ", ", format.name);
    return out;
  }();
  return kNames;
}

}  // namespace qw::grammar
