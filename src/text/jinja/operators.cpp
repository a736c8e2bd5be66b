#include "text/jinja/operators.h"

#include <algorithm>
#include <cmath>

#include "text/jinja/format.h"
#include "text/jinja/search.h"
#include "text/jinja/unicode.h"

namespace qw::jinja {

std::string_view type_name(const Value& value) {
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "NoneType";
  if (value.is_bool()) return "bool";
  if (value.is_int()) return "int";
  if (value.is_float()) return "float";
  if (value.is_string()) return "str";
  if (value.is_list()) return value.as_list().kind == List::Kind::kList ? "list" : "tuple";
  if (value.is_dict()) return "dict";
  return value.as_object()->type_name();
}

void fail_undefined(const Value& value) {
  const Undefined& undefined = value.as_undefined();
  throw TemplateError(
      undefined.security ? TemplateErrorKind::kSecurity : TemplateErrorKind::kUndefined,
      *undefined.message, 0);
}

bool truthy(const Value& value) {
  if (const auto number = value.as_double()) return *number != 0.0;
  if (value.is_string()) return !value.as_text().empty();
  if (value.is_list()) return !value.as_list().items.empty();
  if (value.is_dict()) return !value.as_dict().entries.empty();
  if (value.is_object()) return value.as_object()->truthy();
  return false;  // undefined, None
}

// ---- equality and order

namespace {

bool equal_items(const std::vector<Value>& a, const std::vector<Value>& b) {
  if (a.size() != b.size()) return false;
  Budget::charge(a.size());
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), equal);
}

bool equal_dicts(const Dict& a, const Dict& b) {
  if (a.entries.size() != b.entries.size()) return false;
  Budget::charge(a.entries.size());
  return std::all_of(a.entries.begin(), a.entries.end(), [&](const auto& entry) {
    const Value* other = b.find(entry.first);
    return other != nullptr && equal(entry.second, *other);
  });
}

bool is_tuple(const Value& value) {
  return value.is_list() && value.as_list().kind != List::Kind::kList;
}

}  // namespace

bool equal(const Value& a, const Value& b) {
  const auto int_a = a.as_int();
  const auto int_b = b.as_int();
  if (int_a && int_b) return *int_a == *int_b;
  if (a.is_number() && b.is_number()) return *a.as_double() == *b.as_double();
  if (a.is_string() && b.is_string()) {
    if (a.as_text().size() != b.as_text().size()) return false;
    Budget::charge(a.as_text().size() / 64);
    return a.as_str() == b.as_str();
  }
  if (a.is_list() && b.is_list()) {
    return is_tuple(a) == is_tuple(b) && equal_items(a.as_list().items, b.as_list().items);
  }
  if (a.is_dict() && b.is_dict()) return equal_dicts(a.as_dict(), b.as_dict());
  if (a.is_object() && b.is_object()) return a.as_object() == b.as_object();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

int compare(const Value& a, const Value& b, std::string_view op) {
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  const auto sign = [](auto x, auto y) { return x < y ? -1 : (y < x ? 1 : 0); };
  const auto int_a = a.as_int();
  const auto int_b = b.as_int();
  if (int_a && int_b) return sign(*int_a, *int_b);
  if (a.is_number() && b.is_number()) return sign(*a.as_double(), *b.as_double());
  // UTF-8 sorts by bytes as the code points do.
  if (a.is_string() && b.is_string()) {
    Budget::charge(std::min(a.as_text().size(), b.as_text().size()) / 64);
    return sign(a.as_str().compare(b.as_str()), 0);
  }
  if (a.is_list() && b.is_list() && is_tuple(a) == is_tuple(b)) {
    const auto& x = a.as_list().items;
    const auto& y = b.as_list().items;
    Budget::charge(std::min(x.size(), y.size()));
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!equal(x[i], y[i])) return compare(x[i], y[i], op);
    }
    return sign(x.size(), y.size());
  }
  python_error("'{}' not supported between instances of '{}' and '{}'", op, type_name(a),
               type_name(b));
}

bool less(const Value& a, const Value& b) {
  return compare(a, b, "<") < 0;
}

bool contains(Runtime& runtime, const Value& container, const Value& item) {
  if (container.is_string()) {
    if (!item.is_string()) {
      python_error("'in <string>' requires string as left operand, not {}", type_name(item));
    }
    runtime.budget().step(1 + container.as_text().size() / 64);
    return find_first(container.as_str(), item.as_str()) != std::string_view::npos;
  }
  if (container.is_dict()) return container.as_dict().find(item) != nullptr;
  if (container.is_none() || container.is_number()) {
    python_error("argument of type '{}' is not iterable", type_name(container));
  }
  const auto among = [&](const std::vector<Value>& items) {
    runtime.budget().step(items.size());
    return std::any_of(items.begin(), items.end(), [&](const Value& v) { return equal(v, item); });
  };
  if (container.is_list()) return among(container.as_list().items);
  return among(iterate(runtime, container));
}

// ---- arithmetic

namespace {

[[noreturn]] void too_large() {
  python_error("an integer grew past 128 bits");
}

Value power(const Value& a, const Value& b) {
  const auto base = a.as_int();
  const auto exponent = b.as_int();
  if (base && exponent && *exponent >= 0) {
    Int result = 1;
    if (*base == 0 || *base == 1) return Value(*exponent == 0 ? Int{1} : *base);
    if (*base == -1) return Value(*exponent % 2 == 0 ? Int{1} : Int{-1});
    for (Int i = 0; i < *exponent; ++i) {  // at most 127 turns before it overflows
      if (__builtin_mul_overflow(result, *base, &result)) too_large();
    }
    return Value(result);
  }
  const double x = *a.as_double();
  const double y = *b.as_double();
  if (x == 0.0 && y < 0.0) python_error("0.0 cannot be raised to a negative power");
  if (x < 0.0 && y != std::floor(y)) python_error("a negative number to a broken power is complex");
  return Value(std::pow(x, y));
}

Value int_arithmetic(BinaryOp op, Int a, Int b) {
  Int out = 0;
  switch (op) {
    case BinaryOp::kAdd:
      if (__builtin_add_overflow(a, b, &out)) too_large();
      return Value(out);
    case BinaryOp::kSub:
      if (__builtin_sub_overflow(a, b, &out)) too_large();
      return Value(out);
    case BinaryOp::kMul:
      if (__builtin_mul_overflow(a, b, &out)) too_large();
      return Value(out);
    default:
      break;
  }
  if (b == 0) python_error("integer division or modulo by zero");
  if (b == -1) return op == BinaryOp::kMod ? Value(Int{0}) : int_arithmetic(BinaryOp::kSub, 0, a);
  const Int remainder = a % b;
  const bool borrow = remainder != 0 && (remainder < 0) != (b < 0);
  if (op == BinaryOp::kMod) return Value(borrow ? remainder + b : remainder);
  return Value(borrow ? a / b - 1 : a / b);
}

Value float_arithmetic(BinaryOp op, double a, double b) {
  switch (op) {
    case BinaryOp::kAdd:
      return Value(a + b);
    case BinaryOp::kSub:
      return Value(a - b);
    case BinaryOp::kMul:
      return Value(a * b);
    default:
      break;
  }
  if (b == 0.0) python_error("float division by zero");
  if (op == BinaryOp::kDiv) return Value(a / b);
  double remainder = std::fmod(a, b);  // as CPython's float_divmod
  double quotient = (a - remainder) / b;
  if (remainder != 0.0 && (b < 0.0) != (remainder < 0.0)) {
    remainder += b;
    quotient -= 1.0;
  } else if (remainder == 0.0) {
    remainder = std::copysign(0.0, b);
  }
  if (op == BinaryOp::kMod) return Value(remainder);
  double floor = std::floor(quotient);
  if (quotient - floor > 0.5) floor += 1.0;
  return Value(quotient == 0.0 ? std::copysign(0.0, a / b) : floor);
}

Value repeat(Runtime& runtime, const Value& sequence, Int times) {
  const auto count = static_cast<size_t>(std::clamp<Int>(times, 0, Int{1} << 40));
  if (sequence.is_string()) {
    const MarkedText& text = sequence.as_text();
    if (text.empty() || count == 0) return Value(MarkedText());
    if (count > MarkedText::kMaxBytes / text.size()) {
      raise(TemplateErrorKind::kLimit, "a string repeated {} times would be too long", count);
    }
    runtime.budget().make_bytes(count * text.size());
    runtime.budget().step(count / 16);
    MarkedText out;
    for (size_t i = 0; i < count; ++i)
      out.append(text);
    return Value(std::move(out));
  }
  const List& list = sequence.as_list();
  if (!list.items.empty() && count > MarkedText::kMaxBytes / list.items.size()) {
    raise(TemplateErrorKind::kLimit, "a list repeated {} times would be too long", count);
  }
  runtime.budget().make_items(count * list.items.size());
  std::vector<Value> items;
  for (size_t i = 0; i < count && !list.items.empty(); ++i) {
    items.insert(items.end(), list.items.begin(), list.items.end());
  }
  return is_tuple(sequence) ? Value::tuple(std::move(items)) : Value::list(std::move(items));
}

constexpr std::string_view kSymbols[] = {"+", "-", "*", "/", "//", "%", "** or pow()"};

[[noreturn]] void bad_operands(BinaryOp op, const Value& a, const Value& b) {
  if (op == BinaryOp::kAdd && (a.is_string() || a.is_list())) {
    python_error("can only concatenate {0} (not \"{1}\") to {0}", type_name(a), type_name(b));
  }
  python_error("unsupported operand type(s) for {}: '{}' and '{}'",
               kSymbols[static_cast<size_t>(op)], type_name(a), type_name(b));
}

Value concatenate(Runtime& runtime, const Value& a, const Value& b) {
  if (a.is_string() && b.is_string()) {
    runtime.budget().make_bytes(a.as_text().size() + b.as_text().size());
    MarkedText out = a.as_text();
    out.append(b.as_text());
    return Value(std::move(out));
  }
  if (!a.is_list() || !b.is_list() || is_tuple(a) != is_tuple(b))
    bad_operands(BinaryOp::kAdd, a, b);
  runtime.budget().make_items(a.as_list().items.size() + b.as_list().items.size());
  std::vector<Value> items = a.as_list().items;
  items.insert(items.end(), b.as_list().items.begin(), b.as_list().items.end());
  return is_tuple(a) ? Value::tuple(std::move(items)) : Value::list(std::move(items));
}

}  // namespace

Value binary(Runtime& runtime, BinaryOp op, const Value& a, const Value& b) {
  if (a.is_undefined()) fail_undefined(a);
  if (op == BinaryOp::kMod && a.is_string()) return Value(percent_format(runtime, a.as_text(), b));
  if (b.is_undefined()) fail_undefined(b);
  if (a.is_number() && b.is_number()) {
    if (op == BinaryOp::kPow) return power(a, b);
    const auto x = a.as_int();
    const auto y = b.as_int();
    if (x && y && op != BinaryOp::kDiv) return int_arithmetic(op, *x, *y);
    return float_arithmetic(op, *a.as_double(), *b.as_double());
  }
  if (op == BinaryOp::kAdd) return concatenate(runtime, a, b);
  if (op == BinaryOp::kMul) {
    if ((a.is_string() || a.is_list()) && b.as_int()) return repeat(runtime, a, *b.as_int());
    if ((b.is_string() || b.is_list()) && a.as_int()) return repeat(runtime, b, *a.as_int());
  }
  bad_operands(op, a, b);
}

Value negate(const Value& value) {
  if (value.is_undefined()) fail_undefined(value);
  if (const auto i = value.as_int()) return int_arithmetic(BinaryOp::kSub, 0, *i);
  if (value.is_float()) return Value(-*value.as_double());
  python_error("bad operand type for unary -: '{}'", type_name(value));
}

Value plus(const Value& value) {
  if (value.is_undefined()) fail_undefined(value);
  if (const auto i = value.as_int()) return Value(*i);
  if (value.is_float()) return value;
  python_error("bad operand type for unary +: '{}'", type_name(value));
}

}  // namespace qw::jinja
