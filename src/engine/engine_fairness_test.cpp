// Turns between clients as the engine keeps them: by what was computed, answers and all.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>

#include "engine/engine.h"
#include "engine/fake_model.h"

namespace qw {
namespace {

/// An engine, and in which order the requests of clients end.
class Race {
 public:
  explicit Race(int64_t n_slots, int64_t ctx = 256, int64_t kv_tokens = 0)
      : engine_(model_, nullptr, options_of(n_slots, ctx, kv_tokens)) {}

  /// A request of a prompt that begins as `prefix` says and as no other goes on.
  void add(char client, int64_t n_new, const std::vector<int32_t>& prefix = {},
           const GenerationConfig& config = {}, int64_t n_prompt = 5) {
    Request request;
    request.client = std::string(1, client);
    request.prompt = prefix;
    ++n_added_;
    for (int64_t i = 0; i < n_prompt; ++i) {
      const uint64_t bits = random_bits(7, n_added_, static_cast<uint64_t>(i));
      request.prompt.push_back(static_cast<int32_t>(bits % 50));
    }
    request.config = config;
    request.config.max_new_tokens = n_new;
    if (config.eos_token_id.empty()) request.config.ignore_eos = true;
    clients_[engine_.submit(std::move(request))] = client;
  }
  void step() {
    for (const Event& event : engine_.step()) {
      if (event.kind == Event::Kind::kRequest) ended_ += clients_.at(event.request);
    }
  }
  /// Until all have ended: whose did, in order.
  std::string run() {
    while (!engine_.idle())
      step();
    return ended_;
  }
  /// Until so many of this client have ended: how many of the others had.
  int64_t n_before(char client, int64_t n) {
    while (std::ranges::count(ended_, client) < n)
      step();
    return std::ssize(ended_) - n;
  }
  const std::string& ended() const { return ended_; }

 private:
  static EngineOptions options_of(int64_t n_slots, int64_t ctx, int64_t kv_tokens) {
    EngineOptions options;
    options.n_slots = n_slots;
    options.ctx = ctx;
    options.kv_tokens = kv_tokens;
    options.check_integrity = true;
    return options;
  }

  FakeModel model_;
  Engine engine_;
  uint64_t n_added_ = 0;
  std::map<RequestId, char> clients_;
  std::string ended_;
};

TEST(EngineFairness, AHundredRequestsDoNotKeepOneOfAnotherBehind) {
  const std::vector<int32_t> system = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  for (const int64_t n_slots : {1, 8}) {
    for (const bool is_common : {false, true}) {
      Race race(n_slots);
      for (int i = 0; i < 100; ++i)
        race.add('A', 30, system);
      race.n_before('A', 10);
      race.add('B', 30, is_common ? system : std::vector<int32_t>());
      // Those under way, those that begin beside it, and one that is ahead by less than twice the
      // 16 tokens that are kept.
      EXPECT_LE(race.n_before('B', 1), 10 + n_slots + (n_slots - 1) + 1) << race.ended();
    }
  }
}

TEST(EngineFairness, AnswersOfOneRequestCountOneByOne) {
  Race race(1, 256, 8192);
  race.add('Z', 100);
  race.step();
  GenerationConfig many;
  many.num_return_sequences = 16;
  many.do_sample = true;
  for (int i = 0; i < 5; ++i)
    race.add('X', 50, {}, many);
  for (int i = 0; i < 60; ++i)
    race.add('Y', 50);
  // 16 answers and a prompt are 805 tokens, one is 55.
  EXPECT_EQ(race.run().substr(0, 34),
            "ZX" + std::string(15, 'Y') + "X" + std::string(15, 'Y') + "X");
}

TEST(EngineFairness, AnswersThatEndEarlyCostWhatTheyTook) {
  Race race(1);
  race.add('Z', 100);
  race.step();
  GenerationConfig short_lived;
  for (int32_t id = 0; id < 50; ++id)
    short_lived.eos_token_id.push_back(id);
  for (int i = 0; i < 3; ++i)
    race.add('A', 200, {}, short_lived);
  for (int i = 0; i < 40; ++i)
    race.add('B', 60);
  EXPECT_EQ(race.run().substr(0, 5), "ZABAA")
      << "65 tokens of B's first are more than 12 of A's two";
}

TEST(EngineFairness, AnswersOfUnlimitedLengthLeaveTheirClientItsShare) {
  Race race(2, 256, 4096);
  GenerationConfig short_lived;
  short_lived.eos_token_id = {0, 1, 2};  // most answers end after some 17 tokens
  for (int i = 0; i < 60; ++i) {
    race.add('A', 200, {}, short_lived);
    race.add('B', 16);
  }
  race.n_before('B', 30);
  EXPECT_GE(std::ranges::count(race.ended(), 'A'), 15) << race.ended();
}

TEST(EngineFairness, WhoMayNotPassOthersPassesOwnRequestsOnly) {
  for (const bool passes_others : {false, true}) {
    FakeModel model;
    EngineOptions options;
    options.ctx = 64;
    options.n_slots = 1;
    Engine engine(model, nullptr, options);
    std::map<RequestId, std::string> names;
    const auto add = [&](const std::string& client, int64_t priority) {
      Request request;
      request.prompt = {1, 2, static_cast<int32_t>(names.size())};
      request.client = client;
      request.priority = priority;
      request.passes_others = passes_others;
      request.config.max_new_tokens = 5;
      request.config.ignore_eos = true;
      names[engine.submit(std::move(request))] = client + std::to_string(priority);
    };
    add("z", 0);
    engine.step();
    add("b", 0);
    add("a", 0);
    add("a", -1000);
    std::string order;
    while (!engine.idle()) {
      for (const Event& event : engine.step()) {
        if (event.kind == Event::Kind::kRequest) order += names.at(event.request) + " ";
      }
    }
    EXPECT_EQ(order, passes_others ? "z0 a-1000 b0 a0 " : "z0 b0 a-1000 a0 ");
  }
}

}  // namespace
}  // namespace qw
