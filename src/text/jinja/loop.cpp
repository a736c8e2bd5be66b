#include "text/jinja/loop.h"

#include <algorithm>

namespace qw::jinja {

Loop::Loop(Interpreter& interpreter, const For& node, const Value& iterable, const ScopePtr& scope,
           int depth0)
    : interpreter_(interpreter),
      node_(node),
      scope_(node.filter || node.recursive ? scope : nullptr),
      generator_(iterable.object_as<Generator>()),
      depth0_(depth0) {
  if (!generator_) items_ = iterate(interpreter, iterable);
  depth_ = std::max(container_depth(items_), iterable.depth());
}

std::optional<Value> Loop::draw() {
  while (true) {
    std::optional<Value> item;
    if (generator_) {
      item = generator_->next(interpreter_);
    } else if (next_item_ < items_.size()) {
      item = items_[next_item_++];
    }
    if (!item || !node_.filter) return item;
    const ScopePtr inner = interpreter_.enter(scope_);
    interpreter_.assign(node_.target, *item, inner);
    if (jinja::truthy(interpreter_.evaluate(*node_.filter, inner))) return item;
  }
}

bool Loop::look_ahead() {
  if (!ahead_.empty()) return true;
  auto item = draw();
  if (!item) return false;
  ahead_.push_back(std::move(*item));
  return true;
}

bool Loop::advance() {
  if (!look_ahead()) return false;
  if (current_) ++index0_;
  previous_ = std::exchange(current_, std::move(ahead_.front()));
  ahead_.pop_front();
  return true;
}

size_t Loop::total() {
  while (auto item = draw())
    ahead_.push_back(std::move(*item));
  return index0_ + 1 + ahead_.size();
}

std::optional<size_t> Loop::length() const {
  return const_cast<Loop*>(this)->total();
}

Value Loop::call(Runtime& runtime, const Args& args) {
  const auto bound = args.bind("loop", 1, {"iterable"});
  if (!node_.recursive) python_error("The loop must have the 'recursive' marker to be called.");
  (void)runtime;
  return Value(interpreter_.capture_loop(node_, *bound[0], scope_, depth0_ + 1));
}

std::optional<Value> Loop::attribute(Runtime&, std::string_view name) {
  if (name == "index0") return Value::of_size(index0_);
  if (name == "index") return Value::of_size(index0_ + 1);
  if (name == "first") return Value(index0_ == 0);
  if (name == "last") return Value(!look_ahead());
  if (name == "length") return Value::of_size(total());
  if (name == "revindex") return Value::of_size(total() - index0_);
  if (name == "revindex0") return Value::of_size(total() - index0_ - 1);
  if (name == "depth0") return Value(Int{depth0_});
  if (name == "depth") return Value(Int{depth0_ + 1});
  if (name == "previtem")
    return previous_ ? *previous_ : Value::undefined("there is no previous item");
  if (name == "nextitem")
    return look_ahead() ? ahead_.front() : Value::undefined("there is no next item");
  if (name == "cycle" || name == "changed") return method(name);
  return std::nullopt;
}

Value Loop::method(std::string_view name) {
  const auto self = shared_from_this();
  if (name == "cycle") {
    return make_object<Function>(
        "cycle",
        [self](Runtime&, const Args& args) {
          if (args.positional.empty()) python_error("no items for cycling given");
          return args.positional[self->index0_ % args.positional.size()];
        },
        depth_);
  }
  return make_object<Function>(
      "changed",
      [self](Runtime& runtime, const Args& args) {
        if (!std::exchange(self->owned_, true)) runtime.own(self);  // it may be called with itself
        Value now = Value::tuple(args.positional);
        const bool same = self->changed_ && equal(*self->changed_, now);
        self->changed_ = std::move(now);
        return Value(!same);
      },
      depth_);
}

}  // namespace qw::jinja
