// Embeddings of the bundled model: against hidden states seen directly, and whatever the schedule.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/bundle.h"
#include "engine/engine.h"

namespace qw {
namespace {

class HiddenStates : public ForwardObserver {
 public:
  bool wants(std::string_view name) override { return name == "hidden.norm"; }
  void on_value(std::string_view, int64_t rows, int64_t cols, const float* values) override {
    hidden = cols;
    data.insert(data.end(), values, values + rows * cols);
  }
  int64_t hidden = 0;
  std::vector<float> data;
};

std::unique_ptr<LoadedModel> load(int64_t chunk, int64_t kv_tokens = 0, int64_t ctx = 128) {
  OpenOptions options;
  options.backend.n_threads = 2;
  options.engine.ctx = ctx;
  options.engine.n_slots = 3;
  options.engine.chunk_tokens = chunk;
  options.engine.kv_tokens = kv_tokens;
  options.engine.check_integrity = true;
  options.quiet = true;
  return open_model(std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat", options);
}

Request request_of(std::vector<int32_t> prompt, Pooling pooling) {
  Request request;
  request.prompt = std::move(prompt);
  request.pooling = pooling;
  return request;
}

std::vector<int32_t> prompt_of(int n, int step) {
  std::vector<int32_t> ids;
  for (int i = 0; i < n; ++i)
    ids.push_back((17 + i * step) % 5000);
  return ids;
}

TEST(Pooling, IsTheLastHiddenStateOrTheirMean) {
  const auto loaded = load(512);
  const auto engine = loaded->make_engine();
  const std::vector<int32_t> prompt = prompt_of(37, 13);
  HiddenStates seen;
  ScoreOptions options;
  options.observer = &seen;
  engine->score(
      prompt, [](int64_t, int64_t, const float*) {}, options);
  const auto hidden = static_cast<size_t>(seen.hidden);
  ASSERT_EQ(seen.data.size(), prompt.size() * hidden);

  const RequestResult last = engine->generate(request_of(prompt, Pooling::kLast));
  const RequestResult mean = engine->generate(request_of(prompt, Pooling::kMean));
  ASSERT_EQ(last.embedding.size(), hidden);
  ASSERT_EQ(mean.embedding.size(), hidden);
  for (size_t k = 0; k < hidden; ++k) {
    EXPECT_EQ(last.embedding[k], seen.data[(prompt.size() - 1) * hidden + k]);
    double sum = 0;
    for (size_t i = 0; i < prompt.size(); ++i)
      sum += static_cast<double>(seen.data[i * hidden + k]);
    EXPECT_FLOAT_EQ(mean.embedding[k], static_cast<float>(sum / 37));
  }
  EXPECT_TRUE(last.completions[0].ids.empty());
  EXPECT_EQ(last.completions[0].finish_reason, FinishReason::kStop);
}

TEST(Pooling, DependsOnNeitherChunksNorMatesNorTheCache) {
  const std::vector<int32_t> prompt = prompt_of(60, 7);
  for (const Pooling pooling : {Pooling::kLast, Pooling::kMean}) {
    const auto loaded = load(512);
    const auto alone = loaded->make_engine();
    const std::vector<float> expected = alone->generate(request_of(prompt, pooling)).embedding;
    // Again, with the prompt in the cache.
    EXPECT_EQ(alone->generate(request_of(prompt, pooling)).embedding, expected);

    // In small chunks behind a request that grows, with pages for two: it loses its own half way.
    const auto small = load(8, 128);
    const auto engine = small->make_engine();
    Request other;
    other.prompt = prompt_of(52, 3);
    other.config.max_new_tokens = 40;
    engine->submit(other);
    engine->submit(request_of(prompt_of(50, 11), pooling));
    const RequestId id = engine->submit(request_of(prompt, pooling));
    int n_checked = 0;
    while (!engine->idle()) {
      for (const Event& event : engine->step()) {
        if (event.kind != Event::Kind::kRequest || event.request != id) continue;
        EXPECT_EQ(event.result->embedding, expected);
        ++n_checked;
      }
    }
    EXPECT_EQ(n_checked, 1);
    EXPECT_GT(engine->n_preemptions(), 0);
  }
}

TEST(Pooling, TakesAPromptOfTheWholeContext) {
  const auto roomy_model = load(512, 0, 256), exact_model = load(512);
  const auto roomy = roomy_model->make_engine(), exact = exact_model->make_engine();
  const std::vector<int32_t> prompt = prompt_of(128, 3);
  for (const Pooling pooling : {Pooling::kLast, Pooling::kMean}) {
    const std::vector<float> embedding = exact->generate(request_of(prompt, pooling)).embedding;
    ASSERT_FALSE(embedding.empty());
    EXPECT_EQ(embedding, roomy->generate(request_of(prompt, pooling)).embedding);
  }
}

TEST(Pooling, RefusesWhatMakesNoSenseOrDoesNotFit) {
  const auto loaded = load(512);
  const auto engine = loaded->make_engine();
  Request request = request_of({1, 2, 3}, Pooling::kMean);
  request.config.num_beams = 2;
  EXPECT_THROW(engine->submit(request), Error);
  EXPECT_THROW(engine->submit(request_of(prompt_of(129, 3), Pooling::kMean)), Error);
  // In the context, but not in the cache of keys and values.
  const auto small = load(512, 64);
  const auto narrow = small->make_engine();
  EXPECT_THROW(narrow->submit(request_of(prompt_of(65, 3), Pooling::kMean)), Error);
  EXPECT_FALSE(narrow->generate(request_of(prompt_of(64, 3), Pooling::kMean)).embedding.empty());
}

}  // namespace
}  // namespace qw
