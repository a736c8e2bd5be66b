// The expression half of the interpreter.
//
// Level 3 (text). One overload of eval per node; `evaluate` counts the step and the depth.
#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"

namespace qw::jinja {

Value Interpreter::evaluate(const Expr& expr, const ScopePtr& scope) {
  budget().step();
  const Budget::Level level(budget());
  return std::visit([&](const auto& node) { return eval(node, scope); }, expr.node);
}

Value Interpreter::eval(const Literal& node, const ScopePtr&) {
  return node.value;
}

Value Interpreter::eval(const NameRef& node, const ScopePtr& scope) {
  for (const Scope* s = scope.get(); s != nullptr; s = s->parent.get()) {
    if (const Value* found = s->find(node.name)) return *found;
  }
  for (const auto& [name, value] : variables_) {
    if (name == node.name) return value;
  }
  for (const auto& [name, value] : global_functions()) {
    if (name == node.name) return value;
  }
  return Value::undefined(fmt::format("'{}' is undefined", node.name));
}

Value Interpreter::eval(const Sequence& node, const ScopePtr& scope) {
  budget().make_items(node.items.size() + 1);
  std::vector<Value> items;
  items.reserve(node.items.size());
  for (const ExprPtr& item : node.items)
    items.push_back(evaluate(*item, scope));
  return node.tuple ? Value::tuple(std::move(items)) : Value::list(std::move(items));
}

Value Interpreter::eval(const Mapping& node, const ScopePtr& scope) {
  budget().make_items(4 * node.entries.size() + 1);
  Dict dict;
  for (const auto& [key, value] : node.entries) {
    Value k = evaluate(*key, scope);
    dict.set(std::move(k), evaluate(*value, scope));
  }
  return make_dict(std::move(dict));
}

Value Interpreter::eval(const Attribute& node, const ScopePtr& scope) {
  return get_attribute(*this, evaluate(*node.object, scope), node.name);
}

Value Interpreter::eval(const Subscript& node, const ScopePtr& scope) {
  const Value object = evaluate(*node.object, scope);
  return get_item(*this, object, evaluate(*node.key, scope));
}

Value Interpreter::eval(const Slice& node, const ScopePtr& scope) {
  const auto bound = [&](const ExprPtr& e) { return e ? evaluate(*e, scope) : Value(); };
  const Value object = evaluate(*node.object, scope);
  const Value start = bound(node.start);
  const Value stop = bound(node.stop);
  return get_slice(*this, object, start, stop, bound(node.step));
}

Args Interpreter::arguments(const CallArgs& args, const ScopePtr& scope) {
  Args out;
  for (const ExprPtr& e : args.positional)
    out.positional.push_back(evaluate(*e, scope));
  for (const auto& [name, e] : args.named)
    out.named.emplace_back(name, evaluate(*e, scope));
  if (args.star) {
    for (Value& v : iterate(*this, evaluate(*args.star, scope)))
      out.positional.push_back(std::move(v));
  }
  if (args.double_star) {
    const Value more = evaluate(*args.double_star, scope);
    if (!more.is_dict())
      python_error("argument after ** must be a mapping, not {}", type_name(more));
    for (const auto& [key, value] : more.as_dict().entries) {
      if (!key.is_string()) python_error("keywords must be strings");
      out.named.emplace_back(key.as_str(), value);
    }
  }
  return out;
}

Value Interpreter::eval(const Call& node, const ScopePtr& scope) {
  const Value callee = evaluate(*node.callee, scope);
  return call_value(*this, callee, arguments(node.args, scope));
}

Value Interpreter::eval(const FilterCall& node, const ScopePtr& scope) {
  const Value value = node.value ? evaluate(*node.value, scope) : *filter_input_;
  if (node.body == nullptr) python_error("No filter named '{}' found.", node.name);
  charge_walk(value);
  Value result = node.body(*this, value, arguments(node.args, scope));
  if (result.is_string()) budget().make_bytes(result.as_text().size());
  return result;
}

Value Interpreter::eval(const TestCall& node, const ScopePtr& scope) {
  const Value value = evaluate(*node.value, scope);
  if (node.body == nullptr) python_error("No test named '{}' found.", node.name);
  charge_walk(value);
  return Value(node.body(*this, value, arguments(node.args, scope)));
}

Value Interpreter::eval(const Unary& node, const ScopePtr& scope) {
  const Value value = evaluate(*node.operand, scope);
  switch (node.op) {
    case UnaryOp::kNot:
      return Value(!truthy(value));
    case UnaryOp::kNegate:
      return negate(value);
    case UnaryOp::kPlus:
      return plus(value);
  }
  return Value();
}

Value Interpreter::eval(const Binary& node, const ScopePtr& scope) {
  const Value left = evaluate(*node.left, scope);
  return binary(*this, node.op, left, evaluate(*node.right, scope));
}

Value Interpreter::eval(const Concat& node, const ScopePtr& scope) {
  MarkedText out;
  for (const ExprPtr& part : node.parts) {
    const Value value = evaluate(*part, scope);
    out.append(value.is_string() ? value.as_text() : to_text(*this, value));
  }
  budget().make_bytes(out.size());
  return Value(std::move(out));
}

bool Interpreter::holds(CompareOp op, const Value& left, const Value& right) {
  switch (op) {
    case CompareOp::kEqual:
      return equal(left, right);
    case CompareOp::kNotEqual:
      return !equal(left, right);
    case CompareOp::kLess:
      return compare(left, right, "<") < 0;
    case CompareOp::kLessEqual:
      return compare(left, right, "<=") <= 0;
    case CompareOp::kGreater:
      return compare(left, right, ">") > 0;
    case CompareOp::kGreaterEqual:
      return compare(left, right, ">=") >= 0;
    case CompareOp::kIn:
      return contains(*this, right, left);
    case CompareOp::kNotIn:
      return !contains(*this, right, left);
  }
  return false;
}

Value Interpreter::eval(const Compare& node, const ScopePtr& scope) {
  Value left = evaluate(*node.first, scope);
  for (const auto& [op, operand] : node.rest) {
    Value right = evaluate(*operand, scope);
    if (!holds(op, left, right)) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Value Interpreter::eval(const Logic& node, const ScopePtr& scope) {
  Value left = evaluate(*node.left, scope);
  return truthy(left) == node.is_and ? evaluate(*node.right, scope) : left;
}

Value Interpreter::eval(const Conditional& node, const ScopePtr& scope) {
  if (truthy(evaluate(*node.test, scope))) return evaluate(*node.then, scope);
  if (node.otherwise) return evaluate(*node.otherwise, scope);
  return Value::undefined(
      "the inline if-expression evaluated to false and no else section was defined.");
}

}  // namespace qw::jinja
