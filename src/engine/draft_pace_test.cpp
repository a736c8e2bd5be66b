// How many guesses pay, under costs that are given: never much slower than plain steps, much faster
// when guesses are good.
#include "engine/draft_pace.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace qw {
namespace {

/// A machine on which a step with n guesses takes 1 + n * (row + guess) plain steps.
struct World {
  double row = 0.05, guess = 0;
  double right = 0;  // how often a guess is right, given that those before it were
  double prior = 0.5, weight = 0.5;
  int64_t limit = 16;
  double catch_up = 0;

  DraftCosts costs() const {
    DraftCosts out;
    out.plain = 1;
    out.tokens_left = 1000;
    out.catch_up = catch_up;
    for (int64_t n = 1; n <= limit; ++n)
      out.with.push_back(1 + static_cast<double>(n) * (row + guess));
    return out;
  }
};

struct Outcome {
  double time = 0;  // in plain steps
  int64_t n_drafts = 0, n_drafted = 0;
};

/// An answer of n tokens. `right_at(i)`: whether a guess of token i would be right.
template <typename RightAt>
Outcome run(const World& world, int64_t n, double credit_a_step, const RightAt& right_at) {
  DraftPace pace(world.prior, world.weight);
  const DraftCosts costs = world.costs();
  Outcome out;
  double credit = 0;
  for (int64_t said = 0; said < n;) {
    const int64_t n_guesses = pace.next(costs, credit);
    int64_t n_right = 0;
    while (n_right < n_guesses && right_at(said + n_right))
      ++n_right;
    if (n_guesses > 0) {
      pace.note(n_guesses, n_right);
      ++out.n_drafts;
      out.n_drafted += n_guesses;
    }
    const double time = n_guesses == 0 ? 1 : costs.with[static_cast<size_t>(n_guesses - 1)];
    credit += credit_a_step * time - (time - 1) + static_cast<double>(n_right);
    out.time += time;
    said += 1 + n_right;
  }
  return out;
}

Outcome run(const World& world, int64_t n, double credit_a_step = 1e9) {
  return run(world, n, credit_a_step, [&](int64_t i) {
    return random_uniform(7, 1, static_cast<uint64_t>(i)) < world.right;
  });
}

TEST(Acceptance, IsAMeanAtFirstAndForgetsLater) {
  Acceptance rate(0.5, 0.25);
  EXPECT_EQ(rate.rate(), 0.5);
  rate.note(3, 3);
  EXPECT_DOUBLE_EQ(rate.rate(), (2 * 0.5 + 2) / 4 * 0.75 + 0.25) << "the third: a quarter";
  const double before = rate.rate();
  rate.note(5, 1);
  EXPECT_DOUBLE_EQ(rate.rate(), (before * 0.75 + 0.25) * 0.75) << "one right, one wrong, no more";
  rate.note(0, 0);
  EXPECT_DOUBLE_EQ(rate.rate(), (before * 0.75 + 0.25) * 0.75);
}

TEST(DraftPace, BadGuessesCostLittle) {
  for (const double row : {0.01, 0.05, 0.3, 1.0}) {
    for (const double guess : {0.0, 0.1, 0.5, 1.0}) {
      for (const double prior : {0.5, 0.7}) {
        const World world{.row = row, .guess = guess, .prior = prior, .weight = 0.125};
        const Outcome out = run(world, 400, 0.02);
        EXPECT_LT(out.time, 400 * 1.03 + 2) << row << " a row, " << guess << " a guess";
        // In the long run next to nothing, and never quite given up.
        const Outcome more = run(world, 4000, 0.02);
        EXPECT_LT(more.time - out.time, 3600 * (1 + 2.1 * (row + guess) / 64));
        EXPECT_GT(more.n_drafts, out.n_drafts + 30);
        EXPECT_EQ(more.n_drafted - out.n_drafted, more.n_drafts - out.n_drafts) << "one each";
      }
    }
  }
}

TEST(DraftPace, GoodGuessesPay) {
  const auto speed = [](const World& world) { return 2000 / run(world, 2000).time; };
  EXPECT_GT(speed({.row = 0.05, .right = 1}), 7.5) << "17 tokens in 1.8 steps: 9.4";
  EXPECT_GT(speed({.row = 0.05, .guess = 0.1, .right = 0.8, .weight = 0.125}), 1.85)
      << "at best 5 guesses, 3.7 tokens in 1.75 steps: 2.1";
  EXPECT_GT(speed({.row = 0.05, .guess = 0.1, .right = 0.5, .weight = 0.125}), 1.2);
  EXPECT_GT(speed({.row = 0.3, .guess = 0.9, .right = 1, .weight = 0.125}), 0.97)
      << "1.2 steps a guess: nothing to win";
}

TEST(DraftPace, IsNeverMuchWorseThanTheBetterOfPlainAndGuessing) {
  for (const double row : {0.02, 0.06, 0.2, 0.6}) {
    for (const double guess : {0.0, 0.05, 0.2, 0.6}) {
      for (const double right : {0.05, 0.2, 0.4, 0.6, 0.8, 0.95}) {
        const World world{.row = row, .guess = guess, .right = right, .weight = 0.125};
        const Outcome out = run(world, 3000, 0.02);
        double best = 1;
        const DraftCosts costs = world.costs();
        double tokens = 1, power = 1;
        for (const double with : costs.with) {
          power *= right;
          tokens += power;
          best = std::max(best, tokens / with);
        }
        const double speed = 3000 / out.time;
        EXPECT_GT(speed, 0.97) << row << ' ' << guess << ' ' << right;
        EXPECT_GT(speed, 0.8 * best) << row << ' ' << guess << ' ' << right;
      }
    }
  }
}

TEST(DraftPace, FollowsATextThatBeginsAndEndsToQuote) {
  const World world{.row = 0.05};
  const auto quotes = [](int64_t i) { return i / 300 % 2 == 1; };
  const Outcome out = run(world, 3000, 1e9, quotes);
  EXPECT_LT(out.time, 1500 * 1.01 + 5 * (64 + 300 / 8.0));
}

TEST(DraftPace, TrialsStayWithinTheCredit) {
  // A trial needs a long text computed first, each time: more than can ever come back.
  const World world{.row = 0.05, .guess = 0.1, .prior = 0.1, .weight = 0.125, .catch_up = 5};
  DraftPace pace(world.prior, world.weight);
  EXPECT_EQ(pace.next(world.costs(), 5.1), 0) << "5.15 steps";
  EXPECT_EQ(pace.next(world.costs(), 5.2), 1);
  EXPECT_EQ(pace.next(world.costs(), 5.2), 0) << "then a pause";
  EXPECT_EQ(pace.next(world.costs(), 5.2), 1);
  // Paid once, it must come back within the answer.
  DraftCosts costs = world.costs();
  costs.catch_up = 10;
  DraftPace good(0.9, 0.125);
  EXPECT_GT(good.next(costs, 0), 3);
  costs.tokens_left = 10;
  EXPECT_EQ(good.next(costs, 0), 0);
}

TEST(DraftPace, OnlyAPartOfTheStepWins) {
  // One answer of eight guesses: the others wait for it.
  DraftCosts costs = World{.row = 0.02}.costs();
  DraftPace alone(0.6, 0.125), among(0.6, 0.125);
  const int64_t n = alone.next(costs, 0);
  costs.share = 1.0 / 8;
  EXPECT_GT(n, among.next(costs, 0));
  costs.share = 1.0 / 64;
  EXPECT_EQ(among.next(costs, 0), 0);
}

}  // namespace
}  // namespace qw
