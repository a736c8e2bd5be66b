// Runs a syntax tree.
//
// Level 3 (text). Scopes are looked up at run time: a `for` turn, `with`, macro, call, filter and
// set block open one, `if` does not. Output goes to the innermost of a stack of buffers; what
// reaches the outermost is the rendered text.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/runtime.h"

namespace qw::jinja {

/// Variables of one scope. Names point into the tree or the caller's table.
struct Scope {
  explicit Scope(std::shared_ptr<Scope> outer) : parent(std::move(outer)) {}
  const Value* find(std::string_view name) const;
  void set(std::string_view name, Value value);

  std::vector<std::pair<std::string_view, Value>> variables;
  std::shared_ptr<Scope> parent;
  bool kept = false;  // see Interpreter::keep
};
using ScopePtr = std::shared_ptr<Scope>;

struct Rendered {
  MarkedText text;
  std::vector<ByteRange> generated;  // the text of `{% generation %}` blocks
};

class Interpreter final : public Runtime {
 public:
  /// `variables` are the template's globals besides the built-in functions.
  Interpreter(std::vector<std::pair<std::string, Value>> variables, size_t input_bytes,
              const LocalTime& now, const CancelFlag* cancel);
  ~Interpreter() override;
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  /// Renders once. Errors: TemplateError with the line where it happened; cancelled.
  Rendered render(const Body& body);

  void own(std::shared_ptr<Object> object) override;

  // For the objects that run pieces of the template: macros and loops.
  enum class Flow { kNext, kBreak, kContinue };
  Flow run(const Body& body, const ScopePtr& scope);
  Value evaluate(const Expr& expr, const ScopePtr& scope);
  /// Runs `body` into a buffer of its own.
  MarkedText capture(const Body& body, const ScopePtr& scope);
  /// The same where `break` and `continue` reach out of the body (the text then is not used).
  Flow capture(const Body& body, const ScopePtr& scope, Value& text);
  ScopePtr enter(const ScopePtr& outer);
  void assign(const Target& target, Value value, const ScopePtr& scope);
  /// The turns of a loop over `iterable`; `depth0` counts recursive calls.
  Flow run_loop(const For& node, const Value& iterable, const ScopePtr& scope, int depth0);
  /// The same into a buffer of its own.
  MarkedText capture_loop(const For& node, const Value& iterable, const ScopePtr& scope,
                          int depth0);
  /// Objects that hold a scope which may hold them would never be freed: a kept scope and its
  /// parents are emptied when the interpreter ends.
  void keep(const ScopePtr& scope);

 private:
  class Buffer;

  Flow run_statement(const Stmt& stmt, const ScopePtr& scope);
  Flow exec(const Text& node, const ScopePtr& scope);
  Flow exec(const Emit& node, const ScopePtr& scope);
  Flow exec(const If& node, const ScopePtr& scope);
  Flow exec(const For& node, const ScopePtr& scope);
  Flow exec(const Set& node, const ScopePtr& scope);
  Flow exec(const SetBlock& node, const ScopePtr& scope);
  Flow exec(const With& node, const ScopePtr& scope);
  Flow exec(const Macro& node, const ScopePtr& scope);
  Flow exec(const CallBlock& node, const ScopePtr& scope);
  Flow exec(const FilterBlock& node, const ScopePtr& scope);
  Flow exec(const Generation& node, const ScopePtr& scope);
  Flow exec(const Scoped& node, const ScopePtr& scope);
  Flow exec(const Refused& node, const ScopePtr& scope);
  Flow exec(const Break&, const ScopePtr&) { return Flow::kBreak; }
  Flow exec(const Continue&, const ScopePtr&) { return Flow::kContinue; }

  Value eval(const Literal& node, const ScopePtr& scope);
  Value eval(const NameRef& node, const ScopePtr& scope);
  Value eval(const Sequence& node, const ScopePtr& scope);
  Value eval(const Mapping& node, const ScopePtr& scope);
  Value eval(const Attribute& node, const ScopePtr& scope);
  Value eval(const Subscript& node, const ScopePtr& scope);
  Value eval(const Slice& node, const ScopePtr& scope);
  Value eval(const Call& node, const ScopePtr& scope);
  Value eval(const FilterCall& node, const ScopePtr& scope);
  Value eval(const TestCall& node, const ScopePtr& scope);
  Value eval(const Unary& node, const ScopePtr& scope);
  Value eval(const Binary& node, const ScopePtr& scope);
  Value eval(const Concat& node, const ScopePtr& scope);
  Value eval(const Compare& node, const ScopePtr& scope);
  Value eval(const Logic& node, const ScopePtr& scope);
  Value eval(const Conditional& node, const ScopePtr& scope);

  bool holds(CompareOp op, const Value& left, const Value& right);
  Args arguments(const CallArgs& args, const ScopePtr& scope);
  /// Applies a chain of filters without an innermost value to `text`.
  Value filtered(const Expr& filter, Value text, const ScopePtr& scope);
  void emit(const MarkedText& text);

  std::vector<std::pair<std::string, Value>> variables_;
  MarkedText root_;
  MarkedText* out_ = &root_;
  size_t root_writes_ = 0;
  std::vector<ByteRange> generated_;
  std::vector<std::shared_ptr<Object>> owned_;
  std::vector<ScopePtr> kept_;
  const Value* filter_input_ = nullptr;  // what the innermost of filtered() stands for
};

}  // namespace qw::jinja
