// What filters, tests, methods and functions may ask of the interpreter.
//
// Level 3 (text). One Runtime lives for one rendering.
#pragma once

#include <string_view>

#include "text/jinja/budget.h"
#include "text/jinja/local_time.h"
#include "text/jinja/value.h"

namespace qw::jinja {

class Runtime {
 public:
  Runtime(size_t input_bytes, const LocalTime& now, const CancelFlag* cancel)
      : budget_(input_bytes, cancel), now_(now) {}
  virtual ~Runtime() = default;

  Budget& budget() { return budget_; }
  const LocalTime& now() const { return now_; }
  /// Objects that can be made to hold themselves: the runtime releases them when the rendering
  /// ends.
  virtual void own(std::shared_ptr<Object> object) = 0;

 private:
  Budget budget_;
  LocalTime now_;
};

}  // namespace qw::jinja
