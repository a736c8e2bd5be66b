// How much compiling one grammar may do, and who may end it.
//
// Level 6 (engine/grammar). Sources come from clients, and some short ones take long: a few
// thousand optional properties, alternatives of alternatives, character classes without end. What
// compiles charges the steps that it takes to the work of its thread; past its limit, a number of
// steps and not a time so that it is the same everywhere, it is an error. Where there is no such
// work, nothing is limited. A parameter would go through every function of this folder instead; the
// templates' budget (text/jinja/budget.h) is made the same way.
#pragma once

#include <cstdint>

#include "base/cancel.h"

namespace qw::grammar {

class CompileWork {
 public:
  /// Some seconds (measured: 10 to 60 M steps/s on one core of an EPYC of family 25, November 2026);
  /// schemas of everyday use take some hundred thousand.
  static constexpr uint64_t kMaxSteps = 100'000'000;

  /// cancel: null, or ends the work once it is set; both outlive this object's uses.
  explicit CompileWork(const CancelFlag* cancel = nullptr, uint64_t max_steps = kMaxSteps)
      : cancel_(cancel), max_steps_(max_steps), outer_(current_) {
    current_ = this;
  }
  ~CompileWork() { current_ = outer_; }
  CompileWork(const CompileWork&) = delete;
  CompileWork& operator=(const CompileWork&) = delete;

  uint64_t steps() const noexcept { return steps_; }

  /// Takes `n` steps from the work of this thread. Errors: unsupported (naming the limit),
  /// cancelled.
  static void charge(uint64_t n) {
    if (current_ != nullptr) current_->take(n);
  }

 private:
  void take(uint64_t n) {
    steps_ += n;
    if (steps_ > max_steps_) {
      fail(ErrorKind::kUnsupported, "grammar",
           "grammar: expected to be compiled in at most {} steps, got more; use fewer optional "
           "properties and alternatives, or smaller bounds",
           max_steps_);
    }
    if (cancel_ != nullptr) cancel_->check("compiling a grammar");
  }

  static inline thread_local CompileWork* current_ = nullptr;

  const CancelFlag* cancel_;
  uint64_t max_steps_, steps_ = 0;
  CompileWork* outer_;
};

}  // namespace qw::grammar
