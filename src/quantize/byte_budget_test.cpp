#include "quantize/byte_budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>

#include "base/error.h"
#include "base/rng.h"

namespace qw::quantize {
namespace {

using Items = std::vector<std::vector<BudgetChoice>>;

struct Sum {
  int64_t bytes = 0;
  double damage = 0;
};
Sum sum_of(const Items& items, const std::vector<size_t>& chosen) {
  Sum sum;
  for (size_t i = 0; i < items.size(); ++i) {
    sum.bytes += items[i][chosen[i]].bytes;
    sum.damage += items[i][chosen[i]].damage;
  }
  return sum;
}

/// Every combination.
double least_damage(const Items& items, int64_t max_bytes) {
  double best = std::numeric_limits<double>::infinity();
  const std::function<void(size_t, int64_t, double)> go = [&](size_t i, int64_t room, double sum) {
    if (room < 0) return;
    if (i == items.size()) {
      best = std::min(best, sum);
      return;
    }
    for (const BudgetChoice& choice : items[i])
      go(i + 1, room - choice.bytes, sum + choice.damage);
  };
  go(0, max_bytes, 0);
  return best;
}

/// Items whose damage falls four times for a bit more, as quantisation error does, with noise.
Items random_items(uint64_t seed, size_t n) {
  Items items;
  for (size_t i = 0; i < n; ++i) {
    const double scale = std::exp(random_normal(seed, i, 0));
    const auto weights = static_cast<int64_t>(100 + 400 * random_uniform(seed, i, 1));
    items.emplace_back();
    for (const int bits : {2, 3, 4, 5, 6, 8}) {
      const double noise = std::exp(0.2 * random_normal(seed, i, static_cast<uint64_t>(10 + bits)));
      items.back().push_back({weights * bits, scale * noise * std::pow(4.0, -bits)});
    }
  }
  return items;
}

TEST(ByteBudget, IsAsGoodAsEveryCombinationTried) {
  double total = 0, least = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const Items items = random_items(seed, 6);
    int64_t low = 0, high = 0;
    for (const auto& choices : items) {
      low += choices.front().bytes;
      high += choices.back().bytes;
    }
    for (const double share : {0.0, 0.1, 0.3, 0.5, 0.9, 1.0}) {
      const int64_t budget = low + static_cast<int64_t>(share * static_cast<double>(high - low));
      const Sum got = sum_of(items, choose_within(items, budget));
      EXPECT_LE(got.bytes, budget);
      const double best = least_damage(items, budget);
      EXPECT_GE(got.damage, best * (1 - 1e-12));
      EXPECT_LE(got.damage, 1.25 * best) << seed << " " << share;
      total += got.damage / best;
      least += 1;
    }
  }
  EXPECT_LT(total / least, 1.01);
}

TEST(ByteBudget, SpendsWhereItSavesMost) {
  const Items items = {{{10, 8.0}, {20, 1.0}}, {{10, 8.0}, {20, 6.0}}};
  EXPECT_EQ(choose_within(items, 20), (std::vector<size_t>{0, 0}));
  EXPECT_EQ(choose_within(items, 30), (std::vector<size_t>{1, 0}));
  EXPECT_EQ(choose_within(items, 39), (std::vector<size_t>{1, 0}));
  EXPECT_EQ(choose_within(items, 40), (std::vector<size_t>{1, 1}));
  EXPECT_THROW(choose_within(items, 19), Error);
}

/// The first step does not fit, a smaller one that is off the hull does.
TEST(ByteBudget, FillsWithChoicesOffTheHull) {
  const Items items = {{{10, 9.0}, {15, 8.0}, {30, 1.0}}};
  EXPECT_EQ(lower_hull(items[0]), (std::vector<size_t>{0, 2}));
  EXPECT_EQ(choose_within(items, 29), (std::vector<size_t>{1}));
}

TEST(ByteBudget, NeverTakesMoreBytesForNothing) {
  const Items items = {{{10, 1.0}, {12, 1.0}, {14, 2.0}}};
  EXPECT_EQ(choose_within(items, 100), (std::vector<size_t>{0}));
}

}  // namespace
}  // namespace qw::quantize
