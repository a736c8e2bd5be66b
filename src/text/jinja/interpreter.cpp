#include "text/jinja/interpreter.h"

#include <algorithm>

#include "text/jinja/format.h"
#include "text/jinja/loop.h"
#include "text/jinja/macro.h"

namespace qw::jinja {

// ---- scopes

const Value* Scope::find(std::string_view name) const {
  for (const auto& [key, value] : variables) {
    if (key == name) return &value;
  }
  return nullptr;
}

void Scope::set(std::string_view name, Value value) {
  for (auto& [key, old] : variables) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  variables.emplace_back(name, std::move(value));
}

Interpreter::Interpreter(std::vector<std::pair<std::string, Value>> variables, size_t input_bytes,
                         const LocalTime& now, const CancelFlag* cancel)
    : Runtime(input_bytes, now, cancel), variables_(std::move(variables)) {}

Interpreter::~Interpreter() {
  for (const auto& object : owned_)
    object->release();
  for (const ScopePtr& scope : kept_)
    scope->variables.clear();
}

void Interpreter::own(std::shared_ptr<Object> object) {
  budget().make_bytes(sizeof(Namespace));
  owned_.push_back(std::move(object));
}

ScopePtr Interpreter::enter(const ScopePtr& outer) {
  budget().make_bytes(sizeof(Scope));
  return std::make_shared<Scope>(outer);
}

void Interpreter::keep(const ScopePtr& scope) {
  for (ScopePtr s = scope; s != nullptr && !s->kept; s = s->parent) {
    s->kept = true;
    kept_.push_back(s);
  }
}

// ---- output

/// Redirects the output to a buffer while it lives.
class Interpreter::Buffer {
 public:
  explicit Buffer(Interpreter& owner) : owner_(owner), outer_(owner.out_) { owner.out_ = &text_; }
  ~Buffer() { owner_.out_ = outer_; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  MarkedText take() { return std::move(text_); }

 private:
  Interpreter& owner_;
  MarkedText* outer_;
  MarkedText text_;
};

MarkedText Interpreter::capture(const Body& body, const ScopePtr& scope) {
  Buffer buffer(*this);
  run(body, scope);
  return buffer.take();
}

Interpreter::Flow Interpreter::capture(const Body& body, const ScopePtr& scope, Value& text) {
  Buffer buffer(*this);
  const Flow flow = run(body, scope);
  text = Value(buffer.take());
  return flow;
}

void Interpreter::emit(const MarkedText& text) {
  budget().make_bytes(text.size());
  if (out_ == &root_) ++root_writes_;
  out_->append(text);
}

Rendered Interpreter::render(const Body& body) {
  const Budget::Use use(budget());
  run(body, std::make_shared<Scope>(nullptr));
  return {std::move(root_), std::move(generated_)};
}

// ---- statements

Interpreter::Flow Interpreter::run(const Body& body, const ScopePtr& scope) {
  const Budget::Level level(budget());
  for (const Stmt& stmt : body) {
    const Flow flow = run_statement(stmt, scope);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::run_statement(const Stmt& stmt, const ScopePtr& scope) {
  try {
    budget().step();
    return std::visit([&](const auto& node) { return exec(node, scope); }, stmt.node);
  } catch (const TemplateError& error) {
    if (error.line() > 0) throw;
    throw TemplateError(error.template_kind(), error.detail(), stmt.line);
  }
}

Interpreter::Flow Interpreter::exec(const Text& node, const ScopePtr&) {
  emit(MarkedText(node.text));
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec(const Emit& node, const ScopePtr& scope) {
  const Value value = evaluate(*node.value, scope);
  emit(value.is_string() ? value.as_text() : to_text(*this, value));
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec(const If& node, const ScopePtr& scope) {
  for (const auto& [test, body] : node.branches) {
    if (truthy(evaluate(*test, scope))) return run(body, scope);
  }
  return run(node.otherwise, scope);
}

void Interpreter::assign(const Target& target, Value value, const ScopePtr& scope) {
  if (!target.parts.empty()) {
    const std::vector<Value> items = iterate(*this, value);
    if (items.size() != target.parts.size()) {
      python_error("{} values to unpack (expected {})",
                   items.size() < target.parts.size() ? "not enough" : "too many",
                   target.parts.size());
    }
    for (size_t i = 0; i < items.size(); ++i)
      assign(target.parts[i], items[i], scope);
    return;
  }
  if (target.field.empty()) return scope->set(target.name, std::move(value));
  const Value holder = eval(NameRef{target.name}, scope);
  const auto space = holder.object_as<Namespace>();
  if (!space) python_error("cannot assign attribute on non-namespace object");
  space->set(target.field, std::move(value));
}

Interpreter::Flow Interpreter::exec(const Set& node, const ScopePtr& scope) {
  assign(node.target, evaluate(*node.value, scope), scope);
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec(const SetBlock& node, const ScopePtr& scope) {
  const ScopePtr inner = enter(scope);
  Value text;
  const Flow flow = capture(node.body, inner, text);
  if (flow != Flow::kNext) return flow;
  if (node.filter) text = filtered(*node.filter, std::move(text), inner);
  assign(node.target, std::move(text), scope);
  return Flow::kNext;
}

Value Interpreter::filtered(const Expr& filter, Value text, const ScopePtr& scope) {
  const Value* outer = std::exchange(filter_input_, &text);
  Value result;
  try {
    result = evaluate(filter, scope);
  } catch (...) {
    filter_input_ = outer;
    throw;
  }
  filter_input_ = outer;
  return result;
}

Interpreter::Flow Interpreter::exec(const With& node, const ScopePtr& scope) {
  const ScopePtr inner = enter(scope);
  for (const auto& [target, value] : node.bindings) {
    assign(target, evaluate(*value, scope), inner);  // values do not see their neighbours
  }
  return run(node.body, inner);
}

Interpreter::Flow Interpreter::exec(const Macro& node, const ScopePtr& scope) {
  keep(scope);
  scope->set(node.name,
             make_object<MacroObject>(*this, node.name, node.signature, node.body, scope));
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec(const CallBlock& node, const ScopePtr& scope) {
  keep(scope);
  const Call& call = std::get<Call>(node.call->node);
  const Value callee = evaluate(*call.callee, scope);
  Args args = arguments(call.args, scope);
  args.named.emplace_back(
      "caller", make_object<MacroObject>(*this, "caller", node.signature, node.body, scope));
  const Value result = call_value(*this, callee, args);
  if (!result.is_string()) {
    python_error("a call block expected str instance, {} found", type_name(result));
  }
  emit(result.as_text());
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec(const FilterBlock& node, const ScopePtr& scope) {
  const ScopePtr inner = enter(scope);
  Value text;
  const Flow flow = capture(node.body, inner, text);
  if (flow != Flow::kNext) return flow;
  emit(to_text(*this, filtered(*node.filter, std::move(text), inner)));
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec(const Generation& node, const ScopePtr& scope) {
  const MarkedText text = capture(node.body, enter(scope));
  // Transformers 4.46 takes an empty list of rendered pieces for "not tracking": a block before any
  // other output is lost. The masks must be its masks.
  const bool tracked = root_writes_ > 0 || !generated_.empty();
  if (tracked) generated_.push_back({root_.size(), root_.size() + text.size()});
  emit(text);
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec(const Scoped& node, const ScopePtr& scope) {
  return run(node.body, enter(scope));
}

Interpreter::Flow Interpreter::exec(const Refused& node, const ScopePtr&) {
  python_error("no loader for this environment specified ('{}')", node.tag);
}

// ---- loops

MarkedText Interpreter::capture_loop(const For& node, const Value& iterable, const ScopePtr& scope,
                                     int depth0) {
  Buffer buffer(*this);
  run_loop(node, iterable, scope, depth0);
  return buffer.take();
}

Interpreter::Flow Interpreter::exec(const For& node, const ScopePtr& scope) {
  return run_loop(node, evaluate(*node.iterable, scope), scope, 0);
}

Interpreter::Flow Interpreter::run_loop(const For& node, const Value& iterable,
                                        const ScopePtr& scope, int depth0) {
  if (node.filter || node.recursive) keep(scope);  // the loop object then holds the scope
  const auto loop = std::make_shared<Loop>(*this, node, iterable, scope, depth0);
  const Value loop_value{std::shared_ptr<Object>(loop)};
  bool any = false;
  while (loop->advance()) {
    any = true;
    budget().step();
    const ScopePtr turn = enter(scope);
    turn->variables.emplace_back("loop", loop_value);
    assign(node.target, loop->current(), turn);
    if (run(node.body, turn) == Flow::kBreak) break;
  }
  return any ? Flow::kNext : run(node.otherwise, enter(scope));
}

}  // namespace qw::jinja
