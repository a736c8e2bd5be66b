// Python's operators on values: truth, equality, order, arithmetic, membership, indexing.
//
// Level 3 (text). Source: The Python Language Reference, chapters 3.3 and 6, and the sandbox rules
// of Jinja's ImmutableSandboxedEnvironment. Every wrong operand is a TemplateError like Python's.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/runtime.h"
#include "text/jinja/value.h"

namespace qw::jinja {

/// Python's type name: "str", "int", "NoneType", ...
std::string_view type_name(const Value& value);
/// Throws the undefined (or security) error that `value` carries.
[[noreturn]] void fail_undefined(const Value& value);

bool truthy(const Value& value);
/// Python's ==. Never fails, except by the budget.
bool equal(const Value& a, const Value& b);
/// Python's a < b; a TypeError where Python has one.
bool less(const Value& a, const Value& b);
/// -1, 0, 1 for what is ordered; used by sorting and the comparison operators. `op` is for
/// messages.
int compare(const Value& a, const Value& b, std::string_view op);
/// `item in container`.
bool contains(Runtime& runtime, const Value& container, const Value& item);

enum class BinaryOp { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };
Value binary(Runtime& runtime, BinaryOp op, const Value& a, const Value& b);
Value negate(const Value& value);
Value plus(const Value& value);

/// Charges the budget for walking over the characters of `value` once, if it is a string.
void charge_walk(const Value& value);

/// len(value), or a python error.
size_t length_of(const Value& value);
/// The items iteration gives (a string's characters, a dictionary's keys); a python error when not
/// iterable.
std::vector<Value> iterate(Runtime& runtime, const Value& value);
bool is_iterable(Runtime& runtime, const Value& value);

/// value.name: the method or field, else the key; undefined if neither.
Value get_attribute(Runtime& runtime, const Value& value, std::string_view name);
/// value[key]: the item, else (for a string key) the attribute; undefined if neither.
Value get_item(Runtime& runtime, const Value& value, const Value& key);
/// value[start:stop:step]; None (or absent) for a bound left out.
Value get_slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop,
                const Value& step);

/// value(args), with the budget charged for the result.
Value call_value(Runtime& runtime, const Value& callee, const Args& args);

}  // namespace qw::jinja
