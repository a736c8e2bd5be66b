#include "engine/fair_queue.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "base/rng.h"

namespace qw {
namespace {

struct Waiting {
  FairQueue::Place place;
  int number = 0;
};

/// Takes the request whose turn it is.
Waiting take_next(std::vector<Waiting>& line, FairQueue& queue) {
  auto first = line.begin();
  for (auto it = line.begin(); it != line.end(); ++it) {
    if (it->place.order < first->place.order) first = it;
  }
  const Waiting next = *first;
  line.erase(first);
  queue.begin(next.place);
  return next;
}

TEST(FairQueue, OneClientIsServedFirstComeFirstServed) {
  FairQueue queue;
  std::vector<Waiting> line;
  for (int i = 0; i < 20; ++i)
    line.push_back({queue.enter("a", 0, 1 + 37 * i % 100), i});
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(take_next(line, queue).number, i);
}

TEST(FairQueue, AClientThatAsksForMuchKeepsNobodyBehindIt) {
  FairQueue queue;
  std::vector<Waiting> line;
  for (int i = 0; i < 100; ++i)
    line.push_back({queue.enter("greedy", 0, 1000), i});
  for (int i = 0; i < 3; ++i)
    take_next(line, queue);
  line.push_back({queue.enter("modest", 0, 1000), 1000});
  int n_before = 0;
  while (take_next(line, queue).number != 1000)
    ++n_before;
  EXPECT_LE(n_before, 1);
}

TEST(FairQueue, ClientsGetEqualSharesOfTokensWhateverTheirRequests) {
  FairQueue queue;
  std::vector<Waiting> line;
  for (int i = 0; i < 400; ++i)
    line.push_back({queue.enter("short", 0, 100), 0});
  for (int i = 0; i < 40; ++i)
    line.push_back({queue.enter("long", 0, 1000), 1});
  std::map<int, int64_t> tokens;
  for (int i = 0; i < 200; ++i) {
    const Waiting next = take_next(line, queue);
    tokens[next.number] += next.place.n_tokens;
  }
  EXPECT_NEAR(static_cast<double>(tokens[0]), static_cast<double>(tokens[1]), 1000);
}

TEST(FairQueue, PriorityMovesForwardButNobodyWaitsForEver) {
  FairQueue queue;
  std::vector<Waiting> line = {{queue.enter("low", 1, 500), 0}};
  line.push_back({queue.enter("high", 0, 500), 1});
  EXPECT_EQ(take_next(line, queue).number, 1);
  // Others keep coming, each before the last has gone.
  int n_before = 0;
  line.push_back({queue.enter("high", 0, 500), 1});
  while (true) {
    line.push_back({queue.enter("high", 0, 500), 1});
    if (take_next(line, queue).number == 0) break;
    ASSERT_LT(++n_before, 1000);
  }
  EXPECT_NEAR(n_before, FairQueue::kPriorityTokens / 500, 2);
  // That one of low priority had its turn sends nobody else's to the back.
  const FairQueue::Place low = queue.enter("other", 1, 500), normal = queue.enter("third", 0, 500);
  EXPECT_LT(normal.order, low.order);
}

TEST(FairQueue, TokensThatWereNotTakenAreGivenBack) {
  FairQueue queue;
  const FairQueue::Place first = queue.enter("a", 0, 30'000);
  queue.begin(first);
  queue.end(first, 100);
  EXPECT_EQ(queue.enter("a", 0, 100).start, first.start + 100);
}

TEST(FairQueue, ForgetsClientsWithoutForgettingWhatTheyOwe) {
  FairQueue queue;
  const FairQueue::Place owed = queue.enter("owes", 0, 1'000'000);
  for (int i = 0; i < 30'000; ++i)
    queue.begin(queue.enter(fmt::format("c{}", i), 0, 10));
  EXPECT_EQ(queue.enter("owes", 0, 1).start, owed.start + 1'000'000);
}

}  // namespace
}  // namespace qw
