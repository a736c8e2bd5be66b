// The methods of Python's str (the table behind find_string_method in methods.h).
//
// Level 3 (text). Source: CPython's documentation of str. What only makes sense with bytes or
// tables (encode, translate, maketrans, format_map) exists and refuses to be called.
#include <algorithm>
#include <array>

#include "text/jinja/format.h"
#include "text/jinja/methods.h"
#include "text/jinja/operators.h"
#include "text/jinja/search.h"
#include "text/jinja/unicode.h"

namespace qw::jinja {
namespace {

const MarkedText& string_arg(std::string_view function, const Value& value) {
  if (value.is_undefined()) fail_undefined(value);
  if (!value.is_string()) {
    python_error("{}() argument must be str, not {}", function, type_name(value));
  }
  return value.as_text();
}

Int int_arg(std::string_view function, const Value* value, Int otherwise) {
  if (value == nullptr || value->is_none()) return otherwise;
  if (value->is_undefined()) fail_undefined(*value);
  const auto i = value->as_int();
  if (!i) python_error("{}() argument must be an integer, not {}", function, type_name(*value));
  return *i;
}

// ---- strip, case

template <Side side>
Value strip_method(Runtime&, const Value& self, const Args& args) {
  const auto bound = args.bind("strip", {"chars"});
  const bool given = bound[0] != nullptr && !bound[0]->is_none();
  const std::string* chars = given ? &string_arg("strip", *bound[0]).str() : nullptr;
  return Value(strip(self.as_text(), chars, side));
}

template <std::string (*transform)(std::string_view)>
Value case_method(Runtime& runtime, const Value& self, const Args& args) {
  args.bind("case", {});
  runtime.budget().make_bytes(self.as_text().size());
  return Value(self.as_text().derived(transform(self.as_str())));
}

template <bool (*predicate)(std::string_view)>
Value whole_predicate(Runtime&, const Value& self, const Args& args) {
  args.bind("predicate", {});
  return Value(predicate(self.as_str()));
}

template <bool (*predicate)(uint32_t)>
Value char_predicate(Runtime&, const Value& self, const Args& args) {
  args.bind("predicate", {});
  return Value(all_chars(self.as_str(), predicate));
}

bool is_ascii_text(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

bool is_title_text(std::string_view text) {
  return (to_lower(text) != to_upper(text)) && to_title(text) == text;
}

bool is_printable_text(std::string_view text) {
  return text.empty() || all_chars(text, is_printable);
}

bool is_identifier(std::string_view text) {
  if (text.empty() || is_digit(static_cast<unsigned char>(text[0]))) return false;
  return all_chars(text, [](uint32_t c) { return c == '_' || is_alnum(c); });
}

// ---- splitting

template <bool from_right>
Value split_method(Runtime& runtime, const Value& self, const Args& args) {
  const auto bound = args.bind("split", {"sep", "maxsplit"});
  const bool given = bound[0] != nullptr && !bound[0]->is_none();
  const std::string* separator = given ? &string_arg("split", *bound[0]).str() : nullptr;
  const Int max_splits = int_arg("split", bound[1], -1);
  return Value::list(split(runtime, self.as_text(), separator, max_splits, from_right));
}

Value splitlines(Runtime& runtime, const Value& self, const Args& args) {
  const auto bound = args.bind("splitlines", {"keepends"});
  return Value::list(
      split_lines(runtime, self.as_text(), bound[0] != nullptr && truthy(*bound[0])));
}

template <bool from_right>
Value partition(Runtime&, const Value& self, const Args& args) {
  const auto bound = args.bind("partition", 1, {"sep"});
  const std::string& separator = string_arg("partition", *bound[0]).str();
  if (separator.empty()) python_error("empty separator");
  const MarkedText& text = self.as_text();
  const size_t at =
      from_right ? find_last(text.str(), separator) : find_first(text.str(), separator);
  if (at == std::string::npos) {
    const Value none = Value(MarkedText());
    return from_right ? Value::tuple({none, none, self}) : Value::tuple({self, none, none});
  }
  const size_t after = at + separator.size();
  return Value::tuple({Value(text.slice(0, at)), Value(text.slice(at, after)),
                       Value(text.slice(after, text.size()))});
}

// ---- searching

/// The bytes that self[start:end] covers, as find, count and startswith use them.
struct Window {
  size_t begin, end;
  size_t first_char;
  bool valid;
};

Window window_of(const std::string& text, const Value* start, const Value* stop) {
  if (start == nullptr && stop == nullptr) return {0, text.size(), 0, true};
  const auto chars = static_cast<Int>(count_chars(text));
  const auto clip = [&](Int bound) {
    return std::clamp<Int>(bound < 0 ? bound + chars : bound, 0, chars);
  };
  const Int raw_start = int_arg("find", start, 0);
  const Int from = clip(raw_start);
  const Int to = clip(int_arg("find", stop, chars));
  return {byte_of_char(text, static_cast<size_t>(from)),
          byte_of_char(text, static_cast<size_t>(to)), static_cast<size_t>(from),
          raw_start <= chars && from <= to};
}

template <bool from_right, bool must_exist>
Value find_method_body(Runtime& runtime, const Value& self, const Args& args) {
  const auto bound = args.bind("find", 1, {"sub", "start", "end"});
  const std::string& sub = string_arg("find", *bound[0]).str();
  const Window window = window_of(self.as_str(), bound[1], bound[2]);
  runtime.budget().step(1 + self.as_text().size() / 64);
  if (window.valid) {
    const std::string_view text =
        std::string_view(self.as_str()).substr(window.begin, window.end - window.begin);
    const size_t at = from_right ? find_last(text, sub) : find_first(text, sub);
    if (at != std::string_view::npos) {
      return Value::of_size(window.first_char + count_chars(text.substr(0, at)));
    }
  }
  if (must_exist) python_error("substring not found");
  return Value(Int{-1});
}

Value count(Runtime& runtime, const Value& self, const Args& args) {
  const auto bound = args.bind("count", 1, {"sub", "start", "end"});
  const std::string& sub = string_arg("count", *bound[0]).str();
  const Window window = window_of(self.as_str(), bound[1], bound[2]);
  runtime.budget().step(1 + self.as_text().size() / 64);
  if (!window.valid) return Value(Int{0});
  const std::string_view text =
      std::string_view(self.as_str()).substr(window.begin, window.end - window.begin);
  if (sub.empty()) return Value::of_size(count_chars(text) + 1);
  Int n = 0;
  for (size_t at = find_first(text, sub); at != std::string_view::npos;
       at = find_first(text, sub, at + sub.size())) {
    ++n;
  }
  return Value(n);
}

template <bool at_end>
Value affix_test(Runtime&, const Value& self, const Args& args) {
  constexpr std::string_view kName = at_end ? "endswith" : "startswith";
  const auto bound = args.bind(kName, 1, {"affix", "start", "end"});
  const Window window = window_of(self.as_str(), bound[1], bound[2]);
  if (!window.valid) return Value(false);
  const std::string_view text =
      std::string_view(self.as_str()).substr(window.begin, window.end - window.begin);
  const auto matches = [&](const Value& affix) {
    const std::string& s = string_arg(kName, affix).str();
    return at_end ? text.ends_with(s) : text.starts_with(s);
  };
  const Value& affix = *bound[0];
  if (affix.is_list() && affix.as_list().kind != List::Kind::kList) {
    const auto& items = affix.as_list().items;
    return Value(std::any_of(items.begin(), items.end(), matches));
  }
  return Value(matches(affix));
}

template <bool at_end>
Value remove_affix(Runtime&, const Value& self, const Args& args) {
  const auto bound = args.bind("removeprefix", 1, {"affix"});
  const std::string& affix = string_arg("removeprefix", *bound[0]).str();
  const MarkedText& text = self.as_text();
  if (at_end && text.str().ends_with(affix))
    return Value(text.slice(0, text.size() - affix.size()));
  if (!at_end && text.str().starts_with(affix)) return Value(text.slice(affix.size(), text.size()));
  return self;
}

// ---- building

Value replace_method(Runtime& runtime, const Value& self, const Args& args) {
  const auto bound = args.bind("replace", 2, {"old", "new", "count"});
  return Value(replace(runtime, self.as_text(), string_arg("replace", *bound[0]),
                       string_arg("replace", *bound[1]), int_arg("replace", bound[2], -1)));
}

Value join_method(Runtime& runtime, const Value& self, const Args& args) {
  const auto bound = args.bind("join", 1, {"iterable"});
  return Value(join(runtime, self.as_text(), iterate(runtime, *bound[0]), /*any_type=*/false));
}

Value format_method(Runtime& runtime, const Value& self, const Args& args) {
  return Value(brace_format(runtime, self.as_text(), args));
}

/// align: '<' ljust, '>' rjust, '^' center.
template <char align>
Value justify(Runtime& runtime, const Value& self, const Args& args) {
  const auto bound = args.bind("justify", 1, {"width", "fillchar"});
  const MarkedText& text = self.as_text();
  const MarkedText fill = bound[1] != nullptr ? string_arg("justify", *bound[1]) : MarkedText(" ");
  if (count_chars(fill.str()) != 1)
    python_error("The fill character must be exactly one character long");
  const Int room = int_arg("justify", bound[0], 0) - static_cast<Int>(count_chars(text.str()));
  if (room <= 0) return self;
  if (room > static_cast<Int>(MarkedText::kMaxBytes)) {
    raise(TemplateErrorKind::kLimit, "a string would be padded past {} bytes",
          MarkedText::kMaxBytes);
  }
  const auto n = static_cast<size_t>(room);
  runtime.budget().make_bytes(n * fill.size());
  // CPython's center puts the odd one left when the width is odd.
  size_t left = align == '<' ? 0 : n;
  if (align == '^') left = n / 2 + (n & (n + count_chars(text.str())) & 1);
  MarkedText out;
  for (size_t i = 0; i < left; ++i)
    out.append(fill);
  out.append(text);
  for (size_t i = left; i < n; ++i)
    out.append(fill);
  return Value(std::move(out));
}

Value zfill(Runtime& runtime, const Value& self, const Args& args) {
  const auto bound = args.bind("zfill", 1, {"width"});
  const MarkedText& text = self.as_text();
  const bool sign = text.str().starts_with('-') || text.str().starts_with('+');
  const Value digits(text.slice(sign ? 1 : 0, text.size()));
  Args padding;
  padding.positional = {Value(int_arg("zfill", bound[0], 0) - Int{sign}), Value::text("0")};
  const Value padded = justify<'>'>(runtime, digits, padding);
  MarkedText out = text.slice(0, sign ? 1 : 0);
  out.append(padded.as_text());
  return Value(std::move(out));
}

Value expandtabs(Runtime& runtime, const Value& self, const Args& args) {
  const auto bound = args.bind("expandtabs", {"tabsize"});
  const auto size =
      static_cast<size_t>(std::clamp<Int>(int_arg("expandtabs", bound[0], 8), 0, 4096));
  const MarkedText& text = self.as_text();
  MarkedText out;
  size_t column = 0;
  for (size_t at = 0, length = 0; at < text.size(); at += length) {
    const uint32_t c = code_point_at(text.str(), at, &length);
    if (c == '\t') {
      const size_t spaces = size == 0 ? 0 : size - column % size;
      runtime.budget().make_bytes(spaces);
      out.append(std::string(spaces, ' '));
      column += spaces;
    } else {
      out.append_slice(text, at, at + length);
      column = c == '\n' || c == '\r' ? 0 : column + 1;
    }
  }
  return Value(std::move(out));
}

Value not_supported(Runtime&, const Value&, const Args&) {
  python_error("this method of str (encode, translate, maketrans, format_map) is not supported");
}

struct Entry {
  std::string_view name;
  StringMethod body;
};

constexpr std::array kMethods{
    Entry{"strip", strip_method<Side::kBoth>},
    Entry{"lstrip", strip_method<Side::kLeft>},
    Entry{"rstrip", strip_method<Side::kRight>},
    Entry{"upper", case_method<to_upper>},
    Entry{"lower", case_method<to_lower>},
    Entry{"casefold", case_method<to_lower>},
    Entry{"title", case_method<to_title>},
    Entry{"capitalize", case_method<capitalize>},
    Entry{"swapcase", case_method<swap_case>},
    Entry{"islower", whole_predicate<is_lower>},
    Entry{"isupper", whole_predicate<is_upper>},
    Entry{"istitle", whole_predicate<is_title_text>},
    Entry{"isascii", whole_predicate<is_ascii_text>},
    Entry{"isprintable", whole_predicate<is_printable_text>},
    Entry{"isidentifier", whole_predicate<is_identifier>},
    Entry{"isalpha", char_predicate<is_alpha>},
    Entry{"isdigit", char_predicate<is_digit>},
    Entry{"isdecimal", char_predicate<is_decimal>},
    Entry{"isnumeric", char_predicate<is_numeric>},
    Entry{"isalnum", char_predicate<is_alnum>},
    Entry{"isspace",
          [](Runtime&, const Value& self, const Args& args) {
            args.bind("isspace", {});
            return Value(all_chars(self.as_str(), [](uint32_t c) { return is_space(c); }));
          }},
    Entry{"split", split_method<false>},
    Entry{"rsplit", split_method<true>},
    Entry{"splitlines", splitlines},
    Entry{"partition", partition<false>},
    Entry{"rpartition", partition<true>},
    Entry{"find", find_method_body<false, false>},
    Entry{"rfind", find_method_body<true, false>},
    Entry{"index", find_method_body<false, true>},
    Entry{"rindex", find_method_body<true, true>},
    Entry{"count", count},
    Entry{"startswith", affix_test<false>},
    Entry{"endswith", affix_test<true>},
    Entry{"removeprefix", remove_affix<false>},
    Entry{"removesuffix", remove_affix<true>},
    Entry{"replace", replace_method},
    Entry{"join", join_method},
    Entry{"format", format_method},
    Entry{"ljust", justify<'<'>},
    Entry{"rjust", justify<'>'>},
    Entry{"center", justify<'^'>},
    Entry{"zfill", zfill},
    Entry{"expandtabs", expandtabs},
    Entry{"encode", not_supported},
    Entry{"translate", not_supported},
    Entry{"maketrans", not_supported},
    Entry{"format_map", not_supported},
};

}  // namespace

StringMethod find_string_method(std::string_view name) {
  const auto found = std::find_if(kMethods.begin(), kMethods.end(),
                                  [&](const Entry& entry) { return entry.name == name; });
  return found == kMethods.end() ? nullptr : found->body;
}

}  // namespace qw::jinja
