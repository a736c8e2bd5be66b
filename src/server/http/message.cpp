#include "server/http/message.h"

#include <algorithm>
#include <optional>

namespace qw::http {

namespace {

char lower(char c) noexcept {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

int hex_digit(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  const char small = lower(c);
  return small >= 'a' && small <= 'f' ? small - 'a' + 10 : -1;
}

std::optional<std::string> percent_decode(std::string_view text, bool plus_is_space) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '+' && plus_is_space) {
      out.push_back(' ');
    } else if (text[i] == '%') {
      if (i + 2 >= text.size()) return std::nullopt;
      const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
      if (high < 0 || low < 0 || (high == 0 && low == 0)) return std::nullopt;
      out.push_back(static_cast<char>(high * 16 + low));
      i += 2;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

/// What a target has after scheme and authority, if it has these.
std::string_view without_authority(std::string_view target, std::vector<Header>& headers) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (target.size() < scheme.size() ||
        !equal_ignoring_case(target.substr(0, scheme.size()), scheme))
      continue;
    const std::string_view rest = target.substr(scheme.size());
    const size_t end = std::min(rest.find_first_of("/?"), rest.size());
    std::erase_if(headers, [](const Header& h) { return equal_ignoring_case(h.name, "host"); });
    headers.push_back({"Host", std::string(rest.substr(0, end))});
    return rest.substr(end);
  }
  return target;
}

}  // namespace

bool equal_ignoring_case(std::string_view a, std::string_view b) noexcept {
  return std::ranges::equal(a, b, {}, lower, lower);
}

const std::string* Request::header(std::string_view name) const {
  const auto it = std::ranges::find_if(
      headers, [name](const Header& h) { return equal_ignoring_case(h.name, name); });
  return it == headers.end() ? nullptr : &it->value;
}

const std::string* Request::parameter(std::string_view name) const {
  const auto it = std::ranges::find_if(query, [name](const auto& p) { return p.first == name; });
  return it == query.end() ? nullptr : &it->second;
}

bool split_target(std::string_view target, Request& request) {
  target = target.substr(0, target.find('#'));
  target = without_authority(target, request.headers);
  const size_t question = target.find('?');
  const auto path = percent_decode(target.substr(0, question), false);
  if (!path) return false;
  request.path = path->empty() ? "/" : *path;
  request.query.clear();
  if (question == std::string_view::npos) return true;
  std::string_view rest = target.substr(question + 1);
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('&'), rest.size());
    const std::string_view pair = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (pair.empty()) continue;
    const size_t equals = std::min(pair.find('='), pair.size());
    const auto name = percent_decode(pair.substr(0, equals), true);
    const auto value = percent_decode(pair.substr(std::min(equals + 1, pair.size())), true);
    if (!name || !value) return false;
    request.query.emplace_back(*name, *value);
  }
  return true;
}

}  // namespace qw::http
