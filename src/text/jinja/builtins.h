// The names a template may use without defining them: filters, tests and global functions.
//
// Level 3 (text). Source: Jinja's built-in filters and tests (3.1) and the additions of
// Transformers' chat templates: tojson, raise_exception, strftime_now.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/runtime.h"
#include "text/jinja/value.h"

namespace qw::jinja {

using Filter = Value (*)(Runtime&, const Value& value, const Args&);
using Test = bool (*)(Runtime&, const Value& value, const Args&);

struct NamedFilter {
  std::string_view name;
  Filter body;
};
struct NamedTest {
  std::string_view name;
  Test body;
};

/// Null when there is none of that name.
Filter find_filter(std::string_view name);
Test find_test(std::string_view name);

/// The two halves of the filter table.
const std::vector<NamedFilter>& string_filters();
const std::vector<NamedFilter>& sequence_filters();

/// range, dict, namespace, joiner, cycler, raise_exception, strftime_now.
const std::vector<std::pair<std::string_view, Value>>& global_functions();

/// Applies a filter by name at run time (map('upper')), charging the budget for the result.
Value apply_filter(Runtime& runtime, std::string_view name, const Value& value, const Args& args);
bool apply_test(Runtime& runtime, std::string_view name, const Value& value, const Args& args);

}  // namespace qw::jinja
