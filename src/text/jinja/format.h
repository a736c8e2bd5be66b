// Values as text: Python's str and repr, and the tojson of Transformers.
//
// Level 3 (text). Source: CPython's float repr (shortest that reads back), str repr, and
// json.dumps(ensure_ascii=False), which Transformers installs as the filter `tojson`.
#pragma once

#include <string>

#include "text/jinja/runtime.h"
#include "text/jinja/value.h"

namespace qw::jinja {

/// Python's repr of a float: "1e-05", "1e+16", "123456789012345.6", "2.0", "nan".
std::string float_repr(double value);
std::string int_to_string(Int value);

/// Python's str(value), with the marks of what it is made of.
MarkedText to_text(Runtime& runtime, const Value& value);
/// Python's repr(value).
MarkedText repr(Runtime& runtime, const Value& value);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool has_indent = false;
  std::string indent;  // one level of it
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
/// json.dumps(value); a python error for what JSON cannot say.
MarkedText to_json(Runtime& runtime, const Value& value, const JsonStyle& style);

/// `format % argument` (Python's printf-style formatting).
MarkedText percent_format(Runtime& runtime, const MarkedText& format, const Value& argument);
/// format.format(...) with plain fields and format specifications.
MarkedText brace_format(Runtime& runtime, const MarkedText& format, const Args& args);

}  // namespace qw::jinja
