// The methods of Python's str, list, tuple and dict that a template may call.
//
// Level 3 (text). Source: CPython's documentation of the built-in types. Methods that change their
// object are named only to be refused, as the immutable sandbox does.
#pragma once

#include <optional>
#include <string_view>

#include "text/jinja/runtime.h"
#include "text/jinja/value.h"

namespace qw::jinja {

/// Whether the sandbox hides `value.name` because it would change the list or dictionary.
bool is_mutating_method(const Value& value, std::string_view name);

/// The bound method `value.name`, or nothing when the type has no such method.
std::optional<Value> find_method(const Value& value, std::string_view name);

/// The body of a string method by name, or null (string_methods.cpp).
using StringMethod = Value (*)(Runtime&, const Value& self, const Args&);
StringMethod find_string_method(std::string_view name);

/// Python's str.strip and its one-sided forms; `chars` null strips white space.
enum class Side { kBoth, kLeft, kRight };
MarkedText strip(const MarkedText& text, const std::string* chars, Side side);
/// Python's str.split() (by white space) and split(separator); max_splits < 0: no limit.
std::vector<Value> split(Runtime& runtime, const MarkedText& text, const std::string* separator,
                         Int max_splits, bool from_right);
/// Python's str.splitlines.
std::vector<Value> split_lines(Runtime& runtime, const MarkedText& text, bool keep_ends);
/// Python's str.replace; max_count < 0: all.
MarkedText replace(Runtime& runtime, const MarkedText& text, const MarkedText& old,
                   const MarkedText& replacement, Int max_count);
/// separator.join(items): each item a string, or (any_type) anything, by str.
MarkedText join(Runtime& runtime, const MarkedText& separator, const std::vector<Value>& items,
                bool any_type);

}  // namespace qw::jinja
