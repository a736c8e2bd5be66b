// What choosing a token costs: microseconds per token at the family's vocabulary of 151,936.
//
// Every benchmark does what the engine does with one row of logits: admits it, runs the request's
// processors and warpers, chooses, and (where asked for) takes log-probabilities. The row is made
// anew outside the measured time. Two kinds of rows: "flat", nearly normal numbers as a model with
// random weights gives them, the worst case of rules that cut a tail; and "peaked", with few likely
// tokens above a wide tail, as trained models give them.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "base/rng.h"
#include "engine/logits_process.h"
#include "engine/sampler.h"
#include "text/stop_strings.h"

namespace {

constexpr int64_t kVocab = 151'936, kUsableVocab = 151'646, kHistory = 4'000, kPrompt = 3'000;
enum Shape { kFlat, kPeaked };

std::vector<float> make_row(Shape shape) {
  std::vector<float> row(kVocab);
  for (size_t i = 0; i < row.size(); ++i)
    row[i] = static_cast<float>(qw::random_normal(1, 0, i) * (shape == kFlat ? 1.0 : 3.0));
  for (size_t i = 0; shape == kPeaked && i < 30; ++i)
    row[i * 5003] = 24.0f - 0.7f * static_cast<float>(i);
  return row;
}

/// Words come again: ids of a Zipf-like distribution.
std::vector<int32_t> make_history() {
  std::vector<int32_t> ids(kHistory);
  for (size_t i = 0; i < ids.size(); ++i) {
    const double u = qw::random_uniform(2, 0, i);
    ids[i] = static_cast<int32_t>(u * u * u * static_cast<double>(kUsableVocab));
  }
  return ids;
}

/// Time of a token alone, without that of making the row.
template <typename Choose>
void measure(benchmark::State& state, Choose choose) {
  const std::vector<float> fresh = make_row(static_cast<Shape>(state.range(0)));
  std::vector<float> row(fresh.size());
  for (auto _ : state) {
    std::copy(fresh.begin(), fresh.end(), row.begin());
    const auto begin = std::chrono::steady_clock::now();
    benchmark::DoNotOptimize(choose(row));
    state.SetIterationTime(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  state.SetLabel(state.range(0) == kFlat ? "flat" : "peaked");
}

void choose_tokens(benchmark::State& state, const qw::GenerationConfig& config) {
  const std::vector<int32_t> ids = make_history();
  const qw::LogitsPipeline pipeline =
      qw::make_pipeline(config, std::span(ids).first(kPrompt), kHistory + 1000, kUsableVocab);
  measure(state, [&](std::span<float> scores) {
    qw::admit_logits(scores, config, kHistory);
    std::vector<float> raw;
    if (config.logprobs) raw.assign(scores.begin(), scores.end());
    qw::LogitsRow row(scores);
    pipeline.apply({ids, kPrompt}, row);
    const int32_t id = qw::choose_token(row, config, 0, kHistory);
    if (config.logprobs) benchmark::DoNotOptimize(qw::token_logprobs(raw, id, *config.logprobs));
    return id;
  });
}

qw::GenerationConfig greedy() {
  qw::GenerationConfig config;
  config.do_sample = false;
  return config;
}
qw::GenerationConfig sampling() {
  qw::GenerationConfig config;
  config.do_sample = true;
  config.top_k = 0;
  return config;
}
/// What the published chat models recommend.
qw::GenerationConfig qwen() {
  qw::GenerationConfig config = sampling();
  config.temperature = 0.7;
  config.top_k = 20;
  config.top_p = 0.8;
  config.repetition_penalty = 1.1;
  return config;
}

void BM_Greedy(benchmark::State& state) {
  choose_tokens(state, greedy());
}
void BM_GreedyRepetitionPenalty(benchmark::State& state) {
  qw::GenerationConfig config = greedy();
  config.repetition_penalty = 1.1;
  choose_tokens(state, config);
}
void BM_GreedyLogprobs20(benchmark::State& state) {
  qw::GenerationConfig config = greedy();
  config.logprobs = 20;
  choose_tokens(state, config);
}
void BM_GreedyNoRepeatNgram(benchmark::State& state) {
  qw::GenerationConfig config = greedy();
  config.no_repeat_ngram_size = 3;
  choose_tokens(state, config);
}
void BM_GreedyPresenceFrequency(benchmark::State& state) {
  qw::GenerationConfig config = greedy();
  config.presence_penalty = 0.5;
  config.frequency_penalty = 0.5;
  choose_tokens(state, config);
}
void BM_QwenDefaults(benchmark::State& state) {
  choose_tokens(state, qwen());
}
void BM_QwenDefaultsLogprobs20(benchmark::State& state) {
  qw::GenerationConfig config = qwen();
  config.logprobs = 20;
  choose_tokens(state, config);
}
void BM_PlainSampling(benchmark::State& state) {
  choose_tokens(state, sampling());
}
void BM_TopP(benchmark::State& state) {
  qw::GenerationConfig config = sampling();
  config.temperature = 0.7;
  config.top_p = 0.8;
  choose_tokens(state, config);
}
void BM_MinP(benchmark::State& state) {
  qw::GenerationConfig config = sampling();
  config.temperature = 0.7;
  config.min_p = 0.05;
  choose_tokens(state, config);
}
void BM_AllFour(benchmark::State& state) {
  qw::GenerationConfig config = qwen();
  config.min_p = 0.05;
  choose_tokens(state, config);
}
void BM_TypicalP(benchmark::State& state) {
  qw::GenerationConfig config = sampling();
  config.typical_p = 0.9;
  choose_tokens(state, config);
}
void BM_EtaCutoff(benchmark::State& state) {
  qw::GenerationConfig config = sampling();
  config.eta_cutoff = 3e-4;
  choose_tokens(state, config);
}

/// Per row of `score --logprobs`, of perplexity and of prompt log-probabilities.
void BM_RowLogprobs(benchmark::State& state) {
  measure(state, [&](std::span<float> row) {
    qw::check_finite(row, 0);
    return qw::token_logprobs(row, 17, 0);
  });
}

/// Eight stop strings that nearly match all the time, over four bytes of text per token.
void BM_StopStrings(benchmark::State& state) {
  std::vector<std::string> strings;
  for (const char c : std::string("abcdefgh"))
    strings.push_back("the end" + std::string(20, c));
  qw::StopStrings stop(std::move(strings));
  for (auto _ : state) {
    for (const char* piece : {"the ", "enda", "aaaa", "aab "})
      benchmark::DoNotOptimize(stop.push(piece));
  }
  state.SetItemsProcessed(state.iterations() * 4);
}
BENCHMARK(BM_StopStrings);

#define QW_ROWS(name) \
  BENCHMARK(name)->Arg(kFlat)->Arg(kPeaked)->UseManualTime()->Unit(benchmark::kMicrosecond)
QW_ROWS(BM_Greedy);
QW_ROWS(BM_GreedyRepetitionPenalty);
QW_ROWS(BM_GreedyNoRepeatNgram);
QW_ROWS(BM_GreedyPresenceFrequency);
QW_ROWS(BM_GreedyLogprobs20);
QW_ROWS(BM_QwenDefaults);
QW_ROWS(BM_QwenDefaultsLogprobs20);
QW_ROWS(BM_AllFour);
QW_ROWS(BM_PlainSampling);
QW_ROWS(BM_TopP);
QW_ROWS(BM_MinP);
QW_ROWS(BM_TypicalP);
QW_ROWS(BM_EtaCutoff);
QW_ROWS(BM_RowLogprobs);

}  // namespace
