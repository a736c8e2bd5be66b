// Clients share the scheduler by work: what others get before one whose turn it is is bounded.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "engine/scheduler.h"

namespace qw {
namespace {

/// A request of a made load.
struct Wish {
  int64_t client = 0;
  std::vector<int32_t> prompt;
  int64_t n_answer = 1;

  int64_t size() const { return std::ssize(prompt) + n_answer; }
};

/// A scheduler that serves wishes, and what every client had to wait for.
class Market {
 public:
  explicit Market(const SchedulerOptions& options) : scheduler_(options) {}

  void add(const Wish& wish) {
    ++n_added_;
    const Turn turn{"client " + std::to_string(wish.client), 0, true, wish.size()};
    const UnitId unit = scheduler_.add_unit(n_added_, turn);
    Sequence spec;
    spec.tokens = wish.prompt;
    spec.prompt_len = std::ssize(wish.prompt);
    spec.lineage = n_added_;
    const SeqId seq = scheduler_.add_sequence(unit, spec);
    served_.emplace(seq, Served{wish, unit});
    ++n_waiting_[wish.client];
    largest_ = std::max(largest_, wish.size());
  }
  /// One step; the clients whose requests it begins, in order.
  std::vector<int64_t> step() {
    const StepPlan step = scheduler_.schedule();
    QW_CHECK(!step.chunks.empty(), "work and no step");
    std::vector<int64_t> begun;
    for (const StepPlan::Chunk& chunk : step.chunks) {
      Served& served = served_.at(chunk.seq);
      if (served.has_begun) continue;
      served.has_begun = true;
      begin(served.wish.client, served.wish.size() - chunk.begin);
      begun.push_back(served.wish.client);
    }
    scheduler_.commit(step);
    scheduler_.check_integrity();
    for (const WantedRow& row : step.rows) {
      Served& served = served_.at(row.seq);
      if (--served.wish.n_answer >= 0) {
        scheduler_.append(row.seq, 1'000'000 + static_cast<int32_t>(row.seq));
        continue;
      }
      scheduler_.remove_unit(served.unit);
      served_.erase(row.seq);
    }
    return begun;
  }
  bool idle() const { return scheduler_.idle(); }
  bool waits(int64_t client) const { return n_waiting_.at(client) > 0; }
  const Scheduler& scheduler() const { return scheduler_; }

  int64_t work_of(int64_t client) const {
    const auto it = work_.find(client);
    return it == work_.end() ? 0 : it->second;
  }
  /// The most that began of others who had had more, while a client waited for its next turn.
  int64_t worst() const { return worst_; }
  int64_t n_out_of_turn() const { return n_out_of_turn_; }

 private:
  struct Served {
    Wish wish;
    UnitId unit = 0;
    bool has_begun = false;
  };

  void begin(int64_t client, int64_t n_tokens) {
    bool out_of_turn = false;
    for (const auto& [other, n] : n_waiting_) {
      if (other == client || n == 0 || work_[other] >= work_[client]) continue;
      worst_ = std::max(worst_, seen_[other] += n_tokens);
      out_of_turn = true;
    }
    n_out_of_turn_ += out_of_turn ? 1 : 0;
    seen_[client] = 0;
    --n_waiting_[client];
    work_[client] += n_tokens;
  }

  Scheduler scheduler_;
  int64_t n_added_ = 0, largest_ = 0, worst_ = 0, n_out_of_turn_ = 0;
  std::map<SeqId, Served> served_;
  std::map<int64_t, int64_t> n_waiting_, work_, seen_;
};

/// Draws wishes.
class Load {
 public:
  explicit Load(uint64_t seed) : seed_(seed) {}

  int64_t below(int64_t n) {
    return static_cast<int64_t>(random_bits(seed_, 1, next_++) % static_cast<uint64_t>(n));
  }
  /// Tokens that nobody else has.
  std::vector<int32_t> fresh(int64_t n) {
    std::vector<int32_t> out;
    for (; n > 0; --n)
      out.push_back(static_cast<int32_t>(token_++));
    return out;
  }
  Wish wish(int64_t client, std::vector<int32_t> prefix, int64_t n_more, int64_t n_answer) {
    const std::vector<int32_t> rest = fresh(n_more);
    prefix.insert(prefix.end(), rest.begin(), rest.end());
    return {client, std::move(prefix), n_answer};
  }

 private:
  uint64_t seed_, next_ = 0;
  int64_t token_ = 0;
};

SchedulerOptions options_of(int64_t n_pages, int64_t n_slots) {
  SchedulerOptions options;
  options.n_pages = n_pages;
  options.page_tokens = 4;
  options.max_tokens = 64;
  options.max_families = n_slots;
  options.keep_prefixes = true;
  return options;
}

// Requests that share a prefix pass others for it, but not the request of a client that has had
// less: whatever they share, however many there are.
TEST(SchedulerFairness, ManyRequestsWithACommonPrefixDoNotKeepOneOfAnotherBehind) {
  for (const int64_t n_prefix : {0, 1, 3, 4, 50, 120}) {
    for (const int64_t n_slots : {1, 8}) {
      for (const bool is_common : {false, true}) {
        Load load(1);
        Market market(options_of(1000, n_slots));
        const std::vector<int32_t> prefix = load.fresh(n_prefix);
        for (int i = 0; i < 300; ++i)
          market.add(load.wish(0, prefix, 10, 20));
        while (market.work_of(0) < 3000)
          market.step();
        market.add(load.wish(1, is_common ? prefix : std::vector<int32_t>(), 20, 20));
        while (market.waits(1))
          market.step();
        // Until it is ahead by twice what is kept, where that is a page, and by what is under way.
        const int64_t n_worth = n_prefix < 4 ? 0 : n_prefix;
        EXPECT_LE(market.worst(), 2 * n_worth + 30)
            << n_prefix << " tokens, " << n_slots << " slots";
      }
    }
  }
}

// All ask for more than they get. What they are given stays equal, to a request and what the prefix
// of one is worth.
TEST(SchedulerFairness, ClientsThatAskForMuchGetEqualShares) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    Load load(seed);
    const int64_t n_clients = 2 + load.below(5), n_slots = 1 + load.below(6);
    Market market(options_of(2000, n_slots));
    int64_t largest = 0, longest_prefix = 0;
    const std::vector<int32_t> common = load.fresh(load.below(30));
    for (int64_t client = 0; client < n_clients; ++client) {
      const std::vector<int32_t> prefix = load.below(3) == 0 ? common : load.fresh(load.below(60));
      longest_prefix = std::max<int64_t>(longest_prefix, std::ssize(prefix));
      const int64_t n_more = 1 + load.below(20), n_answer = 1 + load.below(30);
      for (int64_t left = 4000; left > 0;) {
        const Wish wish =
            load.wish(client, prefix, 1 + load.below(n_more), 1 + load.below(n_answer));
        left -= wish.size() - std::ssize(prefix);
        largest = std::max(largest, wish.size());
        market.add(wish);
      }
    }
    const auto all_wait = [&] {
      for (int64_t client = 0; client < n_clients; ++client) {
        if (!market.waits(client)) return false;
      }
      return true;
    };
    while (all_wait()) {
      market.step();
      int64_t least = market.work_of(0), most = least;
      for (int64_t client = 1; client < n_clients; ++client) {
        least = std::min(least, market.work_of(client));
        most = std::max(most, market.work_of(client));
      }
      ASSERT_LE(most - least, largest + 2 * longest_prefix) << "seed " << seed;
    }
    EXPECT_EQ(market.scheduler().n_preemptions(), 0) << "the test is of turns alone";
  }
}

// The prefixes of all do not fit into the cache, so they pass each other for what is kept: by a
// bounded amount of work, for each request that waits.
TEST(SchedulerFairness, WhereTheCacheIsShortOthersPassByABoundedAmount) {
  int64_t n_out_of_turn = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    Load load(seed);
    const int64_t n_clients = 3 + load.below(10), n_slots = 1 + load.below(2);
    SchedulerOptions options = options_of(60 + load.below(40), n_slots);
    options.pass_tokens = load.below(200);
    Market market(options);
    int64_t largest = 0, longest_prefix = 0;
    std::vector<Wish> wishes;
    for (int64_t client = 0; client < n_clients; ++client) {
      const std::vector<int32_t> prefix = load.fresh(20 + load.below(60));
      longest_prefix = std::max<int64_t>(longest_prefix, std::ssize(prefix));
      for (int64_t i = 20 + load.below(40); i > 0; --i)
        wishes.push_back(load.wish(client, prefix, 1 + load.below(10), 1 + load.below(10)));
    }
    while (!wishes.empty()) {
      std::swap(wishes[static_cast<size_t>(load.below(std::ssize(wishes)))], wishes.back());
      largest = std::max(largest, wishes.back().size());
      market.add(wishes.back());
      wishes.pop_back();
    }
    while (!market.idle())
      market.step();
    // By the limit, or those that are ahead by no more than what is kept for them.
    const int64_t of_each = options.pass_tokens + 2 * longest_prefix + largest;
    EXPECT_LE(market.worst(), (n_clients - 1) * of_each) << "seed " << seed;
    n_out_of_turn += market.n_out_of_turn();
  }
  EXPECT_GT(n_out_of_turn, 1000) << "the test must reach it";
}

// Others come without end, each new, each with a prefix that is kept.
TEST(SchedulerFairness, NobodyWaitsForEverBehindThoseThatKeepComing) {
  for (const int64_t n_pages : {60, 2000}) {
    Load load(3);
    SchedulerOptions options = options_of(n_pages, 1);
    options.max_overtakes = 50;
    Market market(options);
    const std::vector<int32_t> prefix = load.fresh(80);
    int64_t n_clients = 0;
    const auto come = [&] { market.add(load.wish(++n_clients, prefix, 3, 3)); };
    for (int i = 0; i < 5; ++i)
      come();
    market.step();
    const int64_t patient = 1'000'000;
    market.add(load.wish(patient, {}, 90, 3));
    for (int64_t n_before = 0; market.waits(patient); come()) {
      n_before += std::ssize(market.step());
      ASSERT_LT(n_before, 60) << n_pages << " pages";
    }
  }
}

}  // namespace
}  // namespace qw
