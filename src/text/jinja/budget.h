// How much one rendering may do: steps, bytes made, depth.
//
// Level 3 (text). A template comes with a checkpoint, so it may loop for ever or multiply strings.
// Every node evaluated costs a step and every value made costs its bytes; what is past the budget
// is a TemplateError of kind limit. The budget grows with the size of the input, so that it never
// stands in the way of a long conversation. Whoever waits for the rendering may end it before.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/cancel.h"
#include "text/jinja/template_error.h"

namespace qw::jinja {

class Budget {
 public:
  /// input_bytes: the size of messages, tools, documents and variables. cancel: ends the rendering
  /// with Error cancelled once it is set; null: nothing does.
  explicit Budget(size_t input_bytes, const CancelFlag* cancel = nullptr)
      : steps_left_(kBaseSteps + kStepsPerByte * input_bytes),
        bytes_left_(kBaseBytes + kBytesPerByte * input_bytes),
        cancel_(cancel) {}

  void step(size_t n = 1) {
    if (n > steps_left_) {
      raise(TemplateErrorKind::kLimit, "the template did not end within its budget of steps");
    }
    const uint64_t before = steps_left_;
    steps_left_ -= n;
    if (before / kStepsPerLook != steps_left_ / kStepsPerLook && cancel_ != nullptr)
      cancel_->check("the template");
  }

  /// Bytes copied or made. They count as work too, so that copying cannot go on for ever.
  void make_bytes(size_t n) {
    if (n > bytes_left_) {
      raise(TemplateErrorKind::kLimit,
            "the template made more text or lists than its budget of bytes");
    }
    bytes_left_ -= n;
  }

  /// `n` values of a list about to be made.
  void make_items(size_t n) {
    constexpr size_t kItemBytes = 32;
    if (n > bytes_left_ / kItemBytes) make_bytes(bytes_left_ + 1);
    make_bytes(n * kItemBytes);
    step(n);
  }

  /// Work on values of `size` items or 64-byte pieces, charged to the rendering of this thread, if
  /// there is one. For what compares and looks up deep inside values, where no Runtime is at hand:
  /// values can share parts, so that comparing two small ones may take exponential time.
  static void charge(size_t size) {
    if (current_ != nullptr) current_->step(1 + size);
  }

  /// Makes `budget` the one that `charge` takes from, while it lives.
  class Use {
   public:
    explicit Use(Budget& budget) : outer_(current_) { current_ = &budget; }
    ~Use() { current_ = outer_; }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    Budget* outer_;
  };

  /// One level of nesting, while the object lives.
  class Level {
   public:
    explicit Level(Budget& budget) : budget_(budget) {
      if (budget_.depth_ >= kMaxDepth) {
        raise(TemplateErrorKind::kLimit, "the template nests deeper than {} levels", kMaxDepth);
      }
      ++budget_.depth_;
    }
    ~Level() { --budget_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    Budget& budget_;
  };

 private:
  // About a second of work at most for a small conversation (measured: 10-20 M steps/s).
  static constexpr uint64_t kBaseSteps = 10'000'000;
  static constexpr uint64_t kStepsPerByte = 64;
  static constexpr uint64_t kStepsPerLook = uint64_t{1} << 14;  // at the flag: about a millisecond
  static constexpr uint64_t kBaseBytes = uint64_t{256} << 20;
  static constexpr uint64_t kBytesPerByte = 256;
  // Expressions, blocks and macro calls together. Python ends near 300 nested macro calls; a level
  // here is one C++ frame of at most a few hundred bytes (about 1 KiB under ASan).
  static constexpr int kMaxDepth = 1500;

  static inline thread_local Budget* current_ = nullptr;

  uint64_t steps_left_;
  uint64_t bytes_left_;
  const CancelFlag* cancel_;
  int depth_ = 0;
};

}  // namespace qw::jinja
