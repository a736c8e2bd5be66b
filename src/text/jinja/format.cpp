#include "text/jinja/format.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/utf8.h"
#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"

namespace qw::jinja {

std::string int_to_string(Int value) {
  return fmt::format("{}", value);
}

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<size_t>(end.ptr - buffer));
  const size_t e = text.find('e');
  int exponent = 0;
  const size_t sign_free = text[e + 1] == '+' ? e + 2 : e + 1;
  std::from_chars(text.data() + sign_free, text.data() + text.size(), exponent);
  const std::string sign = text.front() == '-' ? "-" : "";
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  if (exponent < -4 || exponent >= 16) {
    if (digits.size() > 1) digits.insert(1, 1, '.');
    return fmt::format("{}{}e{}{:02}", sign, digits, exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0)
    return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const auto point = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= point) return sign + digits + std::string(point - digits.size(), '0') + ".0";
  return sign + digits.substr(0, point) + "." + digits.substr(point);
}

// ---- str and repr

namespace {

void append_escaped(std::string& out, uint32_t c, char quote) {
  if (c == '\n')
    out += "\\n";
  else if (c == '\r')
    out += "\\r";
  else if (c == '\t')
    out += "\\t";
  else if (c == '\\')
    out += "\\\\";
  else if (c == static_cast<unsigned char>(quote))
    out += std::string{'\\', quote};
  else if (is_printable(c))
    append_utf8(out, c);
  else if (c < 0x100)
    out += fmt::format("\\x{:02x}", c);
  else if (c < 0x10000)
    out += fmt::format("\\u{:04x}", c);
  else
    out += fmt::format("\\U{:08x}", c);
}

/// The quotes and escapes belong to the string, so the whole of it is content if any of it is.
MarkedText string_repr(const MarkedText& text) {
  const bool single = text.str().find('\'') != std::string::npos;
  const bool has_double = text.str().find('"') != std::string::npos;
  const char quote = single && !has_double ? '"' : '\'';
  std::string out(1, quote);
  for (size_t i = 0, length = 0; i < text.size(); i += length) {
    append_escaped(out, code_point_at(text.str(), i, &length), quote);
  }
  out += quote;
  return text.derived(std::move(out));
}

void append_repr(Runtime& runtime, MarkedText& out, const Value& value);

void append_list_repr(Runtime& runtime, MarkedText& out, const List& list) {
  const bool tuple = list.kind != List::Kind::kList;
  out.append(tuple ? "(" : "[");
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out.append(", ");
    append_repr(runtime, out, list.items[i]);
  }
  if (tuple && list.items.size() == 1) out.append(",");
  out.append(tuple ? ")" : "]");
}

void append_dict_repr(Runtime& runtime, MarkedText& out, const Dict& dict) {
  out.append("{");
  bool first = true;
  for (const auto& [key, value] : dict.entries) {
    if (!first) out.append(", ");
    first = false;
    append_repr(runtime, out, key);
    out.append(": ");
    append_repr(runtime, out, value);
  }
  out.append("}");
}

void append_repr(Runtime& runtime, MarkedText& out, const Value& value) {
  runtime.budget().step();
  const Budget::Level level(runtime.budget());  // a namespace may hold itself, in lists of lists
  if (value.is_undefined()) {
    out.append("Undefined");
  } else if (value.is_none()) {
    out.append("None");
  } else if (value.is_bool()) {
    out.append(value.as_bool() ? "True" : "False");
  } else if (value.is_int()) {
    out.append(int_to_string(*value.as_int()));
  } else if (value.is_float()) {
    out.append(float_repr(*value.as_double()));
  } else if (value.is_string()) {
    runtime.budget().make_bytes(value.as_text().size());
    out.append(string_repr(value.as_text()));
  } else if (value.is_list()) {
    append_list_repr(runtime, out, value.as_list());
  } else if (value.is_dict()) {
    append_dict_repr(runtime, out, value.as_dict());
  } else {
    out.append(value.as_object()->repr(runtime));
  }
}

}  // namespace

MarkedText repr(Runtime& runtime, const Value& value) {
  MarkedText out;
  append_repr(runtime, out, value);
  return out;
}

MarkedText to_text(Runtime& runtime, const Value& value) {
  if (value.is_string()) return value.as_text();
  if (value.is_undefined()) return MarkedText();
  return repr(runtime, value);
}

// ---- JSON

namespace {

class JsonWriter {
 public:
  JsonWriter(Runtime& runtime, const JsonStyle& style) : runtime_(runtime), style_(style) {}

  MarkedText take() { return std::move(out_); }

  void write(const Value& value) {
    runtime_.budget().step();
    if (value.is_none()) {
      out_.append("null");
    } else if (value.is_string()) {
      write_string(value.as_text());
    } else if (value.is_list()) {
      write_list(value.as_list().items);
    } else if (value.is_dict()) {
      write_dict(value.as_dict());
    } else if (value.is_number()) {
      out_.append(number(value));
    } else {
      python_error("Object of type {} is not JSON serializable", type_name(value));
    }
  }

 private:
  static std::string number(const Value& value) {
    if (value.is_bool()) return value.as_bool() ? "true" : "false";
    if (value.is_int()) return int_to_string(*value.as_int());
    const double d = *value.as_double();
    if (std::isnan(d)) return "NaN";
    if (std::isinf(d)) return d > 0 ? "Infinity" : "-Infinity";
    return float_repr(d);
  }

  void write_string(const MarkedText& text) {
    runtime_.budget().make_bytes(text.size());
    std::string out = "\"";
    for (size_t i = 0, length = 0; i < text.size(); i += length) {
      append_char(out, code_point_at(text.str(), i, &length));
    }
    out += '"';
    out_.append(text.derived(std::move(out)));
  }

  void append_char(std::string& out, uint32_t c) const {
    switch (c) {
      case '"':
        out += "\\\"";
        return;
      case '\\':
        out += "\\\\";
        return;
      case '\n':
        out += "\\n";
        return;
      case '\r':
        out += "\\r";
        return;
      case '\t':
        out += "\\t";
        return;
      case '\f':
        out += "\\f";
        return;
      case '\b':
        out += "\\b";
        return;
      default:
        break;
    }
    if (c < 0x20 || (style_.ensure_ascii && c >= 0x7F && c < 0x10000)) {
      if (c == 0x7F)
        out += '\x7F';
      else
        out += fmt::format("\\u{:04x}", c);
    } else if (style_.ensure_ascii && c >= 0x10000) {
      const uint32_t v = c - 0x10000;
      out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (v >> 10), 0xDC00 + (v & 0x3FF));
    } else {
      append_utf8(out, c);
    }
  }

  void new_line() {
    if (!style_.has_indent) return;
    out_.append("\n");
    for (int i = 0; i < level_; ++i)
      out_.append(style_.indent);
    runtime_.budget().make_bytes(static_cast<size_t>(level_) * style_.indent.size());
  }

  void write_list(const std::vector<Value>& items) {
    if (items.empty()) return out_.append("[]");
    out_.append("[");
    ++level_;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_.append(style_.item_separator);
      new_line();
      write(items[i]);
    }
    --level_;
    new_line();
    out_.append("]");
  }

  void write_key(const Value& key) {
    if (key.is_string()) return write_string(key.as_text());
    if (key.is_none()) return out_.append("\"null\"");
    if (key.is_number()) return out_.append(fmt::format("\"{}\"", number(key)));
    python_error("keys must be str, int, float, bool or None, not {}", type_name(key));
  }

  void write_dict(const Dict& dict) {
    if (dict.entries.empty()) return out_.append("{}");
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : dict.entries)
      entries.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto* a, const auto* b) { return less(a->first, b->first); });
    }
    out_.append("{");
    ++level_;
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out_.append(style_.item_separator);
      new_line();
      write_key(entries[i]->first);
      out_.append(style_.key_separator);
      write(entries[i]->second);
    }
    --level_;
    new_line();
    out_.append("}");
  }

  Runtime& runtime_;
  const JsonStyle& style_;
  MarkedText out_;
  int level_ = 0;
};

}  // namespace

MarkedText to_json(Runtime& runtime, const Value& value, const JsonStyle& style) {
  JsonWriter writer(runtime, style);
  writer.write(value);
  return writer.take();
}

}  // namespace qw::jinja
