// Python's two ways to fill a format string: `%` and str.format.
//
// Level 3 (text). Source: CPython's "printf-style String Formatting" and "Format Specification
// Mini-Language". Widths and precisions are capped, since they come from a template.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "text/jinja/format.h"
#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"

namespace qw::jinja {
namespace {

constexpr size_t kMaxWidth = 1 << 20;
constexpr int kMaxPrecision = 1000;

struct Spec {
  std::string fill = " ";
  char align = '\0';  // '<' '>' '^' '=' or none
  char sign = '-';
  bool alternate = false;
  char grouping = '\0';
  size_t width = 0;
  int precision = -1;
  char type = '\0';
};

MarkedText pad(const MarkedText& text, const Spec& spec, char default_align, size_t sign_bytes) {
  const size_t chars = count_chars(text.str());
  if (chars >= spec.width) return text;
  const size_t room = spec.width - chars;
  const char align = spec.align != '\0' ? spec.align : default_align;
  size_t left = align == '<' ? 0 : room;
  if (align == '^') left = room / 2;
  MarkedText out;
  const size_t at = align == '=' ? sign_bytes : 0;
  out.append_slice(text, 0, at);
  for (size_t i = 0; i < left; ++i)
    out.append(spec.fill);
  out.append_slice(text, at, text.size());
  for (size_t i = left; i < room; ++i)
    out.append(spec.fill);
  return out;
}

std::string group_digits(const std::string& digits, char separator) {
  if (separator == '\0') return digits;
  const size_t end = std::min(digits.find_first_not_of("0123456789"), digits.size());
  std::string out;
  for (size_t i = 0; i < end; ++i) {
    if (i > 0 && (end - i) % 3 == 0) out += separator;
    out += digits[i];
  }
  return out + digits.substr(end);
}

std::string with_sign(bool negative, const std::string& digits, const Spec& spec) {
  std::string out;
  if (negative) {
    out = "-";
  } else if (spec.sign == '+' || spec.sign == ' ') {
    out = std::string(1, spec.sign);
  }
  return out.append(digits);
}

std::string float_digits(double magnitude, const Spec& spec) {
  const int precision = std::min(spec.precision < 0 ? 6 : spec.precision, kMaxPrecision);
  const char lower = static_cast<char>(spec.type | 0x20);
  if (std::isnan(magnitude) || std::isinf(magnitude)) return std::isnan(magnitude) ? "nan" : "inf";
  if (lower == 'e') return fmt::format("{:.{}e}", magnitude, precision);
  if (lower == 'f') return fmt::format("{:.{}f}", magnitude, precision);
  if (lower == '%') return fmt::format("{:.{}f}%", magnitude * 100.0, precision);
  return fmt::format("{:.{}g}", magnitude, std::max(precision, 1));
}

MarkedText format_float(double value, const Spec& spec) {
  std::string digits;
  if (spec.type == '\0' && spec.precision < 0) {
    digits = float_repr(std::fabs(value));
  } else {
    digits = float_digits(std::fabs(value), spec);
  }
  if (spec.type >= 'A' && spec.type <= 'Z') digits = to_upper(digits);
  const std::string text =
      with_sign(std::signbit(value), group_digits(digits, spec.grouping), spec);
  return pad(MarkedText(text), spec, '>',
             text.size() - digits.size() > 0 && !std::isdigit(text[0]));
}

MarkedText format_int(Int value, const Spec& spec) {
  __extension__ typedef unsigned __int128 Magnitude;
  const Magnitude magnitude =
      value < 0 ? ~static_cast<Magnitude>(value) + 1 : static_cast<Magnitude>(value);
  std::string digits;
  std::string prefix;
  switch (spec.type) {
    case 'x':
      digits = fmt::format("{:x}", magnitude);
      prefix = "0x";
      break;
    case 'X':
      digits = fmt::format("{:X}", magnitude);
      prefix = "0X";
      break;
    case 'o':
      digits = fmt::format("{:o}", magnitude);
      prefix = "0o";
      break;
    case 'b':
      digits = fmt::format("{:b}", magnitude);
      prefix = "0b";
      break;
    default:
      digits = group_digits(fmt::format("{}", magnitude), spec.grouping);
      break;
  }
  if (spec.precision > 0 && digits.size() < static_cast<size_t>(spec.precision)) {
    digits.insert(0, static_cast<size_t>(spec.precision) - digits.size(), '0');
  }
  const std::string text =
      with_sign(value < 0, fmt::format("{}{}", spec.alternate ? prefix : "", digits), spec);
  return pad(MarkedText(text), spec, '>', text.size() - digits.size());
}

MarkedText cut(const MarkedText& text, int precision) {
  if (precision < 0) return text;
  return text.slice(0, byte_of_char(text.str(), static_cast<size_t>(precision)));
}

size_t read_number(std::string_view text, size_t& at) {
  size_t value = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    value = value * 10 + static_cast<size_t>(text[at++] - '0');
    if (value > kMaxWidth) python_error("a width or precision of a format is too large");
  }
  return value;
}

// ---- %

class PercentFormatter {
 public:
  PercentFormatter(Runtime& runtime, const MarkedText& format, const Value& argument)
      : runtime_(runtime), format_(format), text_(format.str()), argument_(argument) {
    is_tuple_ = argument.is_list() && argument.as_list().kind != List::Kind::kList;
  }

  MarkedText run() {
    size_t at = 0;
    while (at < text_.size()) {
      const size_t percent = std::min(text_.find('%', at), text_.size());
      out_.append_slice(format_, at, percent);
      at = percent;
      if (at < text_.size()) at = directive(at + 1);
    }
    const bool mapping = argument_.is_dict() || (argument_.is_list() && !is_tuple_);
    const size_t given = is_tuple_ ? argument_.as_list().items.size() : 1;
    if (used_ < given && !mapping && !used_mapping_) {
      python_error("not all arguments converted during string formatting");
    }
    return std::move(out_);
  }

 private:
  const Value& next() {
    const size_t given = is_tuple_ ? argument_.as_list().items.size() : 1;
    if (used_ >= given) python_error("not enough arguments for format string");
    const size_t i = used_++;
    return is_tuple_ ? argument_.as_list().items[i] : argument_;
  }

  size_t number_or_star(size_t& at) {
    if (at < text_.size() && text_[at] == '*') {
      ++at;
      const auto width = next().as_int();
      if (!width || *width < 0 || *width > static_cast<Int>(kMaxWidth)) python_error("* wants int");
      return static_cast<size_t>(*width);
    }
    return read_number(text_, at);
  }

  size_t directive(size_t at) {
    const Value* keyed = nullptr;
    if (at < text_.size() && text_[at] == '(') {
      const size_t close = text_.find(')', at);
      if (close == std::string_view::npos) python_error("incomplete format key");
      if (!argument_.is_dict()) python_error("format requires a mapping");
      const std::string_view key = text_.substr(at + 1, close - at - 1);
      keyed = argument_.as_dict().find(key);
      if (keyed == nullptr) python_error("KeyError: '{}'", key);
      used_mapping_ = true;
      at = close + 1;
    }
    Spec spec;
    for (; at < text_.size() && std::string_view("-+ #0").find(text_[at]) != std::string_view::npos;
         ++at) {
      if (text_[at] == '-') spec.align = '<';
      if (text_[at] == '+' || (text_[at] == ' ' && spec.sign != '+')) spec.sign = text_[at];
      if (text_[at] == '#') spec.alternate = true;
      if (text_[at] == '0') spec.fill.assign(1, '0');
    }
    if (spec.align == '<') spec.fill.assign(1, ' ');
    spec.width = number_or_star(at);
    if (at < text_.size() && text_[at] == '.') {
      ++at;
      spec.precision = static_cast<int>(number_or_star(at));
    }
    if (at >= text_.size()) python_error("incomplete format");
    spec.type = text_[at];
    if (spec.type == '%') {
      out_.append("%");
    } else {
      convert(keyed != nullptr ? *keyed : next(), spec);
    }
    return at + 1;
  }

  void convert(const Value& value, Spec spec) {
    runtime_.budget().make_bytes(spec.width);
    if (spec.type == 's' || spec.type == 'r' || spec.type == 'a') {
      spec.fill.assign(1, ' ');
      const MarkedText text = spec.type == 's' ? to_text(runtime_, value) : repr(runtime_, value);
      return out_.append(pad(cut(text, spec.precision), spec, '>', 0));
    }
    if (spec.fill == "0" && spec.align == '\0') spec.align = '=';
    if (std::string_view("diuxXo").find(spec.type) != std::string_view::npos) {
      return out_.append(format_int(integer(value, spec.type), spec));
    }
    if (std::string_view("eEfFgG").find(spec.type) != std::string_view::npos) {
      if (value.is_undefined()) fail_undefined(value);
      const auto number = value.as_double();
      if (!number) python_error("must be real number, not {}", type_name(value));
      return out_.append(format_float(*number, spec));
    }
    if (spec.type == 'c' && value.is_string() && count_chars(value.as_str()) == 1) {
      return out_.append(pad(value.as_text(), spec, '>', 0));
    }
    python_error("unsupported format character '{}'", spec.type);
  }

  static Int integer(const Value& value, char type) {
    if (value.is_undefined()) fail_undefined(value);
    if (const auto i = value.as_int()) return *i;
    if (value.is_float() && (type == 'd' || type == 'i' || type == 'u')) {
      const double d = std::trunc(*value.as_double());
      if (std::fabs(d) < 1e38) return static_cast<Int>(d);
    }
    python_error("%{} format: a real number is required, not {}", type, type_name(value));
  }

  Runtime& runtime_;
  const MarkedText& format_;
  std::string_view text_;
  const Value& argument_;
  bool is_tuple_ = false;
  bool used_mapping_ = false;
  size_t used_ = 0;
  MarkedText out_;
};

// ---- str.format

Spec parse_spec(std::string_view text) {
  Spec spec;
  size_t at = 0;
  size_t fill_bytes = 0;
  if (!text.empty()) code_point_at(text, 0, &fill_bytes);
  const auto is_align = [&](size_t i) {
    return i < text.size() && std::string_view("<>^=").find(text[i]) != std::string_view::npos;
  };
  if (fill_bytes > 0 && is_align(fill_bytes)) {
    spec.fill = std::string(text.substr(0, fill_bytes));
    spec.align = text[fill_bytes];
    at = fill_bytes + 1;
  } else if (is_align(0)) {
    spec.align = text[at++];
  }
  if (at < text.size() && (text[at] == '+' || text[at] == '-' || text[at] == ' '))
    spec.sign = text[at++];
  if (at < text.size() && text[at] == '#') spec.alternate = text[at++] == '#';
  if (at < text.size() && text[at] == '0') {
    ++at;
    if (spec.align == '\0') {
      spec.fill.assign(1, '0');
      spec.align = '=';
    }
  }
  spec.width = read_number(text, at);
  if (at < text.size() && (text[at] == ',' || text[at] == '_')) spec.grouping = text[at++];
  if (at < text.size() && text[at] == '.') {
    ++at;
    spec.precision = static_cast<int>(read_number(text, at));
  }
  if (at < text.size()) spec.type = text[at++];
  if (at != text.size()) python_error("Invalid format specifier");
  return spec;
}

/// format(value, spec); `plain`: the specification was empty.
MarkedText format_value(Runtime& runtime, const Value& value, const Spec& spec, bool plain) {
  runtime.budget().make_bytes(spec.width);
  if (!value.is_string() && !value.is_number() && !plain) {
    python_error("unsupported format string passed to {}.__format__", type_name(value));
  }
  if (value.is_string() || value.is_none() || value.is_bool() || !value.is_number()) {
    if (value.is_bool() && spec.type != '\0' && spec.type != 's')
      return format_int(*value.as_int(), spec);
    if (spec.type != '\0' && spec.type != 's') {
      python_error("Unknown format code '{}' for object of type '{}'", spec.type, type_name(value));
    }
    return pad(cut(to_text(runtime, value), spec.precision), spec, '<', 0);
  }
  const bool float_type = std::string_view("eEfFgG%").find(spec.type) != std::string_view::npos;
  if (value.is_int() && (!float_type || spec.type == '\0'))
    return format_int(*value.as_int(), spec);
  return format_float(*value.as_double(), spec);
}

class BraceFormatter {
 public:
  BraceFormatter(Runtime& runtime, const MarkedText& format, const Args& args)
      : runtime_(runtime), format_(format), text_(format.str()), args_(args) {}

  MarkedText run() {
    for (size_t at = 0; at < text_.size();) {
      const size_t brace = std::min(text_.find_first_of("{}", at), text_.size());
      out_.append_slice(format_, at, brace);
      at = brace;
      if (at >= text_.size()) break;
      if (at + 1 < text_.size() && text_[at + 1] == text_[at]) {
        out_.append_slice(format_, at, at + 1);
        at += 2;
      } else if (text_[at] == '}') {
        python_error("Single '}}' encountered in format string");
      } else {
        const size_t close = text_.find('}', at);
        if (close == std::string_view::npos) python_error("expected '}}' before end of string");
        field(text_.substr(at + 1, close - at - 1));
        at = close + 1;
      }
    }
    return std::move(out_);
  }

 private:
  void field(std::string_view text) {
    const size_t colon = std::min(text.find(':'), text.size());
    std::string_view name = text.substr(0, colon);
    const std::string_view spec = colon < text.size() ? text.substr(colon + 1) : "";
    char conversion = '\0';
    if (const size_t bang = name.find('!'); bang != std::string_view::npos) {
      conversion = bang + 1 < name.size() ? name[bang + 1] : '\0';
      name = name.substr(0, bang);
    }
    Value value = lookup(name);
    if (conversion == 'r') value = Value(repr(runtime_, value));
    if (conversion == 's') value = Value(to_text(runtime_, value));
    out_.append(format_value(runtime_, value, parse_spec(spec), spec.empty()));
  }

  Value lookup(std::string_view name) {
    const size_t end = std::min(name.find_first_of(".["), name.size());
    Value value = root(name.substr(0, end));
    for (size_t at = end; at < name.size();) {
      const bool dot = name[at] == '.';
      const size_t stop =
          std::min(dot ? name.find_first_of(".[", at + 1) : name.find(']', at), name.size());
      const std::string_view key = name.substr(at + 1, stop - at - 1);
      value = dot ? get_attribute(runtime_, value, key) : get_item(runtime_, value, index_of(key));
      at = dot ? stop : stop + 1;
    }
    return value;
  }

  static Value index_of(std::string_view key) {
    size_t at = 0;
    const size_t number = read_number(key, at);
    return at == key.size() && at > 0 ? Value::of_size(number) : Value::text(key);
  }

  Value root(std::string_view name) {
    size_t at = 0;
    const size_t number = read_number(name, at);
    if (at == name.size()) {
      const size_t index = name.empty() ? next_++ : number;
      if (index >= args_.positional.size()) {
        python_error("Replacement index {} out of range for positional args tuple", index);
      }
      return args_.positional[index];
    }
    for (const auto& [key, value] : args_.named) {
      if (key == name) return value;
    }
    python_error("KeyError: '{}'", name);
  }

  Runtime& runtime_;
  const MarkedText& format_;
  std::string_view text_;
  const Args& args_;
  size_t next_ = 0;
  MarkedText out_;
};

}  // namespace

MarkedText percent_format(Runtime& runtime, const MarkedText& format, const Value& argument) {
  return PercentFormatter(runtime, format, argument).run();
}

MarkedText brace_format(Runtime& runtime, const MarkedText& format, const Args& args) {
  return BraceFormatter(runtime, format, args).run();
}

}  // namespace qw::jinja
