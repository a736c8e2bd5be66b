// Constrained beam search: every forced word is said, and with beams enough for every sequence the
// answer is the best that says them.
#include "engine/forced_words.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "engine/engine.h"
#include "engine/fake_model.h"

namespace qw {
namespace {

using Ids = std::vector<int32_t>;

bool says(const Ids& ids, const ForcedWord& word) {
  return std::any_of(word.forms.begin(), word.forms.end(), [&](const Ids& form) {
    return std::search(ids.begin(), ids.end(), form.begin(), form.end()) != ids.end();
  });
}

TEST(ForcedWords, AWordIsBegunContinuedAndUndone) {
  const std::vector<ForcedWord> words = {{{{1, 2, 3}}}, {{{4}, {5, 6}}}};
  ForcedWordsState state(words);
  EXPECT_EQ(state.advances(), (Ids{1, 4, 5}));
  EXPECT_EQ(state.bank(), 0);
  state.add(9);  // says nothing
  state.add(1);
  state.add(2);
  EXPECT_EQ(state.advances(), Ids{3});
  EXPECT_EQ(state.bank(), 2);
  state.add(4);  // breaks the word, and is not looked at as a beginning
  EXPECT_EQ(state.bank(), 0);
  EXPECT_EQ(state.advances(), (Ids{4, 5, 1}));
  for (const int32_t id : {5, 6})
    state.add(id);
  EXPECT_EQ(state.bank(), 3);  // a word that is said counts as the longest
  EXPECT_FALSE(state.all_said());
  for (const int32_t id : {1, 2, 3})
    state.add(id);
  EXPECT_TRUE(state.all_said());
  EXPECT_TRUE(state.advances().empty());
  EXPECT_EQ(state.bank(), 6);
  state.add(1);
  EXPECT_TRUE(state.all_said());
}

TEST(ForcedWords, BanksTakeTurns) {
  const ForcedWords forced({{{{7, 8}}}}, Ids{0});
  const Ids a = {1}, b = {7};
  const std::vector<std::span<const int32_t>> beams = {a, b};
  const std::vector<BeamCandidate> chosen = {{0, 1, -1.0f}, {0, 2, -1.5f}, {1, 3, -2.0f}};
  const auto score = [](int beam, int32_t token) {
    return beam == 0 ? -30.0f : -20.0f - static_cast<float>(token);
  };
  const auto next = forced.steer(chosen, beams, score, 3);
  ASSERT_EQ(next.size(), 3u);
  // The best of bank 2 (the whole word), of bank 1 and of bank 0, in spite of their scores.
  EXPECT_EQ(next[0].token, 8);
  EXPECT_EQ(next[0].beam, 1);
  EXPECT_EQ(next[0].score, -28.0f);
  EXPECT_EQ(next[1].token, 7);
  EXPECT_EQ(next[1].beam, 0);
  EXPECT_EQ(next[2].token, 1);
}

Request beams_of(const Ids& prompt, int64_t n_beams, int64_t max_new) {
  Request request;
  request.prompt = prompt;
  request.config.num_beams = n_beams;
  request.config.max_new_tokens = max_new;
  return request;
}

EngineOptions options_of(int64_t ctx, int64_t kv_tokens) {
  EngineOptions options;
  options.ctx = ctx;
  options.kv_tokens = kv_tokens;
  options.check_integrity = true;
  return options;
}

TEST(ForcedWords, EveryWordIsSaid) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    FakeModel model(40, 4);
    Engine engine(model, nullptr, options_of(64, 2048));
    const auto word = [&](uint64_t n) {  // ids from 10 on; the prompt is below
      return static_cast<int32_t>(10 + random_bits(seed, 5, n) % 30);
    };
    Request request = beams_of({1, 2, static_cast<int32_t>(seed % 9)}, 4, 14);
    request.config.num_return_sequences = 1;
    request.config.eos_token_id = {9};
    request.config.force_words_ids = {{{{word(0), word(1)}}}, {{{word(2)}, {word(3), word(4)}}}};
    if (word(2) == word(3)) request.config.force_words_ids[1].forms.pop_back();
    const RequestResult result = engine.generate(request);
    ASSERT_EQ(result.completions.size(), 1u);
    for (const Completion& completion : result.completions) {
      for (const ForcedWord& forced : request.config.force_words_ids)
        EXPECT_TRUE(says(completion.ids, forced)) << "seed " << seed;
    }
    Request free = request;
    free.config.force_words_ids.clear();
    EXPECT_FALSE(says(engine.generate(free).completions[0].ids, request.config.force_words_ids[0]))
        << "the word must not come by itself";
    EXPECT_EQ(engine.free_pages(), engine.n_pages());
  }
}

TEST(ForcedWords, WithBeamsForAllSequencesTheBestOneWins) {
  constexpr int64_t kVocab = 4, kNew = 4, kAll = 256;  // 4^4 sequences
  const std::vector<std::vector<ForcedWord>> cases = {
      {{{{2}}}}, {{{{1, 3}}}}, {{{{0, 0}}}, {{{3}}}}, {{{{1, 2}, {2, 1}}}}};
  for (size_t c = 0; c < cases.size(); ++c) {
    FakeModel model(kVocab, 4);
    Engine engine(model, nullptr, options_of(16, 8192));
    const Ids prompt = {static_cast<int32_t>(c % 4) == 3 ? 0 : 1};
    double best = -1e9;
    Ids best_ids;
    for (int n = 0; n < kAll; ++n) {
      const Ids ids = {n & 3, (n >> 2) & 3, (n >> 4) & 3, (n >> 6) & 3};
      // Said in the sense of the search, the prompt included.
      if (!ForcedWords(cases[c], prompt).all_said(ids)) continue;
      Ids all = prompt;
      all.insert(all.end(), ids.begin(), ids.end());
      double sum = 0;
      for (const TokenLogprobs& token : engine.score_logprobs(all))
        sum += static_cast<double>(token.chosen.logprob);
      if (sum / kNew > best) {
        best = sum / kNew;
        best_ids = ids;
      }
    }
    Request request = beams_of(prompt, kAll, kNew);
    request.config.force_words_ids = cases[c];
    const RequestResult result = engine.generate(request);
    EXPECT_EQ(result.completions[0].ids, best_ids) << "case " << c;
    EXPECT_NEAR(*result.completions[0].score, best, 1e-5);
  }
}

}  // namespace
}  // namespace qw
