// The `loop` variable, which also drives its loop.
//
// Level 3 (text). Items are drawn lazily and looked ahead only when the template asks (last,
// nextitem, length, revindex), so a loop's own `if` sees what earlier turns changed, as in Jinja.
#pragma once

#include <deque>

#include "text/jinja/interpreter.h"

namespace qw::jinja {

class Loop final : public Object, public std::enable_shared_from_this<Loop> {
 public:
  Loop(Interpreter& interpreter, const For& node, const Value& iterable, const ScopePtr& scope,
       int depth0);

  std::string_view type_name() const override { return "LoopContext"; }
  bool callable() const override { return true; }
  /// loop(items): the same loop over other items, in a loop declared recursive.
  Value call(Runtime& runtime, const Args& args) override;
  std::optional<Value> attribute(Runtime& runtime, std::string_view name) override;
  std::optional<size_t> length() const override;
  bool iterable() const override { return false; }
  bool truthy() const override { return true; }
  int depth() const override { return depth_; }
  void release() override { changed_.reset(); }

  /// Goes to the next item; false at the end.
  bool advance();
  const Value& current() const { return *current_; }

 private:
  /// The next item that passes the loop's filter.
  std::optional<Value> draw();
  bool look_ahead();
  size_t total();
  Value method(std::string_view name);

  Interpreter& interpreter_;
  const For& node_;
  ScopePtr scope_;  // held only where it is needed: by a filter or a recursive loop
  std::shared_ptr<Generator> generator_;
  std::vector<Value> items_;
  size_t next_item_ = 0;
  std::deque<Value> ahead_;
  std::optional<Value> previous_;
  std::optional<Value> current_;
  std::optional<Value> changed_;  // what loop.changed was last called with
  bool owned_ = false;
  size_t index0_ = 0;
  int depth0_;
  int depth_;
};

}  // namespace qw::jinja
