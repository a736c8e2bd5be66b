#include "text/jinja/free_names.h"

#include <utility>
#include <variant>

namespace qw::jinja {
namespace {

using Names = std::set<std::string, std::less<>>;

/// Walks a tree in the order of rendering. `bound` is what is sure to be bound at a place; scopes
/// have copies of their own.
class Walk {
 public:
  void body(const Body& body, Names& bound) {
    for (const Stmt& stmt : body)
      std::visit([&](const auto& node) { statement(node, bound); }, stmt.node);
  }
  Names take() { return std::move(free_); }

 private:
  // ---- expressions

  void expr(const ExprPtr& expr, const Names& bound) {
    if (expr == nullptr) return;
    std::visit([&](const auto& node) { expression(node, bound); }, expr->node);
  }
  void look_up(const std::string& name, const Names& bound) {
    if (!bound.contains(name)) free_.insert(name);
  }
  void all(const std::vector<ExprPtr>& list, const Names& bound) {
    for (const ExprPtr& item : list)
      expr(item, bound);
  }
  void args(const CallArgs& args, const Names& bound) {
    all(args.positional, bound);
    for (const auto& [name, value] : args.named)
      expr(value, bound);
    expr(args.star, bound);
    expr(args.double_star, bound);
  }
  void expression(const Literal&, const Names&) {}
  void expression(const NameRef& node, const Names& bound) { look_up(node.name, bound); }
  void expression(const Sequence& node, const Names& bound) { all(node.items, bound); }
  void expression(const Mapping& node, const Names& bound) {
    for (const auto& [key, value] : node.entries) {
      expr(key, bound);
      expr(value, bound);
    }
  }
  void expression(const Attribute& node, const Names& bound) { expr(node.object, bound); }
  void expression(const Subscript& node, const Names& bound) {
    expr(node.object, bound);
    expr(node.key, bound);
  }
  void expression(const Slice& node, const Names& bound) {
    for (const ExprPtr* part : {&node.object, &node.start, &node.stop, &node.step})
      expr(*part, bound);
  }
  void expression(const Call& node, const Names& bound) {
    expr(node.callee, bound);
    args(node.args, bound);
  }
  void expression(const FilterCall& node, const Names& bound) {
    expr(node.value, bound);
    args(node.args, bound);
  }
  void expression(const TestCall& node, const Names& bound) {
    expr(node.value, bound);
    args(node.args, bound);
  }
  void expression(const Unary& node, const Names& bound) { expr(node.operand, bound); }
  void expression(const Binary& node, const Names& bound) {
    expr(node.left, bound);
    expr(node.right, bound);
  }
  void expression(const Concat& node, const Names& bound) { all(node.parts, bound); }
  void expression(const Compare& node, const Names& bound) {
    expr(node.first, bound);
    for (const auto& [op, value] : node.rest)
      expr(value, bound);
  }
  void expression(const Logic& node, const Names& bound) {
    expr(node.left, bound);
    expr(node.right, bound);
  }
  void expression(const Conditional& node, const Names& bound) {
    for (const ExprPtr* part : {&node.test, &node.then, &node.otherwise})
      expr(*part, bound);
  }

  // ---- statements

  void bind(const Target& target, Names& bound) {
    for (const Target& part : target.parts)
      bind(part, bound);
    if (!target.parts.empty()) return;
    if (target.field.empty()) {
      bound.insert(target.name);
    } else {
      look_up(target.name, bound);  // a namespace
    }
  }
  void scope(const Body& inner, Names bound) { body(inner, bound); }
  void scope(const Signature& signature, const Body& inner, Names bound) {
    for (size_t i = 0; i < signature.names.size(); ++i) {
      expr(signature.defaults[i], bound);
      bound.insert(signature.names[i]);
    }
    bound.insert({"varargs", "kwargs", "caller"});
    body(inner, bound);
  }

  void statement(const Text&, Names&) {}
  void statement(const Emit& node, Names& bound) { expr(node.value, bound); }
  void statement(const If& node, Names& bound) {
    for (const auto& [test, branch] : node.branches) {
      expr(test, bound);
      scope(branch, bound);
    }
    scope(node.otherwise, bound);
  }
  void statement(const For& node, Names& bound) {
    expr(node.iterable, bound);
    Names inner = bound;
    bind(node.target, inner);
    expr(node.filter, inner);
    inner.insert("loop");
    scope(node.body, inner);
    scope(node.otherwise, bound);
  }
  void statement(const Set& node, Names& bound) {
    expr(node.value, bound);
    bind(node.target, bound);
  }
  void statement(const SetBlock& node, Names& bound) {
    scope(node.body, bound);
    expr(node.filter, bound);
    bind(node.target, bound);
  }
  void statement(const With& node, Names& bound) {
    Names inner = bound;
    for (const auto& [target, value] : node.bindings) {
      expr(value, bound);
      bind(target, inner);
    }
    scope(node.body, std::move(inner));
  }
  void statement(const Macro& node, Names& bound) {
    bound.insert(node.name);
    scope(node.signature, node.body, bound);
  }
  void statement(const CallBlock& node, Names& bound) {
    expr(node.call, bound);
    scope(node.signature, node.body, bound);
  }
  void statement(const FilterBlock& node, Names& bound) {
    scope(node.body, bound);
    expr(node.filter, bound);
  }
  void statement(const Generation& node, Names& bound) { scope(node.body, bound); }
  void statement(const Scoped& node, Names& bound) { scope(node.body, bound); }
  void statement(const Refused&, Names&) {}
  void statement(const Break&, Names&) {}
  void statement(const Continue&, Names&) {}

  Names free_;
};

}  // namespace

std::set<std::string, std::less<>> free_names(const Body& body) {
  Names bound;
  Walk walk;
  walk.body(body, bound);
  return walk.take();
}

}  // namespace qw::jinja
