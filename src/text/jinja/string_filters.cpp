// Filters on text and numbers.
//
// Level 3 (text). Source: Jinja 3.1's built-in filters; `tojson` as Transformers replaces it.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "text/jinja/builtins.h"
#include "text/jinja/format.h"
#include "text/jinja/methods.h"
#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"

namespace qw::jinja {
namespace {

Int int_option(const Value* value, Int otherwise) {
  if (value == nullptr) return otherwise;
  if (value->is_undefined()) fail_undefined(*value);
  const auto i = value->as_int();
  if (!i) python_error("'{}' object cannot be interpreted as an integer", type_name(*value));
  return *i;
}

bool flag(const Value* value, bool otherwise) {
  return value == nullptr ? otherwise : truthy(*value);
}

template <std::string (*transform)(std::string_view)>
Value case_filter(Runtime& runtime, const Value& value, const Args& args) {
  args.bind("filter", {});
  const MarkedText text = to_text(runtime, value);
  return Value(text.derived(transform(text.str())));
}

/// Jinja's title: words begin after white space and any of -({[<, unlike str.title.
std::string jinja_title(std::string_view text) {
  std::string out;
  bool begins = true;
  size_t start = 0;
  const auto flush = [&](size_t end) {
    out += to_lower(text.substr(start, end - start));
    start = end;
  };
  for (size_t i = 0, length = 0; i < text.size(); i += length) {
    const uint32_t c = code_point_at(text, i, &length);
    if (is_space(c) || (c < 0x80 && std::string_view("-({[<").find(static_cast<char>(c)) !=
                                        std::string_view::npos)) {
      begins = true;
    } else if (begins) {
      begins = false;
      flush(i);
      out += to_upper(text.substr(i, length));
      start = i + length;
    }
  }
  flush(text.size());
  return out;
}

Value trim(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("trim", {"chars"});
  const bool given = bound[0] != nullptr && !bound[0]->is_none();
  if (given && !bound[0]->is_string()) python_error("strip arg must be None or str");
  return Value(strip(to_text(runtime, value), given ? &bound[0]->as_str() : nullptr, Side::kBoth));
}

Value string(Runtime& runtime, const Value& value, const Args& args) {
  args.bind("string", {});
  return Value(to_text(runtime, value));
}

Value replace_filter(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("replace", 2, {"old", "new", "count"});
  const bool limited = bound[2] != nullptr && !bound[2]->is_none();
  return Value(replace(runtime, to_text(runtime, value), to_text(runtime, *bound[0]),
                       to_text(runtime, *bound[1]), limited ? int_option(bound[2], -1) : -1));
}

Value escape(Runtime& runtime, const Value& value, const Args& args) {
  args.bind("escape", {});
  const MarkedText text = to_text(runtime, value);
  MarkedText out;
  size_t done = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    constexpr std::string_view kSpecial = "&<>\"'";
    constexpr std::string_view kEntities[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
    const size_t which = kSpecial.find(text.str()[i]);
    if (which == std::string_view::npos) continue;
    out.append_slice(text, done, i);
    out.append(kEntities[which], text.has_content());
    done = i + 1;
  }
  out.append_slice(text, done, text.size());
  return Value(std::move(out));
}

Value indent(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("indent", {"width", "first", "blank"});
  MarkedText indentation;
  if (bound[0] != nullptr && bound[0]->is_string()) {
    indentation = bound[0]->as_text();
  } else {
    const Int width = std::max<Int>(int_option(bound[0], 4), 0);
    if (width > 100'000) raise(TemplateErrorKind::kLimit, "indent: a width over 100000");
    indentation = MarkedText(std::string(static_cast<size_t>(width), ' '));
  }
  const bool blank = flag(bound[2], false);
  if (value.is_undefined()) fail_undefined(value);
  if (!value.is_string()) {
    python_error("unsupported operand type(s) for +=: '{}' and 'str'", type_name(value));
  }
  MarkedText text = value.as_text();
  text.append("\n", text.has_content());  // as Jinja does, so that a last line break is a line more
  MarkedText out;
  if (flag(bound[1], false)) out.append(indentation);
  bool first = true;
  for (const Value& line : split_lines(runtime, text, false)) {
    if (!first) out.append("\n", text.has_content());
    if (!first && (blank || !line.as_text().empty())) {
      runtime.budget().make_bytes(indentation.size());
      out.append(indentation);
    }
    out.append(line.as_text());
    first = false;
  }
  return Value(std::move(out));
}

Value center(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("center", {"width"});
  Args width;
  width.positional = {bound[0] != nullptr ? *bound[0] : Value(Int{80})};
  return find_string_method("center")(runtime, Value(to_text(runtime, value)), width);
}

Value format_filter(Runtime& runtime, const Value& value, const Args& args) {
  if (!args.positional.empty() && !args.named.empty()) {
    python_error("can't handle positional and keyword arguments at the same time");
  }
  if (!args.named.empty()) {
    Dict dict;
    for (const auto& [key, v] : args.named)
      dict.set(Value::text(key), v);
    return Value(percent_format(runtime, to_text(runtime, value), make_dict(std::move(dict))));
  }
  return Value(percent_format(runtime, to_text(runtime, value), Value::tuple(args.positional)));
}

Value truncate(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("truncate", {"length", "killwords", "end", "leeway"});
  const MarkedText text = to_text(runtime, value);
  const Int length = int_option(bound[0], 255);
  const MarkedText end = bound[2] != nullptr ? to_text(runtime, *bound[2]) : MarkedText("...");
  const Int leeway = int_option(bound[3], 5);
  const auto end_chars = static_cast<Int>(count_chars(end.str()));
  if (length < end_chars) python_error("expected length >= {}, got {}", end_chars, length);
  if (leeway < 0) python_error("expected leeway >= 0, got {}", leeway);
  if (static_cast<Int>(count_chars(text.str())) <= length + leeway) return Value(text);
  size_t cut = byte_of_char(text.str(), static_cast<size_t>(length - end_chars));
  if (!flag(bound[1], false)) {
    const size_t space = text.str().substr(0, cut).rfind(' ');
    if (space != std::string::npos) cut = space;
  }
  MarkedText out = text.slice(0, cut);
  out.append(end);
  return Value(std::move(out));
}

Value wordcount(Runtime& runtime, const Value& value, const Args& args) {
  args.bind("wordcount", {});
  const MarkedText text = to_text(runtime, value);
  Int words = 0;
  bool inside = false;
  for (size_t i = 0, length = 0; i < text.size(); i += length) {
    const uint32_t c = code_point_at(text.str(), i, &length);
    const bool word = c == '_' || is_alnum(c);
    words += word && !inside;
    inside = word;
  }
  return Value(words);
}

Value striptags(Runtime& runtime, const Value& value, const Args& args) {
  args.bind("striptags", {});
  const MarkedText text = to_text(runtime, value);
  MarkedText bare;
  size_t at = 0;
  while (at < text.size()) {
    const size_t open = std::min(text.str().find('<', at), text.size());
    bare.append_slice(text, at, open);
    if (open == text.size()) break;
    const bool comment = text.str().compare(open, 4, "<!--") == 0;
    const size_t close = text.str().find(comment ? "-->" : ">", open + (comment ? 4 : 1));
    if (close == std::string::npos) {
      bare.append_slice(text, open, text.size());
      break;
    }
    at = close + (comment ? 3 : 1);
  }
  const std::vector<Value> words = split(runtime, bare, nullptr, -1, false);
  return Value(join(runtime, MarkedText(" "), words, true));
}

Value urlencode(Runtime& runtime, const Value& value, const Args& args) {
  args.bind("urlencode", {});
  const auto quote = [&](const MarkedText& text, bool query) {
    std::string out;
    for (const char c : text.str()) {
      const auto byte = static_cast<unsigned char>(c);
      const bool plain = std::isalnum(byte) != 0 || c == '_' || c == '.' || c == '-' || c == '~' ||
                         (c == '/' && !query);
      if (plain && byte < 0x80)
        out += c;
      else if (query && c == ' ')
        out += '+';
      else
        out += fmt::format("%{:02X}", byte);
    }
    return text.derived(std::move(out));
  };
  if (value.is_string() || (!value.is_dict() && !is_iterable(runtime, value))) {
    return Value(quote(to_text(runtime, value), false));
  }
  MarkedText out;
  const auto add = [&](const Value& key, const Value& item) {
    if (!out.empty()) out.append("&");
    out.append(quote(to_text(runtime, key), true));
    out.append("=");
    out.append(quote(to_text(runtime, item), true));
  };
  if (value.is_dict()) {
    for (const auto& [key, item] : value.as_dict().entries)
      add(key, item);
  } else {
    for (const Value& pair : iterate(runtime, value)) {
      const auto parts = iterate(runtime, pair);
      if (parts.size() != 2) python_error("not enough values to unpack (expected 2)");
      add(parts[0], parts[1]);
    }
  }
  return Value(std::move(out));
}

// ---- numbers

/// Python's float(text): white space around, "inf", "nan", underscores between digits.
std::optional<double> parse_float(const std::string& raw) {
  std::string text = strip(MarkedText(raw), nullptr, Side::kBoth).str();
  text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
  const std::string lower = to_lower(text);
  if (lower.find('x') != std::string::npos || lower.find('p') != std::string::npos)
    return std::nullopt;
  const char* begin = text.c_str() + (text.starts_with('+') ? 1 : 0);
  if (*begin == '\0' || (begin != text.c_str() && (*begin == '-' || *begin == '+')))
    return std::nullopt;
  double value = 0.0;
  const char* end = text.c_str() + text.size();
  const auto result = std::from_chars(begin, end, value);
  if (result.ptr != end) return std::nullopt;
  if (result.ec == std::errc::result_out_of_range) {
    const bool tiny = lower.find("e-") != std::string::npos;
    value = tiny ? 0.0 : HUGE_VAL;
    return *begin == '-' ? -value : value;
  }
  return result.ec == std::errc() ? std::optional<double>(value) : std::nullopt;
}

/// Python's int(text, base); nothing when it is not one or too wide.
std::optional<Int> parse_int(const std::string& raw, Int base) {
  std::string text = to_lower(strip(MarkedText(raw), nullptr, Side::kBoth).str());
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.erase(0, 1);
  const std::string prefix = base == 16 ? "0x" : base == 8 ? "0o" : base == 2 ? "0b" : "";
  if (!prefix.empty() && text.starts_with(prefix)) text.erase(0, 2);
  Int value = 0;
  char before = '_';
  for (const char c : text) {
    const bool digit = c >= '0' && c <= '9';
    const Int d = digit ? c - '0' : c >= 'a' && c <= 'z' ? c - 'a' + 10 : 99;
    const bool joint = c == '_' && before != '_';
    if (!joint && d >= base) return std::nullopt;
    if (!joint &&
        (__builtin_mul_overflow(value, base, &value) || __builtin_add_overflow(value, d, &value))) {
      return std::nullopt;
    }
    before = c;
  }
  if (before == '_') return std::nullopt;  // empty, or ends with an underscore
  return negative ? -value : value;
}

std::optional<Int> truncated(std::optional<double> d) {
  if (!d || !std::isfinite(*d)) return std::nullopt;
  if (std::fabs(*d) >= 1e38) python_error("an integer grew past 128 bits");
  return static_cast<Int>(*d);
}

Value to_int(Runtime&, const Value& value, const Args& args) {
  const auto bound = args.bind("int", {"default", "base"});
  if (value.is_undefined()) fail_undefined(value);
  std::optional<Int> result = value.as_int();
  if (value.is_float()) result = truncated(value.as_double());
  if (value.is_string()) {
    const Int base = std::clamp<Int>(int_option(bound[1], 10), 2, 36);
    result = parse_int(value.as_str(), base);
    if (!result) result = truncated(parse_float(value.as_str()));
  }
  if (result) return Value(*result);
  return bound[0] != nullptr ? *bound[0] : Value(Int{0});
}

Value to_float(Runtime&, const Value& value, const Args& args) {
  const auto bound = args.bind("float", {"default"});
  if (value.is_undefined()) fail_undefined(value);
  const auto result = value.is_string() ? parse_float(value.as_str()) : value.as_double();
  if (result) return Value(*result);
  return bound[0] != nullptr ? *bound[0] : Value(0.0);
}

Value absolute(Runtime&, const Value& value, const Args& args) {
  args.bind("abs", {});
  if (!value.is_number()) python_error("bad operand type for abs(): '{}'", type_name(value));
  if (const auto i = value.as_int()) return *i < 0 ? negate(value) : Value(*i);
  return Value(std::fabs(*value.as_double()));
}

Value round_filter(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("round", {"precision", "method"});
  const Int precision = std::clamp<Int>(int_option(bound[0], 0), -300, 300);
  const std::string method = bound[1] != nullptr ? to_text(runtime, *bound[1]).str() : "common";
  if (!value.is_number()) python_error("type {} doesn't define __round__ method", type_name(value));
  const double d = *value.as_double();
  if (method == "ceil" || method == "floor") {
    const double scale = std::pow(10.0, static_cast<double>(precision));
    return Value((method == "ceil" ? std::ceil(d * scale) : std::floor(d * scale)) / scale);
  }
  if (method != "common") python_error("method must be common, ceil or floor");
  if (value.as_int() && precision >= 0) return Value(*value.as_int());
  if (!std::isfinite(d)) return value;
  if (precision < 0) {
    const double scale = std::pow(10.0, static_cast<double>(-precision));
    const double rounded = std::nearbyint(d / scale) * scale;
    if (value.is_float()) return Value(rounded);
    const auto whole = truncated(rounded);
    return Value(whole.value_or(0));
  }
  // The decimal digits are exact, so ties are decided as Python decides them.
  return Value(
      std::strtod(fmt::format("{:.{}f}", d, static_cast<int>(precision)).c_str(), nullptr));
}

Value tojson(Runtime& runtime, const Value& value, const Args& args) {
  const auto bound = args.bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = flag(bound[0], false);
  style.sort_keys = flag(bound[3], false);
  if (bound[1] != nullptr && !bound[1]->is_none()) {
    style.has_indent = true;
    style.item_separator.assign(1, ',');
    if (bound[1]->is_string()) {
      style.indent = bound[1]->as_str();
    } else {
      const Int width = int_option(bound[1], 0);
      if (width > 1000) raise(TemplateErrorKind::kLimit, "tojson: an indent over 1000");
      style.indent = std::string(static_cast<size_t>(std::max<Int>(width, 0)), ' ');
    }
  }
  if (bound[2] != nullptr && !bound[2]->is_none()) {
    const std::vector<Value> pair = iterate(runtime, *bound[2]);
    if (pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string()) {
      python_error("separators must be two strings");
    }
    style.item_separator = pair[0].as_str();
    style.key_separator = pair[1].as_str();
  }
  return Value(to_json(runtime, value, style));
}

}  // namespace

Value wordwrap(Runtime& runtime, const Value& value, const Args& args);
Value filesizeformat(Runtime& runtime, const Value& value, const Args& args);

const std::vector<NamedFilter>& string_filters() {
  static const std::vector<NamedFilter> filters = {
      {"upper", case_filter<to_upper>},
      {"lower", case_filter<to_lower>},
      {"capitalize", case_filter<capitalize>},
      {"title", case_filter<jinja_title>},
      {"trim", trim},
      {"string", string},
      {"safe", string},
      {"replace", replace_filter},
      {"escape", escape},
      {"e", escape},
      {"forceescape", escape},
      {"indent", indent},
      {"center", center},
      {"format", format_filter},
      {"truncate", truncate},
      {"wordcount", wordcount},
      {"wordwrap", wordwrap},
      {"striptags", striptags},
      {"urlencode", urlencode},
      {"filesizeformat", filesizeformat},
      {"int", to_int},
      {"float", to_float},
      {"abs", absolute},
      {"round", round_filter},
      {"tojson", tojson},
  };
  return filters;
}

}  // namespace qw::jinja
