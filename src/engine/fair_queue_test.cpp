#include "engine/fair_queue.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "base/error.h"

namespace qw {
namespace {

/// A line whose requests take what they pay, one after the other.
class Line {
 public:
  int64_t enter(const std::string& client, int64_t n_tokens, int64_t priority = 0,
                bool passes_others = true) {
    queue_.enter(++last_, {client, priority, passes_others, n_tokens});
    of_[last_] = {client, n_tokens};
    return last_;
  }
  /// The request whose turn it is.
  int64_t due() const {
    for (const FairQueue::Place& place : queue_.first(1000, [](int64_t) { return true; })) {
      if (place.client == 0 && place.is_level) return place.id;
    }
    QW_CHECK(false, "nobody waits");
    return 0;
  }
  int64_t begin(int64_t id, int64_t n_saved = 0) {
    queue_.begin(id, n_saved);
    return id;
  }
  int64_t begin_due() { return begin(due()); }
  void end(int64_t id) {
    queue_.take(id, of_.at(id).second);
    queue_.leave(id);
  }
  /// Serves the request whose turn it is.
  int64_t serve() {
    const int64_t id = begin_due();
    end(id);
    return id;
  }
  std::string serve_client() { return of_.at(serve()).first; }
  FairQueue& queue() { return queue_; }
  std::map<int64_t, int64_t> passed() const {
    std::map<int64_t, int64_t> out;
    for (const FairQueue::Place& place : queue_.first(1000, [](int64_t) { return true; }))
      out[place.id] = place.n_passed;
    return out;
  }

 private:
  FairQueue queue_;
  int64_t last_ = 0;
  std::map<int64_t, std::pair<std::string, int64_t>> of_;
};

TEST(FairQueue, OneClientIsServedFirstComeFirstServed) {
  Line line;
  for (int i = 0; i < 20; ++i)
    line.enter("a", 1 + 37 * i % 100);
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(line.serve(), i + 1);
}

TEST(FairQueue, AClientThatAsksForMuchKeepsNobodyBehindIt) {
  Line line;
  for (int i = 0; i < 100; ++i)
    line.enter("greedy", 1000);
  for (int i = 0; i < 3; ++i)
    line.serve();
  const int64_t modest = line.enter("modest", 1000);
  EXPECT_EQ(line.serve(), modest);
}

// Whatever of its own requests a client begins first, the place of others is the same.
TEST(FairQueue, AClientsOwnOrderMovesNobodyElse) {
  Line line;
  for (int i = 0; i < 100; ++i)
    line.enter("greedy", 1000);
  for (const int64_t id : {100, 7, 50})
    line.end(line.begin(id));
  const int64_t modest = line.enter("modest", 1000);
  EXPECT_EQ(line.serve(), modest);
}

TEST(FairQueue, ClientsGetEqualSharesOfTokensWhateverTheirRequests) {
  Line line;
  for (int i = 0; i < 400; ++i)
    line.enter("short", 100);
  for (int i = 0; i < 40; ++i)
    line.enter("long", 1000);
  std::map<std::string, int64_t> tokens;
  for (int i = 0; i < 200; ++i) {
    const std::string client = line.serve_client();
    tokens[client] += client == "short" ? 100 : 1000;
  }
  EXPECT_NEAR(static_cast<double>(tokens["short"]), static_cast<double>(tokens["long"]), 1000);
}

TEST(FairQueue, WhoAsksForNothingSavesNothingUp) {
  Line line;
  for (int i = 0; i < 100; ++i)
    line.enter("busy", 100);
  line.enter("other", 100);
  for (int i = 0; i < 50; ++i)
    line.serve();
  for (int i = 0; i < 40; ++i)
    line.enter("other", 100);
  std::map<std::string, int> n;
  for (int i = 0; i < 20; ++i)
    ++n[line.serve_client()];
  EXPECT_NEAR(n["busy"], 10, 1);
}

TEST(FairQueue, TokensThatWereNotTakenAreGivenBackToThoseInLine) {
  Line line;
  const int64_t open_ended = line.enter("a", 2000);
  const int64_t next = line.enter("a", 2000), next_but_one = line.enter("a", 2000);
  for (int i = 0; i < 30; ++i)
    line.enter("b", 60);
  EXPECT_EQ(line.begin_due(), open_ended);
  EXPECT_NE(line.due(), next) << "it may take all that it has paid for";
  line.queue().take(open_ended, 5);
  line.queue().leave(open_ended);
  line.serve();  // of b, who has had nothing
  EXPECT_EQ(line.begin_due(), next);
  line.queue().take(next, 5);
  line.queue().leave(next);
  EXPECT_EQ(line.due(), next_but_one);
}

TEST(FairQueue, TokensBeyondThoseThatWerePaidForCountAsTheyAreComputed) {
  Line line;
  const int64_t endless = line.enter("a", 10);
  line.begin(endless);
  line.enter("a", 10);
  line.queue().take(endless, 9);
  const int64_t other = line.enter("b", 500);
  for (int i = 0; i < 100; ++i)
    line.queue().take(endless, 10);
  EXPECT_EQ(line.serve(), other);
  const int64_t again = line.enter("b", 500);
  EXPECT_EQ(line.serve(), again) << "a has had 1,009, b 500";
  line.enter("b", 500);
  EXPECT_EQ(line.serve_client(), "b") << "1,000";
  line.enter("b", 500);
  EXPECT_EQ(line.serve_client(), "a");
}

TEST(FairQueue, WhatIsThereAlreadyCostsNothing) {
  Line line;
  for (int i = 0; i < 10; ++i) {
    line.enter("kept", 1000);
    line.enter("new", 1000);
  }
  int n_kept = 0;
  for (int i = 0; i < 8; ++i) {
    const int64_t id = line.due();
    const bool is_kept = id % 2 == 1;
    n_kept += is_kept ? 1 : 0;
    line.begin(id, is_kept ? 900 : 0);
  }
  EXPECT_EQ(n_kept, 7);
}

TEST(FairQueue, APriorityMovesForwardButNobodyWaitsForEver) {
  Line line;
  const int64_t low = line.enter("low", 500, 1);
  const int64_t high = line.enter("high", 500);
  EXPECT_EQ(line.serve(), high);
  // Others keep coming, each before the last has gone.
  int n_before = 0;
  line.enter("high", 500);
  while (true) {
    line.enter("high", 500);
    if (line.serve() == low) break;
    ASSERT_LT(++n_before, 1000);
  }
  EXPECT_NEAR(n_before, FairQueue::kPriorityTokens / 500, 2);
  // That one of low priority had its turn sends nobody else's to the back.
  const int64_t other = line.enter("other", 500, 1), normal = line.enter("third", 500);
  for (int64_t id = line.serve(); id != normal; id = line.serve())
    ASSERT_NE(id, other);
}

TEST(FairQueue, AClientsOwnRequestsGoByPriorityAndAge) {
  Line line;
  const int64_t batch = line.enter("a", 500, 1), plain = line.enter("a", 500),
                urgent = line.enter("a", 500, -3, false);
  EXPECT_EQ(line.serve(), urgent);
  EXPECT_EQ(line.serve(), plain);
  int n_before = 0;
  for (line.enter("a", 500); line.due() != batch; ++n_before) {
    line.serve();
    line.enter("a", 500);
    ASSERT_LT(n_before, 1000);
  }
  EXPECT_NEAR(n_before, FairQueue::kPriorityTokens / 500, 4);
}

TEST(FairQueue, OneThatMayNotPassOthersMovesBackOnly) {
  Line line;
  for (int i = 0; i < 10; ++i)
    line.enter("pushes", 100, -1000, false);
  line.serve();
  const int64_t other = line.enter("other", 100);
  EXPECT_EQ(line.serve(), other);
  const int64_t yields = line.enter("yields", 100, 1, false);
  for (int i = 0; i < 9; ++i)
    EXPECT_NE(line.serve(), yields);
  EXPECT_EQ(line.serve(), yields);

  line.enter("a", 100);
  const int64_t urgent = line.enter("urgent", 100, -1);
  EXPECT_EQ(line.serve(), urgent) << "where it may";
}

TEST(FairQueue, WhoLetsOthersGoFirstSavesNothingUp) {
  Line line;
  line.enter("patient", 100, 1000);
  for (int i = 0; i < 200; ++i)
    line.enter("busy", 100);
  for (int i = 0; i < 100; ++i)
    EXPECT_EQ(line.serve_client(), "busy");
  for (int i = 0; i < 100; ++i)
    line.enter("patient", 100);
  std::map<std::string, int> n;
  for (int i = 0; i < 20; ++i)
    ++n[line.serve_client()];
  EXPECT_NEAR(n["busy"], 10, 1);
}

TEST(FairQueue, SaysHowMuchBeganOutOfTurn) {
  Line line;
  const int64_t a = line.enter("a", 100), b = line.enter("b", 100), c = line.enter("c", 100);
  const int64_t a2 = line.enter("a", 30), a3 = line.enter("a", 40), b2 = line.enter("b", 7);
  line.begin(a);  // all are equal
  const std::map<int64_t, int64_t> none = {{b, 0}, {c, 0}, {a2, 0}, {a3, 0}, {b2, 0}};
  EXPECT_EQ(line.passed(), none);
  line.begin(a3, 10);  // 30 tokens, before b and c, which have had nothing
  std::map<int64_t, int64_t> want = {{b, 0}, {c, 0}, {a2, 30}, {b2, 0}};
  EXPECT_EQ(line.passed(), want);
  line.begin(b);
  want = {{c, 0}, {a2, 30}, {b2, 30}};
  EXPECT_EQ(line.passed(), want) << "c has seen it as well";
  line.begin(b2);
  EXPECT_EQ(line.passed(), (std::map<int64_t, int64_t>{{c, 0}, {a2, 37}}));
  line.begin(c);
  EXPECT_EQ(line.passed(), (std::map<int64_t, int64_t>{{a2, 0}}));
}

TEST(FairQueue, ListsTheFirstOfEveryClientAndThoseThatCameFirst) {
  Line line;
  for (int i = 0; i < 10; ++i)
    line.enter("a", 100);  // 1 to 10
  line.begin(1);
  line.enter("b", 100);  // 11
  line.enter("b", 100);  // 12
  line.enter("c", 100);  // 13
  const auto ids = [&](int64_t n, int64_t held) {
    std::vector<int64_t> out;
    for (const FairQueue::Place& place :
         line.queue().first(n, [held](int64_t id) { return id != held; }))
      out.push_back(place.id);
    return out;
  };
  EXPECT_EQ(ids(2, 0), (std::vector<int64_t>{11, 13})) << "those that have had least";
  EXPECT_EQ(ids(5, 0), (std::vector<int64_t>{2, 3, 4, 11, 13}));
  EXPECT_EQ(ids(3, 11), (std::vector<int64_t>{2, 12, 13}));
  EXPECT_EQ(ids(100, 13).size(), 11u);
}

TEST(FairQueue, WhoGivesUpWaitingOwesNothing) {
  Line line;
  const int64_t a = line.enter("a", 1000);
  line.enter("b", 10);
  line.queue().leave(a);
  const int64_t again = line.enter("a", 1000);
  line.serve();
  EXPECT_EQ(line.serve(), again);
  EXPECT_EQ(line.queue().n_open(), 0);
  EXPECT_EQ(line.queue().n_clients_waiting(), 0);
}

TEST(FairQueue, ForgetsClientsWithoutForgettingWhoOwesMost) {
  Line line;
  const int64_t always = line.enter("always", 1);
  line.begin(always);
  const int64_t owes = line.enter("owes", 1'000'000);
  line.end(line.begin(owes));
  for (int i = 0; i < 30'000; ++i) {
    line.enter(fmt::format("c{}", i), 10);
    line.serve();
  }
  EXPECT_LT(line.queue().n_clients(), 10'100u);
  line.enter("owes", 1);
  for (int i = 0; i < 100; ++i) {
    line.enter("other", 100);
    EXPECT_EQ(line.serve_client(), "other");
  }
}

}  // namespace
}  // namespace qw
