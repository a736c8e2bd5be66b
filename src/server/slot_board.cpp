#include "server/slot_board.h"

#include <algorithm>
#include <utility>

namespace qw::server {

int64_t SlotBoard::take(int64_t wanted) {
  const std::lock_guard lock(mutex_);
  auto slot = slots_.begin() + std::max<int64_t>(wanted, 0);
  if (wanted < 0) {
    slot = std::ranges::min_element(
        slots_, {}, [](const Slot& one) { return std::pair(one.n_busy, one.used); });
  }
  ++slot->n_busy;
  return slot - slots_.begin();
}

void SlotBoard::give_back(int64_t number, Sequence sequence) {
  const std::lock_guard lock(mutex_);
  Slot& slot = slots_.at(static_cast<size_t>(number));
  --slot.n_busy;
  slot.used = ++clock_;
  if (!sequence.tokens.empty()) slot.last = std::move(sequence);
}

void SlotBoard::set(int64_t number, Sequence sequence) {
  const std::lock_guard lock(mutex_);
  slots_.at(static_cast<size_t>(number)).last = std::move(sequence);
}

SlotBoard::Sequence SlotBoard::last(int64_t slot) const {
  const std::lock_guard lock(mutex_);
  return at(slot).last;
}

bool SlotBoard::is_busy(int64_t slot) const {
  const std::lock_guard lock(mutex_);
  return at(slot).n_busy > 0;
}

}  // namespace qw::server
