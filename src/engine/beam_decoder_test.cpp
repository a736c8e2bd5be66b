// Beam search with stop strings and log-probabilities, against a search that scores every candidate
// by itself and looks for stop strings in the whole text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "engine/bundle.h"
#include "engine/fake_model.h"
#include "engine/logits_math.h"
#include "text/tokenizer.h"

namespace qw {
namespace {

using Ids = std::vector<int32_t>;

/// The obvious search: every step scores all beams anew and sorts all candidates.
class PlainBeamSearch {
 public:
  PlainBeamSearch(Engine& engine, const Tokenizer& tokenizer, const Request& request)
      : engine_(engine), tokenizer_(tokenizer), request_(request), config_(request.config) {}

  struct Found {
    double score = 0;
    Ids ids;
    std::string text;  // whole, stop string included
    FinishReason reason = FinishReason::kLength;
  };

  std::vector<Found> run() {
    std::vector<Beam> beams = {{}};
    for (int64_t step = 1; step <= *config_.max_new_tokens && !done_; ++step)
      beams = advance(beams, step);
    for (const Beam& beam : beams) {
      if (!done_) keep({beam.score, beam.ids, tokenizer_.decode(beam.ids), FinishReason::kLength});
    }
    std::stable_sort(found_.begin(), found_.end(),
                     [](const Found& a, const Found& b) { return a.score > b.score; });
    found_.resize(static_cast<size_t>(config_.num_return_sequences));
    return found_;
  }

 private:
  struct Beam {
    Ids ids;
    float score = 0;
  };

  std::vector<float> row_after(const Ids& ids) const {
    Ids all = request_.prompt;
    all.insert(all.end(), ids.begin(), ids.end());
    std::vector<float> row;
    ScoreOptions options;
    options.first_row = ssize(all) - 1;
    engine_.score(
        all,
        [&](int64_t, int64_t n, const float* logits) {
          EXPECT_EQ(n, 1);
          row.assign(logits, logits + engine_.usable_vocab());
        },
        options);
    log_softmax(row);
    for (const int32_t id : config_.suppress_tokens)
      row[static_cast<size_t>(id)] = kMinusInfinity;
    return row;
  }

  bool stops(const std::string& text) const {
    return std::any_of(config_.stop_strings.begin(), config_.stop_strings.end(),
                       [&](const std::string& stop) { return text.find(stop) != text.npos; });
  }

  std::vector<Beam> advance(const std::vector<Beam>& beams, int64_t step) {
    std::vector<Beam> candidates;
    for (const Beam& beam : beams) {
      const std::vector<float> row = row_after(beam.ids);
      for (size_t id = 0; id < row.size(); ++id) {
        if (row[id] == kMinusInfinity) continue;
        candidates.push_back({beam.ids, beam.score + row[id]});
        candidates.back().ids.push_back(static_cast<int32_t>(id));
      }
    }
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Beam& a, const Beam& b) { return a.score > b.score; });
    std::vector<Beam> next;
    for (int64_t rank = 0; rank < ssize(candidates) && ssize(next) < config_.num_beams; ++rank) {
      const Beam& c = candidates[static_cast<size_t>(rank)];
      const bool eos = config_.is_eos(c.ids.back());
      const std::string text = tokenizer_.decode(eos ? Ids(c.ids.begin(), c.ids.end() - 1) : c.ids);
      if (!eos && !stops(text)) {
        next.push_back(c);
      } else if (rank < config_.num_beams) {
        keep({c.score, c.ids, text, eos ? FinishReason::kEos : FinishReason::kStop});
      }
    }
    if (ssize(found_) >= config_.num_beams) {
      const double reachable = static_cast<double>(candidates[0].score) / divisor(step);
      done_ = config_.early_stopping == EarlyStopping::kTrue || worst() >= reachable;
    }
    return next;
  }

  double divisor(int64_t length) const {
    return std::pow(static_cast<double>(length), config_.length_penalty);
  }
  double worst() const {
    double worst = 1e9;
    for (const Found& f : found_)
      worst = std::min(worst, f.score);
    return worst;
  }
  /// Of num_beams answers the worst makes room.
  void keep(Found found) {
    found.score /= divisor(ssize(found.ids));
    if (ssize(found_) >= config_.num_beams) {
      if (found.score <= worst()) return;
      std::erase_if(found_, [w = worst()](const Found& f) { return f.score == w; });
    }
    found_.push_back(std::move(found));
  }

  Engine& engine_;
  const Tokenizer& tokenizer_;
  const Request& request_;
  const GenerationConfig& config_;
  std::vector<Found> found_;
  bool done_ = false;
};

void expect_equal(const std::vector<PlainBeamSearch::Found>& want, const RequestResult& got,
                  Engine& scorer, const Request& request, const std::string& where) {
  ASSERT_EQ(got.completions.size(), want.size()) << where;
  for (size_t i = 0; i < want.size(); ++i) {
    const Completion& completion = got.completions[i];
    EXPECT_EQ(completion.ids, want[i].ids) << where << " answer " << i;
    EXPECT_EQ(completion.finish_reason, want[i].reason) << where;
    EXPECT_NEAR(completion.score.value_or(0), want[i].score, 1e-5) << where;
    const size_t cut = want[i].reason == FinishReason::kStop
                           ? want[i].text.find(completion.stop_string)
                           : want[i].text.size();
    EXPECT_EQ(completion.text, want[i].text.substr(0, cut)) << where;

    Ids all = request.prompt;
    all.insert(all.end(), completion.ids.begin(), completion.ids.end());
    const auto scored = scorer.score_logprobs(all, *request.config.logprobs);
    ASSERT_EQ(completion.logprobs.size(), completion.ids.size()) << where;
    for (size_t t = 0; t < completion.ids.size(); ++t) {
      const TokenLogprobs& expected = scored[t + request.prompt.size() - 1];
      EXPECT_EQ(completion.logprobs[t].chosen.id, completion.ids[t]) << where;
      EXPECT_EQ(completion.logprobs[t].chosen.logprob, expected.chosen.logprob) << where;
      EXPECT_EQ(completion.logprobs[t].rank, expected.rank) << where;
      ASSERT_EQ(completion.logprobs[t].top.size(), expected.top.size()) << where;
      for (size_t k = 0; k < expected.top.size(); ++k) {
        EXPECT_EQ(completion.logprobs[t].top[k].id, expected.top[k].id) << where;
        EXPECT_EQ(completion.logprobs[t].top[k].logprob, expected.top[k].logprob) << where;
      }
    }
  }
}

TEST(BeamSearch, StopStringsAndLogprobsEqualAPlainSearch) {
  // Words of two letters out of three: stop strings lie within words and across their borders.
  std::vector<std::string> words;
  for (const char a : {'x', 'y', 'z'}) {
    for (const char b : {'x', 'y', 'z'})
      words.push_back({a, b});
  }
  words.push_back("<end>");
  const auto tokenizer = fake_tokenizer(words);
  FakeModel model(ssize(words) + 256), other(ssize(words) + 256);
  EngineOptions options;
  options.ctx = 64;
  options.check_integrity = true;
  options.kv_tokens = 512;
  Engine engine(model, tokenizer, options), scorer(other, nullptr, options);
  int stopped = 0, ended = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    Request request;
    for (uint64_t i = 0; i < 1 + seed % 6; ++i)
      request.prompt.push_back(static_cast<int32_t>(random_bits(seed, 2, i) % 9));
    GenerationConfig& config = request.config;
    config.max_new_tokens = 3 + static_cast<int64_t>(seed % 6);
    config.num_beams = 2 + static_cast<int64_t>(seed % 3);
    config.num_return_sequences = 2;
    config.early_stopping = seed % 2 == 0 ? EarlyStopping::kTrue : EarlyStopping::kFalse;
    config.length_penalty = seed % 5 == 0 ? 0.5 : 1;
    config.logprobs = 3;
    config.eos_token_id = {9};
    for (int32_t byte = 0; byte < 256; ++byte)
      config.suppress_tokens.push_back(static_cast<int32_t>(words.size()) + byte);
    const std::vector<std::vector<std::string>> stops = {
        {"yyz"}, {"zx", "xyxy"}, {"x", "y"}, {"zzzz"}};
    config.stop_strings = stops[seed % 4];
    const auto want = PlainBeamSearch(scorer, *tokenizer, request).run();
    const RequestResult got = engine.generate(request);
    expect_equal(want, got, scorer, request, fmt::format("seed {}", seed));
    for (const Completion& completion : got.completions) {
      stopped += completion.finish_reason == FinishReason::kStop ? 1 : 0;
      ended += completion.finish_reason == FinishReason::kEos ? 1 : 0;
    }
    EXPECT_EQ(engine.free_pages(), engine.n_pages());
  }
  EXPECT_GT(stopped, 15);
  EXPECT_GT(ended, 5);
}

TEST(BeamSearch, AForcedWordMayCompleteAStopString) {
  const auto tokenizer = fake_tokenizer({"a", "b", "c", "d", "e", "f"});
  const Ids kWord = {2, 3};
  FakeModel model(6 + 256);
  EngineOptions options;
  options.ctx = 64;
  options.kv_tokens = 512;
  Engine engine(model, tokenizer, options);
  Request request;
  request.prompt = {0, 1};
  request.config.num_beams = 3;
  request.config.max_new_tokens = 8;
  request.config.logprobs = 0;
  request.config.force_words_ids = {ForcedWord{{kWord}}};
  request.config.stop_strings = {"cd"};
  request.config.num_return_sequences = 3;
  int stopped = 0;
  for (const Completion& answer : engine.generate(request).completions) {
    EXPECT_EQ(answer.logprobs.size(), answer.ids.size());
    const auto word = std::search(answer.ids.begin(), answer.ids.end(), kWord.begin(), kWord.end());
    if (word == answer.ids.end()) continue;  // at the last position others compete by score
    ++stopped;
    EXPECT_EQ(word, answer.ids.end() - 2);
    EXPECT_EQ(answer.finish_reason, FinishReason::kStop);
    EXPECT_EQ(answer.stop_string, "cd");
  }
  EXPECT_GT(stopped, 0);
}

TEST(BeamSearch, EndsAtStopTokensAndWaitsWithStopStrings) {
  const auto tokenizer = fake_tokenizer({"a", "b", "c", "d", "e", "f"});
  FakeModel model(6 + 256);
  EngineOptions options;
  options.ctx = 64;
  options.kv_tokens = 512;
  Engine engine(model, tokenizer, options);
  Request request;
  request.prompt = {0, 1};
  request.config.num_beams = 3;
  request.config.num_return_sequences = 3;
  request.config.max_new_tokens = 12;
  for (int32_t id = 6; id < 6 + 256; ++id)
    request.config.suppress_tokens.push_back(id);
  request.config.eos_token_id = {5};
  request.config.ignore_eos = true;
  Request tokens = request;
  tokens.config.stop_token_ids = {3, 4};
  int ended = 0;
  for (const Completion& answer : engine.generate(tokens).completions) {
    for (size_t i = 0; i < answer.ids.size(); ++i) {
      const bool stops = answer.ids[i] == 3 || answer.ids[i] == 4;
      EXPECT_EQ(stops, answer.finish_reason == FinishReason::kEos && i + 1 == answer.ids.size());
    }
    if (answer.finish_reason != FinishReason::kEos) continue;
    ++ended;
    EXPECT_EQ(answer.stop_token, answer.ids.back());
  }
  EXPECT_GT(ended, 0);
  Request strings = request;
  strings.config.stop_strings = {"a", "b", "c"};
  strings.stop_after = 4;
  int stopped = 0;
  for (const Completion& answer : engine.generate(strings).completions) {
    stopped += answer.finish_reason == FinishReason::kStop ? 1 : 0;
    EXPECT_GT(answer.ids.size(), 4u);
  }
  EXPECT_GT(stopped, 0);
}

TEST(BeamSearch, TheBundledModelEqualsAPlainSearch) {
  OpenOptions options;
  options.quiet = true;
  options.engine.ctx = 128;
  options.engine.kv_tokens = 1024;
  options.engine.check_integrity = true;
  const auto loaded =
      open_model(std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat", options);
  const auto engine = loaded->make_engine(), scorer = loaded->make_engine();
  int stopped = 0;
  for (const char* text :
       {"The capital of France", "One, two, three,", "\xE4\xBD\xA0\xE5\xA5\xBD"}) {
    Request request;
    request.prompt = loaded->tokenizer->encode(text);
    GenerationConfig& config = request.config;
    config.max_new_tokens = 10;
    config.num_beams = 3;
    config.num_return_sequences = 3;
    config.logprobs = 2;
    config.eos_token_id = loaded->chat_generation().eos_token_id;
    config.stop_strings = {".", "r, f", "\n"};
    const auto want = PlainBeamSearch(*scorer, *loaded->tokenizer, request).run();
    const RequestResult got = engine->generate(request);
    expect_equal(want, got, *scorer, request, text);
    for (const Completion& completion : got.completions)
      stopped += completion.finish_reason == FinishReason::kStop ? 1 : 0;
  }
  EXPECT_GT(stopped, 0);
}

}  // namespace
}  // namespace qw
