// Strip, split, replace and join on marked text (declared in methods.h).
//
// Level 3 (text). All of them cut and glue slices, so the marks of content stay exact.
#include <algorithm>

#include "text/jinja/format.h"
#include "text/jinja/methods.h"
#include "text/jinja/operators.h"
#include "text/jinja/search.h"
#include "text/jinja/unicode.h"

namespace qw::jinja {
namespace {

bool in_set(uint32_t c, const std::string* chars) {
  if (chars == nullptr) return is_space(c);
  for (size_t i = 0, length = 0; i < chars->size(); i += length) {
    if (code_point_at(*chars, i, &length) == c) return true;
  }
  return false;
}

size_t previous_char(std::string_view text, size_t end) {
  do {
    --end;
  } while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  return end;
}

std::vector<Value> split_space_left(const MarkedText& text, Int max_splits) {
  std::vector<Value> out;
  const std::string& s = text.str();
  size_t at = 0;
  size_t length = 0;
  const auto skip = [&](bool space) {
    while (at < s.size() && is_space(code_point_at(s, at, &length)) == space)
      at += length;
  };
  for (skip(true); at < s.size(); skip(true)) {
    const size_t begin = at;
    if (max_splits >= 0 && static_cast<Int>(out.size()) >= max_splits) {
      out.emplace_back(text.slice(begin, s.size()));
      return out;
    }
    skip(false);
    out.emplace_back(text.slice(begin, at));
  }
  return out;
}

std::vector<Value> split_space_right(const MarkedText& text, Int max_splits) {
  std::vector<Value> out;
  const std::string& s = text.str();
  size_t at = s.size();
  size_t length = 0;
  const auto skip = [&](bool space) {
    while (at > 0 && is_space(code_point_at(s, previous_char(s, at), &length)) == space) {
      at = previous_char(s, at);
    }
  };
  for (skip(true); at > 0; skip(true)) {
    const size_t end = at;
    if (static_cast<Int>(out.size()) >= max_splits) {
      out.emplace_back(text.slice(0, end));
      break;
    }
    skip(false);
    out.emplace_back(text.slice(at, end));
  }
  return {out.rbegin(), out.rend()};
}

}  // namespace

MarkedText strip(const MarkedText& text, const std::string* chars, Side side) {
  const std::string& s = text.str();
  size_t begin = 0;
  size_t end = s.size();
  size_t length = 0;
  if (side != Side::kRight) {
    while (begin < end && in_set(code_point_at(s, begin, &length), chars))
      begin += length;
  }
  if (side != Side::kLeft) {
    while (end > begin) {
      const size_t last = previous_char(s, end);
      if (!in_set(code_point_at(s, last, &length), chars)) break;
      end = last;
    }
  }
  return text.slice(begin, end);
}

std::vector<Value> split(Runtime& runtime, const MarkedText& text, const std::string* separator,
                         Int max_splits, bool from_right) {
  runtime.budget().make_bytes(text.size());
  std::vector<Value> out;
  if (separator == nullptr) {
    out = from_right && max_splits >= 0 ? split_space_right(text, max_splits)
                                        : split_space_left(text, max_splits);
  } else if (separator->empty()) {
    python_error("empty separator");
  } else if (from_right && max_splits >= 0) {
    size_t end = text.size();
    for (Int n = 0; n < max_splits && end >= separator->size(); ++n) {
      const size_t found = find_last(text.str(), *separator, end - separator->size());
      if (found == std::string::npos) break;
      out.emplace_back(text.slice(found + separator->size(), end));
      end = found;
    }
    out.emplace_back(text.slice(0, end));
    out = std::vector<Value>(out.rbegin(), out.rend());
  } else {
    size_t begin = 0;
    for (Int n = 0; max_splits < 0 || n < max_splits; ++n) {
      const size_t found = find_first(text.str(), *separator, begin);
      if (found == std::string::npos) break;
      out.emplace_back(text.slice(begin, found));
      begin = found + separator->size();
    }
    out.emplace_back(text.slice(begin, text.size()));
  }
  runtime.budget().make_items(4 * out.size());
  return out;
}

std::vector<Value> split_lines(Runtime& runtime, const MarkedText& text, bool keep_ends) {
  const auto is_break = [](uint32_t c) {
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
  };
  runtime.budget().make_bytes(text.size());
  std::vector<Value> out;
  const std::string& s = text.str();
  size_t begin = 0;
  for (size_t at = 0, length = 0; at < s.size(); at += length) {
    const uint32_t c = code_point_at(s, at, &length);
    if (!is_break(c)) continue;
    if (c == '\r' && at + 1 < s.size() && s[at + 1] == '\n') length = 2;
    out.emplace_back(text.slice(begin, keep_ends ? at + length : at));
    begin = at + length;
  }
  if (begin < s.size()) out.emplace_back(text.slice(begin, s.size()));
  runtime.budget().make_items(4 * out.size());
  return out;
}

MarkedText replace(Runtime& runtime, const MarkedText& text, const MarkedText& old,
                   const MarkedText& replacement, Int max_count) {
  MarkedText out;
  const std::string& s = text.str();
  runtime.budget().make_bytes(s.size());
  size_t at = 0;
  const auto put = [&] {
    runtime.budget().step();
    runtime.budget().make_bytes(replacement.size());
    out.append(replacement);
  };
  if (old.empty()) {  // before every character and at the end
    size_t length = 0;
    Int n = 0;
    for (; at < s.size(); at += length, ++n) {
      if (max_count < 0 || n < max_count) put();
      code_point_at(s, at, &length);
      out.append_slice(text, at, at + length);
    }
    if (max_count < 0 || n < max_count) put();
    return out;
  }
  for (Int n = 0; max_count < 0 || n < max_count; ++n) {
    const size_t found = find_first(s, old.str(), at);
    if (found == std::string::npos) break;
    out.append_slice(text, at, found);
    put();
    at = found + old.size();
  }
  out.append_slice(text, at, s.size());
  return out;
}

MarkedText join(Runtime& runtime, const MarkedText& separator, const std::vector<Value>& items,
                bool any_type) {
  MarkedText out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!any_type && !items[i].is_string()) {
      python_error("sequence item {}: expected str instance, {} found", i, type_name(items[i]));
    }
    if (i > 0) out.append(separator);
    runtime.budget().step();
    const size_t before = out.size();
    out.append(items[i].is_string() ? items[i].as_text() : to_text(runtime, items[i]));
    runtime.budget().make_bytes(out.size() - before + separator.size());
  }
  return out;
}

}  // namespace qw::jinja
