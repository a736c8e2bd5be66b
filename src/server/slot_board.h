// Numbered places for clients that think in slots: which answers went by which number.
//
// Level 7 (server). The engine has no such places: every request finds every kept prefix. A number
// is a name for what was computed last under it, so that it can be saved, brought back and erased.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "engine/block_scope.h"

namespace qw::server {

class SlotBoard {
 public:
  explicit SlotBoard(int64_t n_slots) : slots_(static_cast<size_t>(n_slots)) {}

  struct Sequence {
    std::vector<int32_t> tokens;  // prompt and answer
    BlockScope scope;
  };

  int64_t size() const { return static_cast<int64_t>(slots_.size()); }
  /// Takes the number that is wanted, or for -1 the one that was given back longest ago, free ones
  /// first.
  int64_t take(int64_t wanted);
  /// What came of it; empty: nothing.
  void give_back(int64_t slot, Sequence sequence);
  void set(int64_t slot, Sequence sequence);
  Sequence last(int64_t slot) const;
  bool is_busy(int64_t slot) const;

 private:
  struct Slot {
    Sequence last;
    int64_t n_busy = 0;
    uint64_t used = 0;  // a clock of uses
  };
  const Slot& at(int64_t slot) const { return slots_.at(static_cast<size_t>(slot)); }

  mutable std::mutex mutex_;
  std::vector<Slot> slots_;
  uint64_t clock_ = 0;
};

}  // namespace qw::server
