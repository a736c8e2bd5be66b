// The tests of the language: `x is defined`, `x is divisibleby 3`.
//
// Level 3 (text). Source: Jinja 3.1's built-in tests.
#include <algorithm>
#include <array>

#include "text/jinja/builtins.h"
#include "text/jinja/format.h"
#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"

namespace qw::jinja {
namespace {

const Value& operand(const Args& args) {
  return *args.bind("test", 1, {"other"})[0];
}

bool is_equal(Runtime&, const Value& v, const Args& a) {
  return equal(v, operand(a));
}
bool is_not_equal(Runtime&, const Value& v, const Args& a) {
  return !equal(v, operand(a));
}
bool is_less(Runtime&, const Value& v, const Args& a) {
  return compare(v, operand(a), "<") < 0;
}
bool is_at_most(Runtime&, const Value& v, const Args& a) {
  return compare(v, operand(a), "<=") <= 0;
}
bool is_greater(Runtime&, const Value& v, const Args& a) {
  return compare(v, operand(a), ">") > 0;
}
bool is_at_least(Runtime&, const Value& v, const Args& a) {
  return compare(v, operand(a), ">=") >= 0;
}
bool is_in(Runtime& r, const Value& v, const Args& a) {
  return contains(r, operand(a), v);
}

bool divides(Runtime& runtime, const Value& value, const Value& by) {
  return !truthy(binary(runtime, BinaryOp::kMod, value, by));
}

bool is_sequence(Runtime&, const Value& value, const Args&) {
  // Python's test is: has len() and [].
  if (value.is_string() || value.is_list() || value.is_dict() || value.is_undefined()) return true;
  return value.object_as<Range>() != nullptr;
}

bool is_iterable_test(Runtime& runtime, const Value& value, const Args&) {
  return is_iterable(runtime, value);
}

template <bool (*predicate)(std::string_view)>
bool is_cased(Runtime& runtime, const Value& value, const Args&) {
  return predicate(to_text(runtime, value).str());
}

bool names_filter(Runtime&, const Value& v, const Args&) {
  return v.is_string() && find_filter(v.as_str()) != nullptr;
}
bool names_test(Runtime&, const Value& v, const Args&) {
  return v.is_string() && find_test(v.as_str()) != nullptr;
}

constexpr std::array kTests{
    NamedTest{"defined", [](Runtime&, const Value& v, const Args&) { return !v.is_undefined(); }},
    NamedTest{"undefined", [](Runtime&, const Value& v, const Args&) { return v.is_undefined(); }},
    NamedTest{"none", [](Runtime&, const Value& v, const Args&) { return v.is_none(); }},
    NamedTest{"boolean", [](Runtime&, const Value& v, const Args&) { return v.is_bool(); }},
    NamedTest{"true",
              [](Runtime&, const Value& v, const Args&) { return v.is_bool() && v.as_bool(); }},
    NamedTest{"false",
              [](Runtime&, const Value& v, const Args&) { return v.is_bool() && !v.as_bool(); }},
    NamedTest{"integer", [](Runtime&, const Value& v, const Args&) { return v.is_int(); }},
    NamedTest{"float", [](Runtime&, const Value& v, const Args&) { return v.is_float(); }},
    NamedTest{"number", [](Runtime&, const Value& v, const Args&) { return v.is_number(); }},
    NamedTest{"string", [](Runtime&, const Value& v, const Args&) { return v.is_string(); }},
    NamedTest{"mapping", [](Runtime&, const Value& v, const Args&) { return v.is_dict(); }},
    NamedTest{"sequence", is_sequence},
    NamedTest{"iterable", is_iterable_test},
    NamedTest{"callable",
              [](Runtime&, const Value& v,
                 const Args&) {  // An undefined value has a call operator: the one that fails.
                return v.is_undefined() || (v.is_object() && v.as_object()->callable());
              }},
    NamedTest{"sameas",
              [](Runtime&, const Value& v, const Args& a) { return v.same_as(operand(a)); }},
    NamedTest{"escaped", [](Runtime&, const Value&, const Args&) { return false; }},
    NamedTest{"lower", is_cased<is_lower>},
    NamedTest{"upper", is_cased<is_upper>},
    NamedTest{"even",
              [](Runtime& r, const Value& v, const Args&) { return divides(r, v, Value(Int{2})); }},
    NamedTest{"odd", [](Runtime& r, const Value& v,
                        const Args&) { return !divides(r, v, Value(Int{2})); }},
    NamedTest{"divisibleby",
              [](Runtime& r, const Value& v, const Args& a) { return divides(r, v, operand(a)); }},
    NamedTest{"in", is_in},
    NamedTest{"filter", names_filter},
    NamedTest{"test", names_test},
    NamedTest{"eq", is_equal},
    NamedTest{"==", is_equal},
    NamedTest{"equalto", is_equal},
    NamedTest{"ne", is_not_equal},
    NamedTest{"!=", is_not_equal},
    NamedTest{"lt", is_less},
    NamedTest{"<", is_less},
    NamedTest{"lessthan", is_less},
    NamedTest{"le", is_at_most},
    NamedTest{"<=", is_at_most},
    NamedTest{"gt", is_greater},
    NamedTest{">", is_greater},
    NamedTest{"greaterthan", is_greater},
    NamedTest{"ge", is_at_least},
    NamedTest{">=", is_at_least},
};

}  // namespace

Test find_test(std::string_view name) {
  const auto found = std::find_if(kTests.begin(), kTests.end(),
                                  [&](const NamedTest& test) { return test.name == name; });
  return found == kTests.end() ? nullptr : found->body;
}

bool apply_test(Runtime& runtime, std::string_view name, const Value& value, const Args& args) {
  const Test test = find_test(name);
  if (test == nullptr) python_error("No test named '{}' found.", name);
  charge_walk(value);
  return test(runtime, value, args);
}

}  // namespace qw::jinja
