// Properties of the engine on the fake model: equalities, no leak, one end for every request.
#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <thread>

#include "engine/fake_model.h"
#include "engine/perplexity.h"

namespace qw {
namespace {

using testing::HasSubstr;

EngineOptions small(int64_t ctx = 64, int64_t slots = 4, int64_t kv_tokens = 0,
                    int64_t chunk = 16) {
  EngineOptions options;
  options.ctx = ctx;
  options.n_slots = slots;
  options.kv_tokens = kv_tokens;
  options.chunk_tokens = chunk;
  options.logit_rows = 5;
  options.check_integrity = true;
  return options;
}

std::vector<int32_t> prompt_of(int64_t n, uint64_t seed) {
  std::vector<int32_t> out;
  for (int64_t i = 0; i < n; ++i)
    out.push_back(static_cast<int32_t>(random_bits(seed, 7, static_cast<uint64_t>(i)) % 50));
  return out;
}

Request request_of(int64_t prompt_len, uint64_t seed, int64_t max_new, int64_t n = 1) {
  Request request;
  request.prompt = prompt_of(prompt_len, seed);
  request.config.max_new_tokens = max_new;
  request.config.do_sample = true;
  request.config.seed = seed;
  request.config.num_return_sequences = n;
  request.config.eos_token_id = {49};
  return request;
}

/// Every kind of request, so that they share steps and pages.
std::vector<Request> mixed_requests() {
  std::vector<Request> out;
  for (uint64_t seed = 1; seed <= 10; ++seed)
    out.push_back(request_of(1 + static_cast<int64_t>(seed * 3 % 23), seed, 12));
  out.push_back(request_of(19, 20, 10, 3));
  out.push_back(request_of(9, 21, 10));
  out.back().config.do_sample = false;
  out.back().config.num_beams = 3;
  out.back().config.num_return_sequences = 2;
  out.push_back(request_of(10, 22, 8));
  out.back().config.do_sample = false;
  out.back().config.penalty_alpha = 0.6;
  out.back().config.top_k = 3;
  out.push_back(request_of(11, 23, 9));
  out.back().config.guidance_scale = 1.5;
  out.back().negative_prompt = {1, 2, 3, 4, 5, 6};
  out.push_back(request_of(13, 24, 6));
  out.back().config.prompt_logprobs = 2;
  out.back().config.logprobs = 3;
  out.push_back(request_of(8, 25, 6));
  out.back().adapter = 0;
  return out;
}

/// Submits everything at once and runs to the end, checking the events on the way.
std::map<RequestId, RequestResult> run_all(Engine& engine, std::vector<Request> requests) {
  std::map<RequestId, RequestResult> results;
  std::map<RequestId, std::map<int, std::vector<int32_t>>> streamed;
  std::map<RequestId, int> completions;
  size_t n = 0;
  for (Request& request : requests) {
    engine.submit(std::move(request));
    ++n;
  }
  for (int steps = 0; !engine.idle(); ++steps) {
    EXPECT_LT(steps, 20000) << "starvation";
    if (steps >= 20000) break;
    for (const Event& event : engine.step()) {
      EXPECT_EQ(results.count(event.request), 0u) << "an event after the last one";
      if (event.kind == Event::Kind::kToken && event.token >= 0)
        streamed[event.request][event.index].push_back(event.token);
      if (event.kind == Event::Kind::kCompletion) ++completions[event.request];
      if (event.kind == Event::Kind::kRequest) results[event.request] = *event.result;
    }
  }
  EXPECT_EQ(results.size(), n);
  for (const auto& [id, result] : results) {
    EXPECT_EQ(static_cast<int>(result.completions.size()), completions[id]);
    for (const Completion& c : result.completions)
      EXPECT_EQ(streamed[id][c.index], c.ids);
  }
  EXPECT_EQ(engine.free_pages(), engine.n_pages()) << "pages leaked";
  return results;
}

void expect_same(const RequestResult& a, const RequestResult& b, RequestId id) {
  ASSERT_EQ(a.completions.size(), b.completions.size());
  for (size_t i = 0; i < a.completions.size(); ++i) {
    EXPECT_EQ(a.completions[i].ids, b.completions[i].ids) << "request " << id << " answer " << i;
    EXPECT_EQ(a.completions[i].finish_reason, b.completions[i].finish_reason);
    EXPECT_EQ(a.completions[i].score, b.completions[i].score);
    ASSERT_EQ(a.completions[i].logprobs.size(), b.completions[i].logprobs.size());
    for (size_t t = 0; t < a.completions[i].logprobs.size(); ++t) {
      EXPECT_EQ(a.completions[i].logprobs[t].chosen.logprob,
                b.completions[i].logprobs[t].chosen.logprob);
    }
  }
  ASSERT_EQ(a.prompt_logprobs.size(), b.prompt_logprobs.size());
  for (size_t t = 0; t < a.prompt_logprobs.size(); ++t) {
    EXPECT_EQ(a.prompt_logprobs[t].chosen.logprob, b.prompt_logprobs[t].chosen.logprob);
  }
}

/// Each request alone, in an engine with room to spare.
std::map<RequestId, RequestResult> run_alone(std::vector<Request> requests) {
  std::map<RequestId, RequestResult> results;
  RequestId id = 1;
  for (Request& request : requests) {
    FakeModel model;
    EngineOptions options = small(64, 1, 4096, 1000);
    options.prefix_cache = false;
    Engine engine(model, nullptr, options);
    results[id++] = engine.generate(std::move(request));
  }
  return results;
}

TEST(Engine, AnswersDoNotDependOnMatesChunksSlotsOrPreemption) {
  const auto alone = run_alone(mixed_requests());
  int64_t preemptions = 0;
  for (const int64_t slots : {1, 3, 16}) {
    for (const int64_t kv_tokens : {72, 120, 4096}) {
      for (const int64_t chunk : {1, 5, 64}) {
        FakeModel model;
        Engine engine(model, nullptr, small(64, slots, kv_tokens, chunk));
        const auto together = run_all(engine, mixed_requests());
        for (const auto& [id, result] : alone)
          expect_same(result, together.at(id), id);
        preemptions += engine.n_preemptions();
      }
    }
  }
  EXPECT_GT(preemptions, 20) << "the test must reach preemption";
}

TEST(Engine, AnswersDoNotDependOnWhatTheCacheHolds) {
  // The requests, each followed by one that goes on with the answer, over a warm cache.
  const auto first = run_alone(mixed_requests());
  const auto longer = [&](std::vector<Request> requests) {
    RequestId id = 1;
    for (Request& request : requests) {
      const std::vector<int32_t>& answer = first.at(id++).completions[0].ids;
      request.prompt.insert(request.prompt.end(), answer.begin(), answer.end());
      request.prompt.push_back(7);
    }
    return requests;
  };
  const auto second = run_alone(longer(mixed_requests()));
  int64_t cached = 0;
  for (const int64_t kv_tokens : {72, 160, 4096}) {
    for (const int64_t chunk : {1, 5, 64}) {
      FakeModel model;
      Engine engine(model, nullptr, small(64, 8, kv_tokens, chunk));
      RequestId offset = 0;
      for (int round = 0; round < 2; ++round) {
        for (const auto* want : {&first, &second}) {
          const auto got =
              run_all(engine, want == &first ? mixed_requests() : longer(mixed_requests()));
          for (const auto& [id, result] : *want) {
            expect_same(result, got.at(id + offset), id);
            cached += got.at(id + offset).timings.n_cached;
          }
          offset += want->size();
        }
      }
      if (kv_tokens == 4096) {
        EXPECT_GT(engine.kept_pages(), 0);
      }
    }
  }
  EXPECT_GT(cached, 1000) << "the test must reach the cache";
}

TEST(Engine, AConversationComputesOnlyWhatIsNew) {
  FakeModel model(50, 4);
  Engine engine(model, nullptr, small(256, 1));
  Request turn = request_of(30, 1, 8);
  turn.config.ignore_eos = true;
  for (int n = 0; n < 5; ++n) {
    const RequestResult result = engine.generate(turn);
    // The last token of the answer was never computed; all else of the last turn was.
    const auto known = n == 0 ? 0 : ssize(turn.prompt) - 4 - 1;
    EXPECT_EQ(result.timings.n_cached, known) << "turn " << n;
    const std::vector<int32_t>& answer = result.completions[0].ids;
    turn.prompt.insert(turn.prompt.end(), answer.begin(), answer.end());
    for (const int32_t id : prompt_of(4, static_cast<uint64_t>(n) + 9))
      turn.prompt.push_back(id);
  }
  // The same again: everything but the last token, whose logits are wanted.
  turn.prompt.resize(50);
  EXPECT_EQ(engine.generate(turn).timings.n_cached, 49);
  turn.adapter = 0;
  EXPECT_EQ(engine.generate(turn).timings.n_cached, 0) << "keys of another adapter";
}

TEST(Engine, DroppedPagesAreComputedAgain) {
  FakeModel model(50, 4);
  Engine engine(model, nullptr, small(256, 2));
  const Request request = request_of(30, 1, 8);
  const RequestResult first = engine.generate(request);
  EXPECT_EQ(engine.generate(request).timings.n_cached, 29);
  engine.drop_kept_pages();
  EXPECT_EQ(engine.kept_pages(), 0);
  EXPECT_EQ(engine.free_pages(), engine.n_pages());
  const RequestResult again = engine.generate(request);
  EXPECT_EQ(again.timings.n_cached, 0);
  EXPECT_EQ(again.completions[0].ids, first.completions[0].ids);
  // What a request under way holds stays.
  engine.submit(request);
  engine.step();
  engine.drop_kept_pages();
  const auto events = [&] {
    std::vector<Event> all;
    while (!engine.idle()) {
      for (Event& event : engine.step())
        all.push_back(std::move(event));
    }
    return all;
  }();
  EXPECT_EQ(events.back().result->completions[0].ids, first.completions[0].ids);
  engine.drop_kept_pages();
  EXPECT_EQ(engine.free_pages(), engine.n_pages());
}

TEST(Engine, WhatIsAskedOfThePromptIsComputed) {
  FakeModel model;
  Engine engine(model, nullptr, small());
  Request request = request_of(30, 1, 4);
  request.config.do_sample = false;
  const auto ids = engine.generate(request).completions[0].ids;
  Request logprobs = request;
  logprobs.config.prompt_logprobs = 1;
  const RequestResult cold = engine.generate(logprobs);
  EXPECT_EQ(cold.timings.n_cached, 0);
  EXPECT_EQ(cold.prompt_logprobs.size(), 29u);
  EXPECT_EQ(cold.completions[0].ids, ids);
  // Contrastive search compares the hidden states of all positions.
  Request contrastive = request;
  contrastive.config.penalty_alpha = 0.6;
  contrastive.config.top_k = 3;
  const RequestResult result = engine.generate(contrastive);
  EXPECT_EQ(result.timings.n_cached, 0);
  EngineOptions off = small();
  off.prefix_cache = false;
  FakeModel other;
  Engine without(other, nullptr, off);
  EXPECT_EQ(result.completions[0].ids, without.generate(contrastive).completions[0].ids);
  without.generate(request);
  EXPECT_EQ(without.generate(request).timings.n_cached, 0);
  EXPECT_EQ(without.kept_pages(), 0);
}

TEST(Engine, AStepThatFailsLeavesNothingWrongInTheCache) {
  FakeModel model;
  Engine engine(model, nullptr, small(64, 4, 0, 8));
  for (int n = 0; n < 4; ++n) {
    model.throw_after = model.n_forwards + n;
    EXPECT_THROW(engine.generate(request_of(30, 1, 8)), Error);
  }
  model.throw_after = -1;
  FakeModel cold;
  Engine fresh(cold, nullptr, small());
  EXPECT_EQ(engine.generate(request_of(30, 1, 8)).completions[0].ids,
            fresh.generate(request_of(30, 1, 8)).completions[0].ids);
}

TEST(Engine, SeveralAnswersShareThePromptsPages) {
  FakeModel model(50, 4);
  // 40 prompt tokens are 10 pages; four answers of 8 tokens fit 22 pages only if they share them.
  Engine engine(model, nullptr, small(64, 1, 88, 64));
  const auto results = run_all(engine, {request_of(40, 5, 8, 4)});
  EXPECT_EQ(engine.n_preemptions(), 0);
  EXPECT_LE(model.n_forwards, 12) << "the answers ran one after another";
  std::set<std::vector<int32_t>> distinct;
  for (const Completion& c : results.at(1).completions)
    distinct.insert(c.ids);
  EXPECT_EQ(distinct.size(), 4u) << "answers must differ by their random stream";
}

TEST(Engine, PromptLogprobsNeverHoldManyRows) {
  FakeModel model;
  Engine engine(model, nullptr, small());
  Request request = request_of(40, 3, 2);
  request.config.prompt_logprobs = 1;
  const auto result = engine.generate(std::move(request));
  EXPECT_EQ(result.prompt_logprobs.size(), 39u);
  EXPECT_LE(model.max_rows, 5u);
  // The same numbers as teacher forcing.
  const auto scored = engine.score_logprobs(prompt_of(40, 3), 1);
  ASSERT_EQ(scored.size(), 39u);
  for (size_t i = 0; i < scored.size(); ++i) {
    EXPECT_EQ(scored[i].chosen.logprob, result.prompt_logprobs[i].chosen.logprob);
    EXPECT_EQ(scored[i].top[0].id, result.prompt_logprobs[i].top[0].id);
  }
}

TEST(Engine, RefusesWithNumbers) {
  FakeModel model;
  Engine engine(model, nullptr, small(32, 1));
  const auto message = [&](Request request) -> std::string {
    try {
      engine.submit(std::move(request));
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(message(request_of(0, 1, 4)), HasSubstr("at least one token"));
  EXPECT_THAT(message(request_of(32, 1, 4)), HasSubstr("at most 31 tokens"));
  EXPECT_THAT(message(request_of(30, 1, 4)), HasSubstr("30 + 4 = 34"));
  Request outside = request_of(3, 1, 4);
  outside.prompt[1] = 50;
  EXPECT_THAT(message(outside), HasSubstr("0 to 49, got 50"));
  Request beams = request_of(3, 1, 28);
  beams.config.do_sample = false;
  beams.config.num_beams = 8;
  EXPECT_THAT(message(beams), HasSubstr("KV cache of 32 tokens"));
  Request stop = request_of(3, 1, 4);
  stop.config.stop_strings = {"x"};
  EXPECT_THAT(message(stop), HasSubstr("tokenizer"));
  Request negative = request_of(3, 1, 4);
  negative.negative_prompt = {1};
  EXPECT_THAT(message(negative), HasSubstr("negative prompt: expected a guidance_scale"));
  Request same = request_of(3, 1, 4, 3);
  same.config.do_sample = false;
  EXPECT_THAT(message(same), HasSubstr("num_return_sequences: expected 1 without sampling"));
  EXPECT_TRUE(engine.idle());
  // A default of the checkpoint's file is an upper bound, not a demand.
  Request from_file = request_of(30, 1, 1);
  from_file.config.set_text("max_new_tokens", "2048", ParameterSource::kFile);
  EXPECT_LE(engine.generate(from_file).completions[0].ids.size(), 2u);
}

TEST(Engine, BrokenLogitsEndTheRequestWithAnError) {
  FakeModel model;
  model.broken_after = 3;
  Engine engine(model, nullptr, small());
  Request request = request_of(5, 1, 20);
  request.config.ignore_eos = true;
  try {
    engine.generate(request);
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCorrupt);
    EXPECT_THAT(error.what(), HasSubstr("nan"));
  }
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(engine.free_pages(), engine.n_pages());
}

TEST(Engine, AFaultOfTheModelEndsTheRequestsOfTheStepAndNoMore) {
  FakeModel model;
  model.throw_after = 2;
  Engine engine(model, nullptr, small());
  engine.submit(request_of(5, 1, 20));
  engine.submit(request_of(6, 2, 20));
  int ended = 0;
  while (!engine.idle()) {
    for (const Event& event : engine.step()) {
      if (event.kind != Event::Kind::kRequest) continue;
      ++ended;
      EXPECT_EQ(event.result->completions[0].finish_reason, FinishReason::kError);
      EXPECT_THAT(event.result->completions[0].error, HasSubstr("layer 3"));
    }
  }
  EXPECT_EQ(ended, 2);
  model.throw_after = -1;
  EXPECT_EQ(engine.free_pages(), engine.n_pages());
  EXPECT_FALSE(engine.generate(request_of(5, 1, 3)).completions[0].ids.empty());
}

TEST(Engine, CancelKeepsWhatThereIs) {
  FakeModel model;
  Engine engine(model, nullptr, small());
  CancelFlag cancel;
  Request request = request_of(5, 1, 30);
  request.config.ignore_eos = true;
  int tokens = 0;
  const auto result = engine.generate(
      request,
      [&](const Event& event) {
        if (event.kind == Event::Kind::kToken && ++tokens == 4) cancel.cancel();
      },
      &cancel);
  EXPECT_EQ(result.completions[0].finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(result.completions[0].ids.size(), 4u);
  EXPECT_EQ(engine.free_pages(), engine.n_pages());
}

TEST(Engine, ACallbackThatThrowsLosesNothing) {
  FakeModel model;
  Engine engine(model, nullptr, small());
  EXPECT_THROW(engine.generate(request_of(5, 1, 30),
                               [](const Event&) { throw std::runtime_error("client gone"); }),
               std::runtime_error);
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(engine.free_pages(), engine.n_pages());
}

TEST(Engine, SeedAndPositionDecideTheTokens) {
  FakeModel model;
  Engine engine(model, nullptr, small());
  const auto once = engine.generate(request_of(5, 1, 20)).completions[0].ids;
  EXPECT_EQ(once, engine.generate(request_of(5, 1, 20)).completions[0].ids);
  Request other = request_of(5, 1, 20);
  other.config.seed = 99;
  EXPECT_NE(once, engine.generate(other).completions[0].ids);
  // Going on from a prefix draws the same numbers.
  Request rest = request_of(5, 1, 20);
  rest.prompt.insert(rest.prompt.end(), once.begin(), once.begin() + 3);
  const auto tail = engine.generate(rest).completions[0].ids;
  EXPECT_EQ(std::vector<int32_t>(once.begin() + 3, once.end()),
            std::vector<int32_t>(tail.begin(), tail.begin() + ssize(once) - 3));
}

TEST(Engine, PerplexityScoresEveryTokenOnce) {
  FakeModel model;
  Engine engine(model, nullptr, small(32, 1));
  const auto ids = prompt_of(100, 9);
  const Perplexity whole = compute_perplexity(engine, std::span(ids).first(32));
  EXPECT_EQ(whole.n_tokens, 31);
  double nll = 0;
  for (const auto& t : engine.score_logprobs(std::span(ids).first(32)))
    nll -= static_cast<double>(t.chosen.logprob);
  EXPECT_NEAR(whole.nll, nll / 31, 1e-9);
  EXPECT_NEAR(whole.perplexity, std::exp(nll / 31), 1e-6);
  PerplexityOptions options;
  options.window = 20;
  options.stride = 7;
  EXPECT_EQ(compute_perplexity(engine, ids, options).n_tokens, 99);
  options.stride = 20;
  EXPECT_EQ(compute_perplexity(engine, ids, options).n_tokens,
            95);  // the first of each window is context
  options.window = 33;
  EXPECT_THROW(compute_perplexity(engine, ids, options), Error);
}

/// Every step takes at least kStep.
class SlowModel : public FakeModel {
 public:
  static constexpr std::chrono::milliseconds kStep{2};
  void forward(const BatchPlan& plan, KvCache& cache, float* logits,
               ForwardObserver* observer) override {
    std::this_thread::sleep_for(kStep);
    FakeModel::forward(plan, cache, logits, observer);
  }
};

TEST(Engine, TimesEndThePrefillWithItsLastStepForBeamsToo) {
  using Seconds = std::chrono::duration<double>;
  constexpr int64_t kChunks = 3, kNew = 8;
  const double step = Seconds(SlowModel::kStep).count();
  for (const int64_t beams : {1, 3}) {
    SCOPED_TRACE(beams);
    SlowModel model;
    Engine engine(model, nullptr, small());
    Request request = request_of(16 * kChunks - 5, 3, kNew, 2);
    request.config.do_sample = beams == 1;
    request.config.num_beams = beams;
    request.config.eos_token_id = {};
    const auto start = std::chrono::steady_clock::now();
    const RequestResult result = engine.generate(request);
    const double total = Seconds(std::chrono::steady_clock::now() - start).count();
    const Timings& timings = result.timings;
    EXPECT_GE(timings.prefill_s, kChunks * step);
    EXPECT_GE(timings.decode_s, (kNew - 1) * step);
    EXPECT_LE(timings.queue_s + timings.prefill_s + timings.decode_s, total);
    EXPECT_EQ(timings.n_generated, 2 * kNew);
    EXPECT_EQ(timings.n_decoded, 2 * (kNew - 1)) << "the first of each came with the prompt";
  }
}

}  // namespace
}  // namespace qw
