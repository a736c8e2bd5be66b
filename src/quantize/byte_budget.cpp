#include "quantize/byte_budget.h"

#include <algorithm>
#include <numeric>
#include <queue>

#include "base/error.h"

namespace qw::quantize {

namespace {

using Items = std::vector<std::vector<BudgetChoice>>;

/// Damage that is saved by a byte more.
double gain(const BudgetChoice& from, const BudgetChoice& to) {
  return (from.damage - to.damage) / static_cast<double>(to.bytes - from.bytes);
}

struct Step {
  double gain = 0;
  size_t item = 0, to = 0;  // position in the item's hull
  bool operator<(const Step& other) const {
    return gain != other.gain ? gain < other.gain : item > other.item;
  }
};

/// Steps along the hulls, best first; one that does not fit ends its item.
void follow_hulls(const Items& items, int64_t& room, std::vector<size_t>& chosen) {
  std::vector<std::vector<size_t>> hulls;
  std::priority_queue<Step> steps;
  const auto push = [&](size_t item, size_t to) {
    const std::vector<size_t>& hull = hulls[item];
    if (to < hull.size())
      steps.push({gain(items[item][hull[to - 1]], items[item][hull[to]]), item, to});
  };
  for (size_t i = 0; i < items.size(); ++i) {
    hulls.push_back(lower_hull(items[i]));
    chosen[i] = hulls[i].front();
    room -= items[i][chosen[i]].bytes;
    push(i, 1);
  }
  while (!steps.empty()) {
    const Step step = steps.top();
    steps.pop();
    const size_t to = hulls[step.item][step.to];
    const int64_t more = items[step.item][to].bytes - items[step.item][chosen[step.item]].bytes;
    if (more > room) continue;
    room -= more;
    chosen[step.item] = to;
    push(step.item, step.to + 1);
  }
}

/// The change of one item, or of two together, that saves the most damage and fits. False: none
/// saves any.
bool improve(const Items& items, int64_t& room, std::vector<size_t>& chosen) {
  struct Move {
    double saved = 0;
    int64_t bytes = 0;
    size_t item = 0, to = 0;
  };
  // Of each item the change to every other choice, by bytes: what goes best with one is the best of
  // all that leave room, or the best of another item.
  std::vector<Move> moves;
  for (size_t i = 0; i < items.size(); ++i) {
    const BudgetChoice& now = items[i][chosen[i]];
    for (size_t to = 0; to < items[i].size(); ++to) {
      if (to == chosen[i]) continue;
      const BudgetChoice& then = items[i][to];
      moves.push_back({now.damage - then.damage, then.bytes - now.bytes, i, to});
    }
  }
  std::ranges::stable_sort(moves, {}, &Move::bytes);
  struct Two {
    const Move *first = nullptr, *other = nullptr;  // of different items
  };
  std::vector<Two> best_up_to;
  Two two;
  for (const Move& move : moves) {
    if (two.first == nullptr || move.saved > two.first->saved) {
      if (two.first != nullptr && two.first->item != move.item) two.other = two.first;
      two.first = &move;
    } else if (move.item != two.first->item &&
               (two.other == nullptr || move.saved > two.other->saved)) {
      two.other = &move;
    }
    best_up_to.push_back(two);
  }
  double best = 0;
  std::pair<const Move*, const Move*> found{};
  for (const Move& a : moves) {
    if (a.saved <= 0) continue;
    if (a.bytes <= room && a.saved > best) {
      best = a.saved;
      found = {&a, nullptr};
    }
    const auto end = std::ranges::upper_bound(moves, room - a.bytes, {}, &Move::bytes);
    if (end == moves.begin()) continue;
    const Two& with = best_up_to[static_cast<size_t>(end - moves.begin() - 1)];
    const Move* b = with.first->item != a.item ? with.first : with.other;
    if (b != nullptr && a.saved + b->saved > best) {
      best = a.saved + b->saved;
      found = {&a, b};
    }
  }
  // Sums of floats: what saves nothing but rounding would go round in circles.
  double total = 0;
  for (size_t i = 0; i < items.size(); ++i)
    total += items[i][chosen[i]].damage;
  if (found.first == nullptr || best <= 1e-9 * total) return false;
  for (const Move* move : {found.first, found.second}) {
    if (move == nullptr) continue;
    chosen[move->item] = move->to;
    room -= move->bytes;
  }
  return true;
}

}  // namespace

std::vector<size_t> lower_hull(const std::vector<BudgetChoice>& choices) {
  QW_CHECK(!choices.empty(), "an item without choices");
  std::vector<size_t> order(choices.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order, [&](size_t a, size_t b) {
    return std::pair(choices[a].bytes, choices[a].damage) <
           std::pair(choices[b].bytes, choices[b].damage);
  });
  std::vector<size_t> hull;
  for (const size_t i : order) {
    if (!hull.empty() && choices[i].damage >= choices[hull.back()].damage) continue;
    while (hull.size() >= 2 && gain(choices[hull[hull.size() - 2]], choices[hull.back()]) <=
                                   gain(choices[hull.back()], choices[i]))
      hull.pop_back();
    hull.push_back(i);
  }
  return hull;
}

void check_budget(int64_t least, int64_t max_bytes) {
  if (least > max_bytes) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "budget: expected at least {} bytes for the matrices (the smallest types for all), got {}",
         least, max_bytes);
  }
}

std::vector<size_t> choose_within(const Items& items, int64_t max_bytes) {
  int64_t least = 0;
  for (const auto& choices : items) {
    QW_CHECK(!choices.empty(), "an item without choices");
    least += std::ranges::min(choices, {}, &BudgetChoice::bytes).bytes;
  }
  check_budget(least, max_bytes);
  std::vector<size_t> chosen(items.size());
  int64_t room = max_bytes;
  follow_hulls(items, room, chosen);
  // Each saves damage, so it ends; the limit only bounds the time.
  for (size_t i = 0; i < 4 * items.size() && improve(items, room, chosen); ++i) {
  }
  return chosen;
}

}  // namespace qw::quantize
