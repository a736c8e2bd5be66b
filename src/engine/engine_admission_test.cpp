// What the engine takes and refuses: adapters, lengths of both prompts, pages and working memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine.h"
#include "engine/fake_model.h"

namespace qw {
namespace {

using testing::HasSubstr;

EngineOptions options_of(int64_t ctx, int64_t kv_tokens = 0) {
  EngineOptions options;
  options.ctx = ctx;
  options.kv_tokens = kv_tokens;
  options.chunk_tokens = 16;
  options.check_integrity = true;
  return options;
}

Request request_of(int64_t prompt_len) {
  Request request;
  for (int64_t i = 0; i < prompt_len; ++i)
    request.prompt.push_back(
        static_cast<int32_t>(random_bits(5, 7, static_cast<uint64_t>(i)) % 50));
  request.config.ignore_eos = true;
  return request;
}

std::string refusal(Engine& engine, Request request, ErrorKind kind = ErrorKind::kInvalidArgument) {
  try {
    engine.submit(std::move(request));
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  return "accepted";
}

TEST(Admission, AdaptersThatAreNotLoadedAreRefused) {
  FakeModel model;
  Engine engine(model, nullptr, options_of(32));
  Request request = request_of(3);
  for (const int32_t adapter : {-2, 1, 77}) {
    request.adapter = adapter;
    EXPECT_THAT(refusal(engine, request),
                HasSubstr(fmt::format("one of the 1 that are loaded, got {}", adapter)));
    ScoreOptions score;
    score.adapter = adapter;
    EXPECT_THROW(engine.score_logprobs(request.prompt, 0, score), Error);
  }
  EXPECT_TRUE(engine.idle());
  for (const int32_t adapter : {-1, 0}) {
    request.adapter = adapter;
    EXPECT_EQ(engine.generate(request).completions[0].ids.size(), 29u);
  }
}

TEST(Admission, MoreLogprobsThanTokensAreRefused) {
  FakeModel model;
  Engine engine(model, nullptr, options_of(32));
  Request request = request_of(3);
  request.config.logprobs = 51;
  EXPECT_THAT(refusal(engine, request), HasSubstr("] logprobs: expected 0 to 50"));
  request.config.logprobs.reset();
  request.config.prompt_logprobs = 51;
  EXPECT_THAT(refusal(engine, request), HasSubstr("] prompt_logprobs: expected 0 to 50"));
  EXPECT_THROW(engine.score_logprobs(request.prompt, 51), Error);
  EXPECT_THROW(engine.score_logprobs(request.prompt, -1), Error);
  request.config.prompt_logprobs = 50;
  EXPECT_EQ(engine.generate(request).prompt_logprobs[0].top.size(), 50u);
}

TEST(Admission, TheAnswerFitsBehindTheNegativePromptToo) {
  FakeModel model;
  Engine engine(model, nullptr, options_of(32, 128));
  Request request = request_of(4);
  request.config.guidance_scale = 1.5;
  request.negative_prompt = request_of(32).prompt;
  EXPECT_THAT(refusal(engine, request), HasSubstr("negative prompt: expected at most 31 tokens"));
  request.negative_prompt.resize(20);
  request.config.max_new_tokens = 13;
  EXPECT_THAT(refusal(engine, request),
              HasSubstr("negative prompt and answer within the context of 32 tokens, got 20 + 13 = "
                        "33"));
  request.config.max_new_tokens = 12;
  EXPECT_EQ(engine.generate(request).completions[0].ids.size(), 12u);
  request.config.max_new_tokens.reset();
  EXPECT_EQ(engine.generate(request).completions[0].ids.size(), 12u) << "the context's end";
  request.config.set_text("max_new_tokens", "2048", ParameterSource::kFile);
  EXPECT_EQ(engine.generate(request).completions[0].ids.size(), 12u);
}

TEST(Admission, WithoutALengthAnAnswerTakesWhatTheCacheAllows) {
  FakeModel model(50, 4);
  Engine engine(model, nullptr, options_of(64));  // 16 pages
  Request beams = request_of(10);
  beams.config.num_beams = 3;
  // Two pages are shared, each beam may have four more: 24 tokens.
  EXPECT_EQ(engine.generate(beams).completions[0].ids.size(), 14u);
  beams.config.max_new_tokens = 15;
  EXPECT_THAT(refusal(engine, beams), HasSubstr("(max_new_tokens up to 14), got up to"));
  beams.config.max_new_tokens = 14;
  EXPECT_EQ(engine.generate(beams).completions[0].ids.size(), 14u);
  beams.config.max_new_tokens.reset();
  beams.config.set_text("max_new_tokens", "2048", ParameterSource::kFile);
  EXPECT_EQ(engine.generate(beams).completions[0].ids.size(), 14u);
  beams.config.num_beams = 20;
  EXPECT_THAT(refusal(engine, beams), HasSubstr("KV cache of 64 tokens"));

  Request guided = request_of(10);
  guided.config.guidance_scale = 1.5;
  guided.negative_prompt = {1, 2, 3, 4, 5};
  // 10 + n and 5 + n tokens in 16 pages.
  EXPECT_EQ(engine.generate(guided).completions[0].ids.size(), 23u);
}

TEST(Admission, CandidatesOfContrastiveSearchTakeAPageEach) {
  for (const int page_tokens : {1, 3, 4, 8}) {
    for (const int64_t top_k : {2, 4, 7}) {
      for (const int64_t chunk : {1, 3, 64}) {
        FakeModel model(50, page_tokens);
        EngineOptions options = options_of(48, 48);
        options.chunk_tokens = chunk;
        Engine engine(model, nullptr, options);
        Request request = request_of(9);
        request.config.penalty_alpha = 0.6;
        request.config.top_k = top_k;
        const int64_t pages = 48 / page_tokens - (top_k - 1);
        const int64_t room = pages * page_tokens - 9;
        if (room <= 0) {
          EXPECT_THAT(refusal(engine, request), HasSubstr("KV cache"));
          continue;
        }
        const RequestResult result = engine.generate(request);
        EXPECT_EQ(std::ssize(result.completions[0].ids), room);
        FakeModel other(50, page_tokens);
        EngineOptions roomy = options_of(256, 4096);
        Request same = request;
        same.config.max_new_tokens = room;
        EXPECT_EQ(Engine(other, nullptr, roomy).generate(same).completions[0].ids,
                  result.completions[0].ids);
      }
    }
  }
}

TEST(Admission, WorkingMemoryBeyondThePlanIsRefusedWithTheNumbers) {
  FakeModel model;
  EngineOptions options = options_of(64, 4096);
  options.spare_bytes = 8000;
  options.n_slots = 4;
  Engine engine(model, nullptr, options);
  Request beams = request_of(5);
  beams.config.num_beams = 8;  // two rows of 50 floats each: 3200 bytes
  beams.config.max_new_tokens = 5;
  engine.submit(beams);
  engine.submit(beams);
  EXPECT_THAT(refusal(engine, beams, ErrorKind::kOutOfMemory),
              HasSubstr("8000 bytes of working memory (6400 of them taken), got 3200"));
  EXPECT_THAT(refusal(engine, request_of(5)), "accepted") << "it needs none";
  while (!engine.idle())
    engine.step();
  EXPECT_EQ(engine.generate(beams).completions.size(), 1u) << "given back";
  beams.config.num_beams = 21;
  EXPECT_THAT(refusal(engine, beams, ErrorKind::kOutOfMemory), HasSubstr("got 8400"));
  Request contrastive = request_of(5);
  contrastive.config.penalty_alpha = 0.6;
  contrastive.config.top_k = 4;
  contrastive.config.max_new_tokens = 50;
  EXPECT_EQ(engine.generate(contrastive).completions.size(), 1u);
}

TEST(Admission, AStepHasNoMoreRowsThanArePlanned) {
  const auto run = [](int64_t logit_rows, int64_t slots, FakeModel& model) {
    EngineOptions options = options_of(64, 4096);
    options.n_slots = slots;
    options.logit_rows = logit_rows;
    options.chunk_tokens = 512;
    Engine engine(model, nullptr, options);
    std::vector<std::vector<int32_t>> answers;
    Request many = request_of(6);
    many.config.max_new_tokens = 8;
    many.config.do_sample = true;
    many.config.num_return_sequences = 12;
    Request beams = request_of(7);
    beams.config.max_new_tokens = 8;
    beams.config.num_beams = 9;
    beams.config.num_return_sequences = 2;
    engine.submit(many);
    engine.submit(beams);
    while (!engine.idle()) {
      for (const Event& event : engine.step()) {
        if (event.kind != Event::Kind::kRequest) continue;
        for (const Completion& completion : event.result->completions)
          answers.push_back(completion.ids);
      }
    }
    std::sort(answers.begin(), answers.end());
    EXPECT_EQ(answers.size(), 14u);
    EXPECT_EQ(engine.free_pages(), engine.n_pages());
    return answers;
  };
  FakeModel roomy, narrow, single;
  const auto want = run(64, 4, roomy);
  EXPECT_GT(roomy.max_rows, 20u);
  EXPECT_EQ(run(5, 2, narrow), want);
  EXPECT_EQ(narrow.max_rows, 5u);
  EXPECT_EQ(run(1, 3, single), want);
  EXPECT_EQ(single.max_rows, 3u) << "one for every slot";
}

TEST(Admission, PromptLogprobsAreComputedOnce) {
  // The second request loses its pages while it decodes. What it then computes again has one row.
  const auto rows_of = [](bool wanted, int64_t& preemptions) {
    FakeModel model(50, 4);
    EngineOptions options = options_of(64, 64);
    options.n_slots = 2;
    options.chunk_tokens = 64;
    Engine engine(model, nullptr, options);
    for (int i = 0; i < 2; ++i) {
      Request request = request_of(12 + i);
      request.config.max_new_tokens = 30;
      if (i == 1 && wanted) request.config.prompt_logprobs = 0;
      engine.submit(request);
    }
    while (!engine.idle())
      engine.step();
    preemptions = engine.n_preemptions();
    return model.n_rows;
  };
  int64_t preemptions = 0;
  const int64_t without = rows_of(false, preemptions);
  EXPECT_EQ(rows_of(true, preemptions), without + 12);
  EXPECT_GT(preemptions, 0) << "the test must reach preemption";
  // A prompt of one token has none, and no rows besides the usual.
  FakeModel model;
  Engine engine(model, nullptr, options_of(32));
  Request one = request_of(1);
  one.config.max_new_tokens = 5;
  one.config.prompt_logprobs = 1;
  EXPECT_TRUE(engine.generate(one).prompt_logprobs.empty());
}

}  // namespace
}  // namespace qw
