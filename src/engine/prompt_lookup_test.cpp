// Prompt lookup: what it guesses, when it pauses, and that no guess ever changes an answer.
#include "engine/prompt_lookup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "engine/engine.h"
#include "engine/fake_model.h"

namespace qw {
namespace {

using testing::ElementsAre;
using Ids = std::vector<int32_t>;

TEST(LookUp, TakesTheLongestEndAndTheLatestOfEquals) {
  const Ids history = {1, 2, 3, 9, 2, 3, 8, 3, 7, 1, 2, 3};
  EXPECT_THAT(look_up(history, 8, 2), ElementsAre(9, 2)) << "1 2 3 stood at the start";
  EXPECT_THAT(look_up(history, 2, 2), ElementsAre(8, 3)) << "2 3 stood there last";
  EXPECT_THAT(look_up(history, 1, 3), ElementsAre(7, 1, 2));
  EXPECT_THAT(look_up(Ids{1, 2, 3}, 8, 4), ElementsAre());
  EXPECT_THAT(look_up(Ids{5}, 8, 4), ElementsAre());
  EXPECT_THAT(look_up(history, 8, 0), ElementsAre());
}

TEST(LookUp, GoesOnWithAPeriod) {
  EXPECT_THAT(look_up(Ids{4, 5, 6, 5, 6}, 8, 5), ElementsAre(5, 6, 5, 6, 5));
  EXPECT_THAT(look_up(Ids{3, 7, 7}, 8, 3), ElementsAre(7, 7, 7));
}

/// Steps that a text of n tokens takes with guesses that are all wrong (or all right).
struct Cost {
  int64_t steps = 0, drafts = 0, drafted = 0;
};
Cost cost_of(int64_t n, bool right) {
  PromptLookup lookup(8, 4);
  Cost cost;
  const Ids history = {1, 1};
  for (int64_t said = 0; said < n; ++cost.steps) {
    const auto drafted = ssize(lookup.propose(history, n - said - 1));
    cost.drafts += drafted > 0 ? 1 : 0;
    cost.drafted += drafted;
    lookup.report(drafted, right ? drafted : 0);
    said += 1 + (right ? drafted : 0);
  }
  return cost;
}

TEST(PromptLookup, WrongGuessesBecomeRareAndStayShort) {
  const Cost wrong = cost_of(1000, false);
  EXPECT_EQ(wrong.steps, 1000);
  EXPECT_LE(wrong.drafts, 23);
  EXPECT_EQ(wrong.drafted, wrong.drafts) << "one token each";
  EXPECT_LE(cost_of(100, false).drafts, 7);
  const Cost right = cost_of(1000, true);
  EXPECT_LE(right.steps, 1000 / 9 + 5);
  EXPECT_THAT(PromptLookup(8, 4).propose(Ids{1, 1}, 0), ElementsAre());
}

TEST(PromptLookup, RecoversAfterAPause) {
  PromptLookup lookup(8, 4);
  const Ids history = {1, 1, 1};
  for (int step = 0; step < 500; ++step)
    lookup.report(ssize(lookup.propose(history, 100)), 0);
  int64_t step = 0, size = 0;
  for (; step < PromptLookup::kMaxPause + 4 && size < 8; ++step) {
    size = ssize(lookup.propose(history, 100));
    lookup.report(size, size);
  }
  EXPECT_EQ(size, 8);
  lookup.report(8, 3);
  EXPECT_EQ(ssize(lookup.propose(history, 100)), 4) << "one more than was right";
}

// ---- through the engine ------------------------------------------------------------------------

constexpr int64_t kWords = 24;

std::shared_ptr<const Tokenizer> tokenizer() {
  std::vector<std::string> texts;
  for (int64_t i = 0; i < kWords; ++i)
    texts.push_back(std::string(1, static_cast<char>('a' + i)) +
                    static_cast<char>('a' + (i * 7 + 3) % kWords));
  return fake_tokenizer(texts);
}

struct Setting {
  int64_t slots = 16, kv_tokens = 4096, chunk = 64;
  bool prefix_cache = true;
};

/// A model whose text repeats itself, with words of two letters.
struct Machine {
  explicit Machine(const Setting& setting) : model(kWords + 256, 4) {
    model.habit = 8;
    EngineOptions options;
    options.ctx = 128;
    options.n_slots = setting.slots;
    options.kv_tokens = setting.kv_tokens;
    options.chunk_tokens = setting.chunk;
    options.logit_rows = 20;
    options.prefix_cache = setting.prefix_cache;
    options.check_integrity = true;
    engine = std::make_unique<Engine>(model, tokenizer(), options);
  }
  FakeModel model;
  std::unique_ptr<Engine> engine;
};

/// Greedy and sampled, and with processors that look at the history.
std::vector<Request> open_requests(int64_t n_draft) {
  std::vector<Request> out;
  for (uint64_t seed = 0; seed < 24; ++seed) {
    Request request;
    for (uint64_t i = 0; i < 3 + seed; ++i)
      request.prompt.push_back(static_cast<int32_t>(random_bits(seed, 4, i) % kWords));
    GenerationConfig& config = request.config;
    config.max_new_tokens = 20 + static_cast<int64_t>(seed * 3);
    for (int32_t byte = 0; byte < 256; ++byte)
      config.suppress_tokens.push_back(kWords + byte);
    config.seed = seed;
    config.do_sample = seed % 3 != 0;
    config.temperature = 0.4;
    config.top_k = 5;
    config.logprobs = 2;
    if (seed % 4 == 1) config.repetition_penalty = 1.02;
    if (seed % 6 == 2) config.frequency_penalty = 0.2;
    if (seed % 8 == 3) config.no_repeat_ngram_size = 9;
    if (seed % 7 == 5 && config.do_sample) config.num_return_sequences = 3;
    if (seed % 9 == 6) config.prompt_logprobs = 1;
    config.prompt_lookup_num_tokens = n_draft;
    out.push_back(std::move(request));
  }
  return out;
}

std::map<RequestId, RequestResult> run_all(Engine& engine, std::vector<Request> all) {
  std::map<RequestId, RequestResult> results;
  for (Request& request : all)
    engine.submit(std::move(request));
  while (!engine.idle()) {
    for (const Event& event : engine.step()) {
      if (event.kind == Event::Kind::kRequest) results[event.request] = *event.result;
    }
  }
  EXPECT_EQ(engine.free_pages(), engine.n_pages()) << "pages leaked";
  return results;
}

/// The same, with ends that come late in an answer: an end token, or a stop string that begins in
/// the middle of a word.
std::vector<Request> requests(int64_t n_draft) {
  static const auto whole = [] {
    Machine machine({});
    return run_all(*machine.engine, open_requests(0));
  }();
  std::vector<Request> out = open_requests(n_draft);
  for (size_t i = 0; i < out.size(); ++i) {
    const Completion& said = whole.at(i + 1).completions[0];
    const size_t at = said.ids.size() * 3 / 4;
    if (i % 4 == 0) out[i].config.stop_strings = {"zz", said.text.substr(2 * at + 1, 3)};
    if (i % 5 == 4) out[i].config.eos_token_id = {said.ids[at]};
    if (i % 10 == 9) out[i].config.min_new_tokens = 11;
  }
  return out;
}

void expect_same(const Completion& want, const Completion& got, const std::string& where) {
  EXPECT_EQ(want.ids, got.ids) << where;
  EXPECT_EQ(want.text, got.text) << where;
  EXPECT_EQ(want.finish_reason, got.finish_reason) << where;
  EXPECT_EQ(want.stop_string, got.stop_string) << where;
  ASSERT_EQ(want.logprobs.size(), got.logprobs.size()) << where;
  for (size_t t = 0; t < want.logprobs.size(); ++t) {
    EXPECT_EQ(want.logprobs[t].chosen.logprob, got.logprobs[t].chosen.logprob) << where;
    EXPECT_EQ(want.logprobs[t].top[1].id, got.logprobs[t].top[1].id) << where;
  }
}

TEST(PromptLookup, ChangesNoAnswer) {
  Machine plain({});
  const auto want = run_all(*plain.engine, requests(0));
  std::map<FinishReason, int> reasons;
  for (const auto& [id, result] : want) {
    EXPECT_EQ(result.timings.n_drafted, 0);
    for (const Completion& completion : result.completions)
      ++reasons[completion.finish_reason];
  }
  EXPECT_EQ(reasons.size(), 3u) << "end tokens, stop strings and lengths must all occur";
  int64_t accepted = 0, drafted = 0, preemptions = 0;
  for (const Setting& setting : {Setting{}, Setting{1}, Setting{16, 120}, Setting{5, 200, 3},
                                 Setting{16, 4096, 64, false}, Setting{3, 132, 17, false}}) {
    for (const int64_t n_draft : {1, 3, 16}) {
      Machine machine(setting);
      const auto got = run_all(*machine.engine, requests(n_draft));
      for (const auto& [id, result] : want) {
        const RequestResult& other = got.at(id);
        ASSERT_EQ(result.completions.size(), other.completions.size());
        for (size_t i = 0; i < result.completions.size(); ++i) {
          expect_same(result.completions[i], other.completions[i],
                      fmt::format("request {} answer {}, drafts of {}, {} slots, {} KV tokens", id,
                                  i, n_draft, setting.slots, setting.kv_tokens));
        }
        accepted += other.timings.n_accepted;
        drafted += other.timings.n_drafted;
        EXPECT_LE(other.timings.n_accepted, other.timings.n_drafted);
        EXPECT_LE(other.timings.n_accepted, other.timings.n_generated);
      }
      preemptions += machine.engine->n_preemptions();
    }
  }
  EXPECT_GT(accepted, 2000) << "the test must reach right guesses";
  EXPECT_GT(drafted - accepted, 500) << "and wrong ones";
  EXPECT_GT(preemptions, 10);
}

TEST(PromptLookup, AnyLengthMayEndInsideADraft) {
  Machine plain({}), fast({});
  int64_t accepted = 0;
  for (int64_t max_new = 1; max_new <= 40; ++max_new) {
    Request request = open_requests(0)[18];
    request.config.max_new_tokens = max_new;
    const RequestResult want = plain.engine->generate(request);
    request.config.prompt_lookup_num_tokens = 16;
    const RequestResult got = fast.engine->generate(request);
    EXPECT_EQ(ssize(got.completions[0].ids), max_new);
    expect_same(want.completions[0], got.completions[0], fmt::format("{} tokens", max_new));
    accepted += got.timings.n_accepted;
  }
  EXPECT_GT(accepted, 100);
}

TEST(PromptLookup, RightGuessesSpareSteps) {
  Machine plain({}), fast({});
  Request request = open_requests(0)[18];
  request.config.max_new_tokens = 90;
  plain.engine->generate(request);
  request.config.prompt_lookup_num_tokens = 8;
  const Timings timings = fast.engine->generate(request).timings;
  EXPECT_EQ(plain.model.n_forwards, 90);
  EXPECT_EQ(fast.model.n_forwards, 90 - timings.n_accepted) << "a step less for every right guess";
  EXPECT_LT(fast.model.n_forwards, 60);
}

TEST(PromptLookup, GuessesTakeNobodysPlace) {
  // With room for two tokens a step, two answers leave none for drafts; each still gets its turn.
  Machine machine({2, 4096, 2});
  std::vector<Request> two = open_requests(8);
  two = {two[6], two[12]};
  for (Request& request : two) {
    request.config.max_new_tokens = 30;
    machine.engine->submit(request);
  }
  std::map<RequestId, int64_t> said;
  int64_t steps_together = 0;
  while (!machine.engine->idle()) {
    const bool together = said[1] > 0 && said[2] > 0 && said[1] < 30 && said[2] < 30;
    std::map<RequestId, int64_t> now;
    for (const Event& event : machine.engine->step())
      now[event.request] += event.kind == Event::Kind::kToken ? 1 : 0;
    if (together) {
      ++steps_together;
      EXPECT_EQ(now[1], 1);
      EXPECT_EQ(now[2], 1);
    }
    for (const auto& [id, n] : now)
      said[id] += n;
  }
  EXPECT_GT(steps_together, 10);
  EXPECT_EQ(said[1], 30);
  EXPECT_EQ(said[2], 30);
}

}  // namespace
}  // namespace qw
