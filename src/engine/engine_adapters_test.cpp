// Adapters that come and go while requests are under way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine.h"
#include "engine/fake_model.h"

namespace qw {
namespace {

using testing::HasSubstr;

EngineOptions options_of() {
  EngineOptions options;
  options.ctx = 64;
  options.n_slots = 4;
  options.chunk_tokens = 16;
  options.check_integrity = true;
  return options;
}

Request request_of(int32_t adapter, int64_t max_new = 12) {
  Request request;
  request.prompt = {3, 1, 4, 1, 5, 9, 2, 6};
  request.adapter = adapter;
  request.config.max_new_tokens = max_new;
  request.config.ignore_eos = true;
  request.config.do_sample = true;
  request.config.seed = 3;
  return request;
}

int32_t install(Engine& engine) {
  return engine.install_adapter(std::make_unique<StagedAdapter>());
}

std::string refusal(Engine& engine, const Request& request) {
  try {
    engine.submit(request);
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

/// Steps until the request ends; false if it ended otherwise than by its length.
bool run_to_end(Engine& engine, RequestId id, std::vector<int32_t>& ids) {
  while (!engine.idle()) {
    for (const Event& event : engine.step()) {
      if (event.kind != Event::Kind::kRequest || event.request != id) continue;
      ids = event.result->completions[0].ids;
      return event.result->completions[0].finish_reason == FinishReason::kLength;
    }
  }
  return false;
}

TEST(EngineAdapters, ARemovedOneStaysForWhoUsesItAndIsRefusedToOthers) {
  FakeModel model, draft;
  draft.noise = 0.1;
  for (Model* guesser : {static_cast<Model*>(nullptr), static_cast<Model*>(&draft)}) {
    Engine engine(model, nullptr, options_of(), guesser);
    const int32_t id = install(engine);
    Request request = request_of(id);
    if (guesser != nullptr) request.config.num_assistant_tokens = 3;
    const std::vector<int32_t> want = engine.generate(request).completions[0].ids;
    // One that runs, one that waits behind others, one that ends at once.
    const RequestId running = engine.submit(request);
    std::vector<RequestId> others;
    for (int i = 0; i < 4; ++i)
      others.push_back(engine.submit(request_of(-1, 30)));
    const RequestId cancelled = engine.submit(request);
    engine.step();
    int n_gone = 0;
    engine.remove_adapter(id, [&](std::unique_ptr<StagedAdapter>) { ++n_gone; });
    EXPECT_THAT(refusal(engine, request), HasSubstr(fmt::format("got {}, whose adapter was "
                                                                "unloaded",
                                                                id)));
    engine.cancel(cancelled);
    EXPECT_TRUE(model.installed.contains(id));
    std::vector<int32_t> got;
    EXPECT_TRUE(run_to_end(engine, running, got));
    EXPECT_EQ(got, want);
    EXPECT_EQ(n_gone, 1) << "it goes with its last request, not with the last of all";
    EXPECT_FALSE(model.installed.contains(id));
    EXPECT_FALSE(engine.idle());
    ScoreOptions score;
    while (!engine.idle())
      engine.step();
    score.adapter = id;
    EXPECT_THROW(engine.score_logprobs(request.prompt, 0, score), Error);
  }
}

TEST(EngineAdapters, ANewOneNeverMeetsTheKeptPagesOfAnother) {
  FakeModel model;
  Engine engine(model, nullptr, options_of());
  const int32_t first = install(engine);
  const std::vector<int32_t> before = engine.generate(request_of(first)).completions[0].ids;
  EXPECT_GT(engine.generate(request_of(first)).timings.n_cached, 0);
  engine.remove_adapter(first);
  const int32_t second = install(engine);
  EXPECT_NE(second, first);
  const RequestResult result = engine.generate(request_of(second));
  EXPECT_EQ(result.timings.n_cached, 0);
  EXPECT_NE(result.completions[0].ids, before);
}

TEST(EngineAdapters, ScoringKeepsItsOwn) {
  FakeModel model;
  Engine engine(model, nullptr, options_of());
  const int32_t id = install(engine);
  const std::vector<int32_t> ids = {3, 1, 4, 1, 5, 9};
  int n_gone = 0, n_rows = 0;
  ScoreOptions options;
  options.adapter = id;
  engine.score(
      ids,
      [&](int64_t, int64_t n, const float*) {
        if (n_rows == 0)
          engine.remove_adapter(id, [&](std::unique_ptr<StagedAdapter>) { ++n_gone; });
        n_rows += static_cast<int>(n);
        EXPECT_EQ(n_gone, 0);
      },
      options);
  EXPECT_EQ(n_rows, 6);
  EXPECT_EQ(n_gone, 1);
}

}  // namespace
}  // namespace qw
