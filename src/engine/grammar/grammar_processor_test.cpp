// Constrained requests in the engine: what they say, and that nobody else notices.
#include "engine/grammar/grammar_processor.h"

#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "base/error.h"
#include "engine/engine.h"
#include "engine/fake_model.h"
#include "engine/grammar/grammar_cache.h"

namespace qw {
namespace {

using grammar::ConfigId;
using grammar::kDead;

constexpr int32_t kEos = 0;

/// Token 0 ends; pieces of JSON, of words and of characters; then every byte.
std::shared_ptr<const Tokenizer> tokenizer() {
  static const auto kTokenizer =
      fake_tokenizer({"<end>", "{\"", "\":", "\"}",   "\",\"", "}", "yes", "no", "name", "a",
                      "ag",    "age", "e",   "\":\"", "12",    "3", "1",   "é",  "true", "false",
                      "[",     "]",   ",",   " ",     "ye",    "s", "n",   "o"});
  return kTokenizer;
}

std::shared_ptr<GrammarMatcher> matcher_of(std::shared_ptr<const Grammar> grammar) {
  static const auto kVocabulary = std::make_shared<const GrammarVocabulary>(*tokenizer());
  return std::make_shared<GrammarMatcher>(std::move(grammar), kVocabulary);
}

constexpr const char* kSchema =
    R"({"type":"object","properties":{"name":{"type":"string","maxLength":9},)"
    R"("age":{"type":"integer","minimum":0,"maximum":130},"ok":{"type":"boolean"}},)"
    R"("required":["name","age"],"additionalProperties":false})";

EngineOptions options(int64_t slots = 6) {
  EngineOptions out;
  out.ctx = 128;
  out.n_slots = slots;
  out.chunk_tokens = 16;
  out.logit_rows = 32;
  out.check_integrity = true;
  return out;
}

Request request(uint64_t seed, const std::shared_ptr<GrammarMatcher>& matcher = nullptr) {
  Request out;
  for (uint64_t i = 0; i < 3 + seed % 5; ++i)
    out.prompt.push_back(static_cast<int32_t>(random_bits(seed, 7, i) % 200));
  out.config.max_new_tokens = 60;
  out.config.do_sample = true;
  out.config.seed = seed;
  out.config.eos_token_id = {kEos};
  out.config.num_assistant_tokens = 0;
  if (matcher)
    out.processors.push_back(std::make_shared<GrammarProcessor>(matcher, std::vector{kEos}));
  return out;
}

RequestResult run(Request request, const EngineOptions& engine_options = options(),
                  double habit = 0) {
  FakeModel model(tokenizer()->size());
  model.habit = habit;
  Engine engine(model, tokenizer(), engine_options);
  return engine.generate(std::move(request));
}

TEST(GrammarProcessor, AnswersFitOrAreCutByTheirLength) {
  const auto grammar = Grammar::from_json_schema(kSchema);
  const auto matcher = matcher_of(grammar);
  int n_ended = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const Completion answer = run(request(seed, matcher)).completions.at(0);
    if (answer.finish_reason == FinishReason::kEos) {
      ++n_ended;
      EXPECT_TRUE(grammar->accepts(answer.text)) << answer.text;
    } else {
      ASSERT_EQ(answer.finish_reason, FinishReason::kLength) << answer.error;
      std::string bytes;  // the text leaves out the beginning of a character
      for (const int32_t id : answer.ids)
        bytes += tokenizer()->token_bytes(id);
      EXPECT_TRUE(grammar->accepts_prefix(bytes)) << bytes;
    }
  }
  EXPECT_GT(n_ended, 30);
}

TEST(GrammarProcessor, TheEndIsForcedWhenNothingElseIsLeft) {
  const std::vector<std::string> texts = {"yes", "no"};
  const auto matcher = matcher_of(Grammar::choice(texts));
  std::map<std::string, int> said;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const Completion answer = run(request(seed, matcher)).completions.at(0);
    EXPECT_EQ(answer.finish_reason, FinishReason::kEos) << answer.error;
    EXPECT_EQ(answer.ids.back(), kEos);
    ++said[answer.text];
  }
  EXPECT_EQ(said.size(), 2u);
  EXPECT_GT(said["yes"], 0);
}

TEST(GrammarProcessor, BatchMatesKeepTheirBits) {
  const auto matcher = matcher_of(Grammar::from_json_schema(kSchema));
  std::vector<Request> requests;
  for (uint64_t seed = 1; seed <= 8; ++seed)
    requests.push_back(request(seed, seed % 2 == 0 ? matcher : nullptr));
  FakeModel model(tokenizer()->size());
  EngineOptions small = options();
  small.kv_tokens = 200;  // so that sequences are preempted and computed again
  Engine engine(model, tokenizer(), small);
  std::map<RequestId, size_t> index;
  for (size_t i = 0; i < requests.size(); ++i)
    index[engine.submit(requests[i])] = i;
  size_t n_done = 0;
  while (!engine.idle()) {
    for (const Event& event : engine.step()) {
      if (event.kind != Event::Kind::kRequest) continue;
      const size_t i = index.at(event.request);
      const RequestResult alone = run(requests[i]);
      EXPECT_EQ(event.result->completions.at(0).ids, alone.completions.at(0).ids) << i;
      ++n_done;
    }
  }
  EXPECT_EQ(n_done, requests.size());
  EXPECT_GT(engine.n_preemptions(), 0);
}

TEST(GrammarProcessor, GuessingAheadChangesNothing) {
  const auto matcher = matcher_of(Grammar::from_regex("(?:yes|no|true|,){50}"));
  int64_t n_accepted = 0, n_wrong = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Request plain = request(seed, matcher);
    plain.config.do_sample = seed % 4 == 0;
    plain.config.temperature = 0.7;
    Request guessing = plain;
    guessing.processors = {std::make_shared<GrammarProcessor>(matcher, std::vector{kEos})};
    guessing.config.prompt_lookup_num_tokens = 5;
    guessing.config.num_assistant_tokens_schedule = AssistantSchedule::kConstant;
    const RequestResult a = run(plain, options(), 4), b = run(guessing, options(), 4);
    EXPECT_EQ(a.completions.at(0).ids, b.completions.at(0).ids);
    EXPECT_EQ(b.completions.at(0).error, "");
    n_accepted += b.timings.n_accepted;
    n_wrong += b.timings.n_drafted - b.timings.n_accepted;
  }
  EXPECT_GT(n_accepted, 20);
  EXPECT_GT(n_wrong, 20);
}

TEST(GrammarProcessor, SeveralAnswersAndBeams) {
  const auto grammar = Grammar::from_json_schema(
      R"({"type":"object","properties":{"name":{"enum":["yes","no","a"]}},"required":["name"],"additionalProperties":false})");
  const auto matcher = matcher_of(grammar);
  Request several = request(3, matcher);
  several.config.num_return_sequences = 5;
  const RequestResult sampled = run(several);
  ASSERT_EQ(sampled.completions.size(), 5u);
  for (const Completion& answer : sampled.completions)
    EXPECT_TRUE(grammar->accepts(answer.text)) << answer.text << answer.error;
  Request beams = request(4, matcher);
  beams.config.do_sample = false;
  beams.config.num_beams = 3;
  beams.config.num_return_sequences = 2;
  const RequestResult searched = run(beams);
  ASSERT_EQ(searched.completions.size(), 2u);
  for (const Completion& answer : searched.completions)
    EXPECT_TRUE(grammar->accepts(answer.text)) << answer.text << answer.error;
}

TEST(GrammarProcessor, TheRowAloneDecides) {
  // Any order of calls, forks and returns gives what a fresh processor gives.
  const auto grammar = Grammar::from_json_schema(kSchema);
  const auto matcher = matcher_of(grammar);
  const GrammarProcessor seasoned(matcher, {kEos});
  const auto vocab = static_cast<size_t>(tokenizer()->size());
  std::vector<std::vector<int32_t>> histories{{}};
  for (uint64_t n = 0; n < 400; ++n) {
    const std::vector<int32_t> ids = histories[random_bits(1, 1, n) % histories.size()];
    std::vector<float> a(vocab, 1.0f), b(vocab, 1.0f);
    LogitsRow row(a), fresh_row(b);
    seasoned.process({ids, 0}, row);
    GrammarProcessor(matcher_of(grammar), {kEos}).process({ids, 0}, fresh_row);
    ASSERT_EQ(a, b);
    std::vector<int32_t> allowed;
    for (size_t id = 0; id < vocab; ++id)
      if (a[id] > 0) allowed.push_back(static_cast<int32_t>(id));
    ASSERT_FALSE(allowed.empty());
    std::vector<int32_t> longer = ids;
    longer.push_back(allowed[random_bits(2, 1, n) % allowed.size()]);
    histories.push_back(std::move(longer));
  }
}

TEST(GrammarProcessor, SparseAndDenseRowsAgree) {
  const auto matcher = matcher_of(Grammar::from_regex("(?:[a-z]|yes){1,30}"));
  const GrammarProcessor processor(matcher, {kEos});
  const auto vocab = static_cast<size_t>(tokenizer()->size());
  const std::vector<int32_t> ids = {6};
  std::vector<float> dense(vocab + 5, 2.0f), sparse(vocab + 5, 2.0f);
  LogitsRow dense_row(dense), sparse_row(sparse);
  std::vector<int32_t> some;
  for (int32_t id = 0; id < static_cast<int32_t>(vocab); id += 3)
    some.push_back(id);
  sparse_row.keep_only(some);
  processor.process({ids, 0}, dense_row);
  processor.process({ids, 0}, sparse_row);
  for (size_t id = 0; id < dense.size(); ++id)
    EXPECT_EQ(sparse[id], id % 3 == 0 ? dense[id] : -std::numeric_limits<float>::infinity()) << id;
  EXPECT_EQ(dense[kEos], 2.0f);
  EXPECT_EQ(dense[vocab], -std::numeric_limits<float>::infinity());
}

TEST(GrammarProcessor, MasksOfManyTokens) {
  // So many that masks are bits: words of which all, some or hardly any stay.
  std::vector<std::string> tokens;
  for (int i = 0; i < 6000; ++i)
    tokens.push_back(i < 3000 || i % 7 == 0 || i == 5000 ? std::to_string(i) : "x");
  constexpr int32_t kEnd = 130;
  const auto vocabulary = std::make_shared<const GrammarVocabulary>(tokens);
  const auto matcher = std::make_shared<GrammarMatcher>(
      Grammar::from_regex("(?:[0-9]{1,40};)?[0-9]{5,90}"), vocabulary);
  const GrammarProcessor processor(matcher, {kEnd, 5000});
  grammar::Configurations configs(matcher->grammar().fsm());
  for (const std::vector<int32_t>& ids :
       {std::vector<int32_t>{}, std::vector<int32_t>{12}, std::vector<int32_t>{1000, 2000}}) {
    ConfigId at = configs.start();
    const auto after = [&](ConfigId config, std::string_view text) {
      for (const char byte : text)
        config = configs.step(config, static_cast<uint8_t>(byte));
      return config;
    };
    for (const int32_t id : ids)
      at = after(at, tokens[static_cast<size_t>(id)]);
    std::vector<float> dense(6100, 3.0f), sparse(6100, 3.0f);
    LogitsRow dense_row(dense), sparse_row(sparse);
    std::vector<int32_t> some;
    for (int32_t id = 0; id < 6100; id += 2)
      some.push_back(id);
    sparse_row.keep_only(some);
    processor.process({ids, 0}, dense_row);
    processor.process({ids, 0}, sparse_row);
    for (int32_t id = 0; id < 6100; ++id) {
      const auto i = static_cast<size_t>(id);
      const bool is_end = id == kEnd || id == 5000;
      const bool expected =
          is_end ? configs.accepts(at) : id < 6000 && after(at, tokens[i]) != kDead;
      ASSERT_EQ(dense[i] == 3.0f, expected) << id;
      ASSERT_EQ(sparse[i] == 3.0f, expected && id % 2 == 0) << id;
    }
  }
}

TEST(GrammarProcessor, ErrorsEndTheRequestAlone) {
  const auto matcher = matcher_of(Grammar::choice(std::vector<std::string>{"yes"}));
  Request impossible = request(1, matcher);
  impossible.config.min_new_tokens = 20;
  try {
    run(impossible);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_NE(error.message().find("leave some token that the grammar allows, got none"),
              std::string::npos)
        << error.message();
  }
  Request forced = request(1, matcher);
  forced.prompt = {5};
  forced.config.forced_bos_token_id = 7;
  EXPECT_THROW(run(forced), Error);
  const GrammarProcessor processor(matcher, {kEos});
  std::vector<float> values(400, 1.0f);
  LogitsRow row(values);
  const std::vector<int32_t> wrong = {7};
  EXPECT_THROW(processor.process({wrong, 0}, row), Error);
}

TEST(GrammarCache, CompilesOnceAndForgetsTheOldest) {
  GrammarCache cache(std::make_shared<const GrammarVocabulary>(*tokenizer()), 2);
  GrammarSource a{.kind = GrammarSource::Kind::kRegex, .text = "a"};
  GrammarSource b{.kind = GrammarSource::Kind::kRegex, .text = "b"};
  GrammarSource bad{.kind = GrammarSource::Kind::kRegex, .text = "("};
  const auto first = cache.get(a);
  EXPECT_EQ(cache.get(a), first);
  EXPECT_NE(cache.get(b), first);
  EXPECT_THROW(cache.get(bad), Error);
  EXPECT_THROW(cache.get(bad), Error);
  cache.get(b);
  GrammarSource gbnf{.kind = GrammarSource::Kind::kGbnf, .text = "root ::= \"a\""};
  cache.get(gbnf);
  EXPECT_EQ(cache.held().n, 2u);
  EXPECT_NE(cache.get(a), first);  // it was the oldest
  GrammarSource two{.kind = GrammarSource::Kind::kChoice, .choices = {"a", "bc"}};
  GrammarSource other{.kind = GrammarSource::Kind::kChoice, .choices = {"ab", "c"}};
  EXPECT_NE(two.key(), other.key());
  int n_made = 0;
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::vector<std::shared_ptr<GrammarMatcher>> got;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      auto matcher = cache.get("shared", [&] {
        const std::lock_guard lock(mutex);
        ++n_made;
        return Grammar::json_value();
      });
      const std::lock_guard lock(mutex);
      got.push_back(std::move(matcher));
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(n_made, 1);
  for (const auto& matcher : got)
    EXPECT_EQ(matcher, got[0]);
}

}  // namespace
}  // namespace qw
