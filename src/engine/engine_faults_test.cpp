// What goes wrong in one request ends that request: its mates' answers are those they give alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <new>
#include <stdexcept>

#include "engine/engine.h"
#include "engine/fake_model.h"
#include "engine/logits_process.h"
#include "support/tiny_checkpoint.h"

namespace qw {
namespace {

using testing::HasSubstr;

EngineOptions options_of(int64_t chunk = 16, int64_t slots = 8) {
  EngineOptions options;
  options.ctx = 64;
  options.n_slots = slots;
  options.chunk_tokens = chunk;
  options.check_integrity = true;
  return options;
}

/// Ids from 1 to 24, so that 0 and what is above can stand for something broken.
Request request_of(int64_t prompt_len, uint64_t seed, int64_t max_new = 10) {
  Request request;
  for (int64_t i = 0; i < prompt_len; ++i) {
    request.prompt.push_back(
        1 + static_cast<int32_t>(random_bits(seed, 7, static_cast<uint64_t>(i)) % 24));
  }
  request.config.max_new_tokens = max_new;
  request.config.do_sample = true;
  request.config.seed = seed;
  request.config.logprobs = 1;
  for (int32_t id = 25; id < 50; ++id)
    request.config.suppress_tokens.push_back(id);
  return request;
}

/// Runs whatever was submitted to its end. Every request gets one last event.
std::map<RequestId, RequestResult> drain(Engine& engine) {
  std::map<RequestId, RequestResult> results;
  for (int steps = 0; !engine.idle(); ++steps) {
    if (steps > 2000) throw std::runtime_error("the engine does not come to an end");
    for (const Event& event : engine.step()) {
      EXPECT_EQ(results.count(event.request), 0u) << "an event after the last one";
      if (event.kind == Event::Kind::kRequest) results[event.request] = *event.result;
    }
  }
  EXPECT_EQ(engine.free_pages(), engine.n_pages()) << "pages leaked";
  return results;
}

void expect_same(const RequestResult& want, const RequestResult& got, const std::string& where) {
  ASSERT_EQ(want.completions.size(), got.completions.size()) << where;
  for (size_t i = 0; i < want.completions.size(); ++i) {
    const Completion &a = want.completions[i], &b = got.completions[i];
    EXPECT_EQ(a.ids, b.ids) << where;
    EXPECT_EQ(a.finish_reason, b.finish_reason) << where << ": " << b.error;
    ASSERT_EQ(a.logprobs.size(), b.logprobs.size()) << where;
    for (size_t t = 0; t < a.logprobs.size(); ++t)
      EXPECT_EQ(a.logprobs[t].chosen.logprob, b.logprobs[t].chosen.logprob) << where;
  }
}

/// Good requests around a bad one, together: the bad one fails with `error`, the others answer as
/// they do alone.
void expect_ends_alone(const std::function<void(FakeModel&)>& spoil, const Request& bad,
                       ErrorKind kind, const std::string& error) {
  std::vector<RequestResult> alone;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    FakeModel model;
    alone.push_back(Engine(model, nullptr, options_of())
                        .generate(request_of(3 + static_cast<int64_t>(seed) * 5, seed)));
  }
  for (const int64_t chunk : {3, 16, 200}) {
    FakeModel model;
    spoil(model);
    Engine engine(model, nullptr, options_of(chunk));
    for (uint64_t seed = 1; seed <= 2; ++seed)
      engine.submit(request_of(3 + static_cast<int64_t>(seed) * 5, seed));
    const RequestId id = engine.submit(bad);
    engine.submit(request_of(18, 3));
    const auto results = drain(engine);
    ASSERT_EQ(results.size(), 4u);
    for (const Completion& completion : results.at(id).completions) {
      EXPECT_EQ(completion.finish_reason, FinishReason::kError);
      EXPECT_EQ(completion.error_kind, kind);
      EXPECT_THAT(completion.error, HasSubstr(error));
    }
    for (const RequestId mate : {1, 2, 4})
      expect_same(alone[mate == 4 ? 2 : mate - 1], results.at(mate),
                  fmt::format("request {}, chunks of {}", mate, chunk));
  }
}

TEST(Faults, AHiddenStateThatIsNotFiniteEndsItsRequestAlone) {
  Request bad = request_of(12, 9);
  for (const size_t at : {size_t{0}, size_t{5}, size_t{11}}) {
    Request spoilt = bad;
    spoilt.prompt[at] = 40;
    expect_ends_alone([](FakeModel& model) { model.broken_token = 40; }, spoilt,
                      ErrorKind::kCorrupt, "layer 3");
  }
  // Of the second sequence of a request, and of several answers.
  Request guided = bad;
  guided.config.guidance_scale = 1.5;
  guided.negative_prompt = {3, 40, 5};
  expect_ends_alone([](FakeModel& model) { model.broken_token = 40; }, guided, ErrorKind::kCorrupt,
                    "layer 3");
  bad.prompt[11] = 40;
  bad.config.num_return_sequences = 3;
  expect_ends_alone([](FakeModel& model) { model.broken_token = 40; }, bad, ErrorKind::kCorrupt,
                    "layer 3");
}

TEST(Faults, LogitsThatAreNotFiniteEndTheirRequestAlone) {
  Request bad = request_of(12, 9);
  bad.prompt[11] = 40;
  const auto spoil = [](FakeModel& model) { model.nan_token = 40; };
  expect_ends_alone(spoil, bad, ErrorKind::kCorrupt, "logits: expected finite numbers, got nan");
  // Rows that only the prompt's log-probabilities need.
  bad.prompt[11] = 1;
  bad.prompt[6] = 40;
  bad.config.prompt_logprobs = 1;
  expect_ends_alone(spoil, bad, ErrorKind::kCorrupt, "token 0 (position 7)");
  // The negative prompt's row.
  Request guided = request_of(12, 9);
  guided.config.guidance_scale = 1.5;
  guided.negative_prompt = {3, 5, 40};
  expect_ends_alone(spoil, guided, ErrorKind::kCorrupt, "token 0 (position 3)");
  Request beams = request_of(12, 9);
  beams.config.do_sample = false;
  beams.config.num_beams = 3;
  beams.prompt[11] = 40;
  expect_ends_alone(spoil, beams, ErrorKind::kCorrupt, "logits");
  // Teacher forcing looks at every row that it is asked for.
  FakeModel scored;
  scored.nan_token = 40;
  Engine scorer(scored, nullptr, options_of());
  const std::vector<int32_t> ids = {1, 2, 40, 3};
  EXPECT_THROW(scorer.score_logprobs(ids), Error);
  ScoreOptions later;
  later.first_row = 3;
  const auto look = [](int64_t, int64_t, const float*) {};
  EXPECT_NO_THROW(scorer.score(ids, look, later));
  later.first_row = 2;
  EXPECT_THROW(scorer.score(ids, look, later), Error);
  // Without prompt log-probabilities nobody looks at the rows inside a prompt.
  Request fine = request_of(12, 9);
  fine.prompt[6] = 40;
  FakeModel model;
  model.nan_token = 40;
  EXPECT_EQ(Engine(model, nullptr, options_of()).generate(fine).completions[0].ids.size(), 10u);
}

TEST(Faults, InvalidValuesAreRemovedWhereThatIsAskedFor) {
  FakeModel model;
  model.nan_token = 40;
  Engine engine(model, nullptr, options_of());
  for (const char* strategy : {"plain", "beams", "guidance", "contrastive"}) {
    Request request = request_of(12, 9);
    request.prompt[11] = 40;
    request.prompt[5] = 40;
    request.config.remove_invalid_values = true;
    request.config.prompt_logprobs = 2;
    request.config.do_sample = false;
    if (strategy == std::string("beams")) request.config.num_beams = 3;
    if (strategy == std::string("guidance")) request.config.guidance_scale = 1.5;
    if (strategy == std::string("contrastive")) {
      request.config.penalty_alpha = 0.6;
      request.config.top_k = 3;
    }
    const RequestResult result = engine.generate(request);
    EXPECT_EQ(result.completions[0].ids.size(), 10u) << strategy;
    for (const auto* logprobs : {&result.completions[0].logprobs, &result.prompt_logprobs}) {
      for (const TokenLogprobs& one : *logprobs)
        EXPECT_TRUE(std::isfinite(one.chosen.logprob)) << strategy;
    }
  }
}

/// Sees to it that 1 2 3 4 5 ... is said, whatever the logits are.
class CountUp : public LogitsProcessor {
 public:
  void process(const TokenHistory& history, LogitsRow& row) const override {
    row.keep_only({(history.ids.back() + 1) % 24});
  }
  std::string_view name() const override { return "count up"; }
};

TEST(Faults, AWrongGuessThatIsNotFiniteFailsNothing) {
  // After 1 2 3 the prompt said 40, which is guessed, and never said again.
  Request request = request_of(0, 1, 12);
  request.prompt = {1, 2, 3, 40, 1, 2};
  request.processors = {std::make_shared<CountUp>()};
  FakeModel plain;
  const RequestResult want = Engine(plain, nullptr, options_of()).generate(request);
  ASSERT_EQ(want.completions[0].ids[1], 4);

  request.config.prompt_lookup_num_tokens = 4;
  request.config.num_assistant_tokens_schedule = AssistantSchedule::kConstant;
  for (const bool in_logits : {false, true}) {
    FakeModel model;
    model.broken_from = 6;
    (in_logits ? model.nan_token : model.broken_token) = 40;
    Engine engine(model, nullptr, options_of());
    engine.submit(request);
    engine.submit(request_of(9, 2));
    const auto results = drain(engine);
    expect_same(want, results.at(1), "guesses");
    EXPECT_EQ(results.at(2).completions[0].finish_reason, FinishReason::kLength);
    EXPECT_EQ(model.n_broken, in_logits ? 0 : 1) << "the test must reach the broken guess";
  }
  // What is not a guess fails as it does without.
  FakeModel model;
  model.broken_token = 5;
  Engine engine(model, nullptr, options_of());
  engine.submit(request);
  EXPECT_THAT(drain(engine).at(1).completions[0].error, HasSubstr("layer 3"));
}

/// Throws when the answer has three tokens.
template <typename Exception>
class Throws : public LogitsProcessor {
 public:
  explicit Throws(Exception exception) : exception_(std::move(exception)) {}
  void process(const TokenHistory& history, LogitsRow&) const override {
    if (history.generated().size() == 3) throw exception_;
  }
  std::string_view name() const override { return "throws"; }

 private:
  Exception exception_;
};

template <typename Exception>
Request throwing(Exception exception) {
  Request request = request_of(12, 9);
  request.processors = {std::make_shared<Throws<Exception>>(std::move(exception))};
  return request;
}

TEST(Faults, WhateverAProcessorThrowsEndsItsRequestAlone) {
  const auto nothing = [](FakeModel&) {};
  expect_ends_alone(nothing, throwing(std::runtime_error("grammar lost")), ErrorKind::kInternal,
                    "grammar lost");
  expect_ends_alone(nothing, throwing(std::bad_alloc()), ErrorKind::kOutOfMemory, "memory");
  expect_ends_alone(nothing, throwing(42), ErrorKind::kInternal, "unknown");
  expect_ends_alone(nothing, throwing(Error(ErrorKind::kUnsupported, "[x] y")),
                    ErrorKind::kUnsupported, "[x] y");
}

class Infinite : public LogitsProcessor {
 public:
  void process(const TokenHistory&, LogitsRow& row) const override {
    row[7] = std::numeric_limits<float>::infinity();
  }
  std::string_view name() const override { return "infinite"; }
};

TEST(Faults, ScoresOutsideTheFloatsEndTheirRequest) {
  const std::string error = "for token 7 (position 12)";
  Request bad = request_of(12, 9);
  bad.processors = {std::make_shared<Infinite>()};
  expect_ends_alone([](FakeModel&) {}, bad, ErrorKind::kInvalidArgument, error);
  for (const bool samples : {false, true}) {
    for (const int64_t top_k : {0, 5}) {
      for (const double top_p : {0.9, 1.0}) {
        Request biased = request_of(12, 9);
        biased.config.do_sample = samples;
        biased.config.top_k = top_k;
        biased.config.top_p = top_p;
        biased.config.logit_bias = {{7, 1e38f}, {7, 1e38f}, {7, 1e38f}, {7, 1e38f}};
        expect_ends_alone([](FakeModel&) {}, biased, ErrorKind::kInvalidArgument, error);
      }
    }
  }
  // Beams add such scores up.
  Request beams = request_of(12, 9);
  beams.config.do_sample = false;
  beams.config.num_beams = 2;
  beams.config.logit_bias = {{7, 2e38f}};
  expect_ends_alone([](FakeModel&) {}, beams, ErrorKind::kInvalidArgument, "for token 7");
}

TEST(Faults, SmallTemperaturesAndHugeBiasesDraw) {
  FakeModel model;
  Engine engine(model, nullptr, options_of());
  for (const double temperature : {1e-6, 1e-3, 1e6}) {
    for (const int64_t top_k : {0, 5}) {
      for (const double top_p : {0.9, 1.0}) {
        Request request = request_of(12, 9);
        request.config.temperature = temperature;
        request.config.top_k = top_k;
        request.config.top_p = top_p;
        request.config.logit_bias = {{7, 2e38f}, {9, 1e38f}};
        EXPECT_EQ(engine.generate(request).completions[0].ids, std::vector<int32_t>(10, 7));
      }
    }
  }
}

TEST(Faults, EventsOfOthersSurviveACallbackThatThrows) {
  FakeModel model;
  Engine engine(model, nullptr, options_of());
  const RequestId other = engine.submit(request_of(5, 1, 4));
  FakeModel quiet;
  const auto want = Engine(quiet, nullptr, options_of()).generate(request_of(5, 1, 4));
  int seen = 0;
  // The other's last event comes in the very step in which the callback throws.
  EXPECT_THROW(engine.generate(request_of(6, 2, 20),
                               [&](const Event&) {
                                 if (++seen == 4) throw std::runtime_error("client gone");
                               }),
               std::runtime_error);
  std::vector<int32_t> streamed;
  std::optional<RequestResult> result;
  for (int steps = 0; !engine.idle() && steps < 100; ++steps) {
    for (const Event& event : engine.step()) {
      ASSERT_EQ(event.request, other);
      if (event.kind == Event::Kind::kToken) streamed.push_back(event.token);
      if (event.kind == Event::Kind::kRequest) result = *event.result;
    }
  }
  ASSERT_TRUE(result.has_value()) << "the last event is lost";
  EXPECT_EQ(streamed, want.completions[0].ids) << "every token, once";
  expect_same(want, *result, "the other");
  EXPECT_EQ(engine.free_pages(), engine.n_pages());
}

// ---- on real arithmetic ------------------------------------------------------------------------

/// Makes one token's embedding so large that the square of its norm is infinite.
void break_token(test::TinyCheckpoint& checkpoint, size_t token) {
  auto& table = checkpoint.tensors.at("model.embed_tokens.weight");
  const auto hidden = static_cast<size_t>(table.shape.cols());
  for (size_t i = 0; i < hidden; ++i)
    table.values[token * hidden + i] = 3e38f;
}

BackendOptions with_threads(int n) {
  BackendOptions options;
  options.n_threads = n;
  return options;
}

TEST(Faults, MatesOfABrokenRequestKeepTheirBitsOnRealArithmetic) {
  for (const int n_experts : {0, 4}) {
    test::TinyCheckpoint tiny(test::TinyShape{.n_experts = n_experts});
    break_token(tiny, 30);
    const auto checkpoint = tiny.open();
    for (const int threads : {1, 2}) {
      const auto backend = make_backend("cpu", with_threads(threads));
      LoadOptions quiet;
      quiet.quiet = true;
      const auto model = Model::load(checkpoint, *backend, quiet);
      const auto prompt = [](int64_t n, uint64_t seed) {
        Request request = request_of(n, seed);
        request.config.suppress_tokens = {30};
        return request;
      };
      std::vector<RequestResult> alone;
      for (uint64_t seed = 1; seed <= 3; ++seed)
        alone.push_back(Engine(*model, nullptr, options_of()).generate(prompt(18, seed)));
      for (const int64_t chunk : {5, 64}) {
        Engine engine(*model, nullptr, options_of(chunk));
        engine.submit(prompt(18, 1));
        Request bad = prompt(18, 9);
        bad.prompt[10] = 30;
        engine.submit(bad);
        engine.submit(prompt(18, 2));
        bad.prompt[17] = 30;
        bad.prompt[10] = 1;
        engine.submit(bad);
        engine.submit(prompt(18, 3));
        const auto results = drain(engine);
        const std::string where = fmt::format("{} threads, {} experts", threads, n_experts);
        for (const RequestId id : {2, 4}) {
          EXPECT_EQ(results.at(id).completions[0].finish_reason, FinishReason::kError);
          EXPECT_THAT(results.at(id).completions[0].error, HasSubstr("embedding")) << where;
        }
        for (const RequestId id : {1, 3, 5})
          expect_same(alone[(id - 1) / 2], results.at(id), where);
      }
    }
  }
}

}  // namespace
}  // namespace qw
