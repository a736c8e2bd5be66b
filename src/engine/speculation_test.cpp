// Guessing ahead, by prompt lookup, by a draft model, by both: no guess ever changes an answer, and
// right ones spare steps.
#include "engine/speculation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "engine/engine.h"
#include "engine/fake_model.h"

namespace qw {
namespace {

constexpr int64_t kWords = 24;
constexpr int64_t kPadding = 3;  // rows of our model behind the tokenizer's ids

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
  int64_t page_tokens = 4;
};

/// How guesses come about.
struct Way {
  int64_t n_lookup = 0, n_draft = 0;  // guesses a step, at most
  double noise = 0;                   // of the draft model; negative: there is none
  int64_t padding = 0;                // rows of the draft model: more or fewer than ours
  const char* schedule = "constant";
};
void PrintTo(const Way& way, std::ostream* out) {
  *out << way.n_lookup << " by lookup, " << way.n_draft << " by a draft of noise " << way.noise
       << ", " << way.schedule;
}
constexpr Way kPlain{0, 0, -1};
constexpr Way kLookup{8, 0, -1};
constexpr Way kPerfectDraft{0, 8, 0};

/// A model whose text repeats itself, with words of two letters.
struct Machine {
  Machine(const Setting& setting, const Way& way)
      : model(kWords + 256 + kPadding, static_cast<int>(setting.page_tokens)),
        draft(kWords + 256 + way.padding, static_cast<int>(setting.page_tokens)) {
    model.habit = draft.habit = 8;
    draft.noise = way.noise;
    EngineOptions options;
    options.ctx = 128;
    options.n_slots = setting.slots;
    options.kv_tokens = setting.kv_tokens;
    options.chunk_tokens = setting.chunk;
    options.logit_rows = 80;
    options.prefix_cache = setting.prefix_cache;
    options.check_integrity = true;
    engine =
        std::make_unique<Engine>(model, tokenizer(), options, way.noise < 0 ? nullptr : &draft);
  }
  FakeModel model, draft;
  std::unique_ptr<Engine> engine;
};

void set(GenerationConfig& config, const Way& way) {
  config.prompt_lookup_num_tokens = way.n_lookup;
  config.num_assistant_tokens = way.n_draft;
  config.set_text("num_assistant_tokens_schedule", way.schedule, ParameterSource::kUser);
}

/// Greedy and sampled, and with processors that look at the history.
std::vector<Request> open_requests(const Way& way) {
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
    if (seed % 5 == 2) {
      config.sampler_order = {SamplerKind::kTopK, SamplerKind::kXtc, SamplerKind::kPenalties,
                              SamplerKind::kTemperature};
      config.xtc_probability = 0.2;
      config.xtc_threshold = 0.05;
      config.dry_multiplier = 0.1;
    }
    if (seed % 7 == 5 && config.do_sample) config.num_return_sequences = 3;
    if (seed % 9 == 6) config.prompt_logprobs = 1;
    if (seed % 5 == 1) config.assistant_confidence_threshold = 0.5;
    set(config, way);
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
std::vector<Request> requests(const Way& way) {
  static const auto whole = [] {
    Machine machine({}, kPlain);
    return run_all(*machine.engine, open_requests(kPlain));
  }();
  std::vector<Request> out = open_requests(way);
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

class Ways : public testing::TestWithParam<Way> {};

TEST_P(Ways, ChangeNoAnswer) {
  static const auto want = [] {
    Machine plain({}, kPlain);
    return run_all(*plain.engine, requests(kPlain));
  }();
  std::map<FinishReason, int> reasons;
  for (const auto& [id, result] : want) {
    EXPECT_EQ(result.timings.n_drafted, 0);
    for (const Completion& completion : result.completions)
      ++reasons[completion.finish_reason];
  }
  EXPECT_EQ(reasons.size(), 3u) << "end tokens, stop strings and lengths must all occur";
  int64_t accepted = 0, drafted = 0, preemptions = 0;
  for (const Setting& setting : {Setting{}, Setting{1}, Setting{16, 120}, Setting{5, 200, 3},
                                 Setting{16, 4096, 64, false}, Setting{3, 132, 17, false, 8}}) {
    Machine machine(setting, GetParam());
    const auto got = run_all(*machine.engine, requests(GetParam()));
    for (const auto& [id, result] : want) {
      const RequestResult& other = got.at(id);
      ASSERT_EQ(result.completions.size(), other.completions.size());
      for (size_t i = 0; i < result.completions.size(); ++i) {
        expect_same(result.completions[i], other.completions[i],
                    fmt::format("request {} answer {}, {} slots, {} KV tokens", id, i,
                                setting.slots, setting.kv_tokens));
      }
      accepted += other.timings.n_accepted;
      drafted += other.timings.n_drafted;
      EXPECT_LE(other.timings.n_accepted, other.timings.n_drafted);
      EXPECT_LE(other.timings.n_accepted, other.timings.n_generated);
    }
    preemptions += machine.engine->n_preemptions();
    EXPECT_LT(machine.model.largest_token, kWords) << "a token that nobody may say was guessed";
  }
  EXPECT_GT(preemptions, 10);
  if (std::string_view(GetParam().schedule) != "constant") return;  // as measured, perhaps none
  EXPECT_GT(accepted, 2000) << "the test must reach right guesses";
  if (GetParam().noise != 0) {
    EXPECT_GT(drafted - accepted, 200) << "and wrong ones";
  }
}

INSTANTIATE_TEST_SUITE_P(Guesses, Ways,
                         testing::Values(Way{3, 0, -1}, Way{16, 0, -1}, Way{0, 1, 0.7},
                                         Way{0, 5, 0}, Way{0, 16, 0.7, 37}, Way{2, 4, 2},
                                         Way{8, 8, 0.7, 0, "heuristic"},
                                         Way{0, 8, 2, 5, "heuristic_transient"}));

TEST(Speculation, AnyLengthMayEndInsideADraft) {
  for (const Way& way : {Way{16, 0, -1}, Way{0, 16, 0.5}}) {
    Machine plain({}, kPlain), fast({}, way);
    int64_t accepted = 0;
    for (int64_t max_new = 1; max_new <= 40; ++max_new) {
      Request request = open_requests(kPlain)[18];
      request.config.max_new_tokens = max_new;
      const RequestResult want = plain.engine->generate(request);
      set(request.config, way);
      const RequestResult got = fast.engine->generate(request);
      EXPECT_EQ(ssize(got.completions[0].ids), max_new);
      expect_same(want.completions[0], got.completions[0], fmt::format("{} tokens", max_new));
      accepted += got.timings.n_accepted;
    }
    EXPECT_GT(accepted, 100);
  }
}

TEST(Speculation, RightGuessesSpareSteps) {
  for (const Way& way : {kLookup, kPerfectDraft}) {
    Machine plain({}, kPlain), fast({}, way);
    Request request = open_requests(kPlain)[18];
    request.config.max_new_tokens = 90;
    plain.engine->generate(request);
    set(request.config, way);
    const Timings timings = fast.engine->generate(request).timings;
    EXPECT_EQ(plain.model.n_forwards, 90);
    EXPECT_EQ(fast.model.n_forwards, 90 - timings.n_accepted) << "a step less for every right one";
    EXPECT_LT(fast.model.n_forwards, 60);
    if (way.noise < 0) continue;
    EXPECT_EQ(timings.n_accepted, timings.n_drafted);
    EXPECT_LE(fast.model.n_forwards, 1 + 89 / 9 + 1) << "nine tokens a step";
    EXPECT_EQ(fast.draft.n_forwards, timings.n_drafted) << "one step a guess, the prompt with it";
  }
}

TEST(Speculation, SampledGuessesAreRightAsOftenAsTheModelsAgree) {
  // With the same random number at the same position, the same model guesses what will be drawn.
  Machine machine({}, kPerfectDraft);
  Request request = open_requests(kPerfectDraft)[2];
  request.config.temperature = 3;
  request.config.top_k = 0;
  request.config.num_return_sequences = 4;
  const Timings timings = machine.engine->generate(request).timings;
  EXPECT_EQ(timings.n_accepted, timings.n_drafted);
  EXPECT_GT(timings.n_accepted, 60);
}

TEST(Speculation, AnswersAreGuessedTogether) {
  Machine machine({}, kPerfectDraft);
  std::vector<Request> all = open_requests(kPerfectDraft);
  all = {all[3], all[4]};
  int64_t n_generated = 0;
  for (Request& request : all)
    request.config.max_new_tokens = 37;
  for (const auto& [id, result] : run_all(*machine.engine, all))
    n_generated += result.timings.n_generated;
  EXPECT_EQ(n_generated, 74);
  // 1 from the prompt, then four steps of 9; each of eight guesses by eight steps of the draft.
  EXPECT_EQ(machine.model.n_forwards, 5);
  EXPECT_EQ(machine.draft.n_forwards, 4 * 8);
}

TEST(Speculation, LookupGoesFirst) {
  // Where the text repeats itself, the draft model has nothing to do.
  Machine alone({}, kPerfectDraft), both({}, {4, 8, 0});
  Request request = open_requests(kPerfectDraft)[18];
  request.config.max_new_tokens = 90;
  alone.engine->generate(request);
  set(request.config, {4, 8, 0});
  const Timings timings = both.engine->generate(request).timings;
  EXPECT_LT(both.draft.n_forwards, alone.draft.n_forwards / 2);
  EXPECT_GT(timings.n_accepted, 40);
}

TEST(Speculation, GuessesTakeNobodysPlace) {
  // With room for two tokens a step, two answers leave none for drafts; each still gets its turn.
  for (const Way& way : {kLookup, kPerfectDraft}) {
    Machine machine({2, 4096, 2}, way);
    std::vector<Request> two = open_requests(way);
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
}

// ---- the distribution --------------------------------------------------------------------------

constexpr int32_t kFew = 5;

EngineOptions short_context() {
  EngineOptions options;
  options.ctx = 16;
  return options;
}

/// The probability of every answer of three tokens, by the model's raw logits.
std::vector<double> exact_distribution(const std::vector<int32_t>& prompt) {
  FakeModel model(kFew);
  Engine engine(model, nullptr, short_context());
  std::vector<double> out;
  for (int32_t i = 0; i < kFew * kFew * kFew; ++i) {
    std::vector<int32_t> ids = prompt;
    for (const int32_t id : {i / (kFew * kFew), i / kFew % kFew, i % kFew})
      ids.push_back(id);
    double logprob = 0;
    for (const TokenLogprobs& one : engine.score_logprobs(ids))
      logprob += static_cast<double>(one.chosen.logprob);
    out.push_back(logprob);
  }
  const double first = [&] {  // the prompt's own share, the same of all
    double sum = 0;
    for (const TokenLogprobs& one : engine.score_logprobs(prompt))
      sum += static_cast<double>(one.chosen.logprob);
    return sum;
  }();
  for (double& value : out)
    value = std::exp(value - first);
  return out;
}

TEST(Speculation, SampledAnswersHaveTheModelsDistribution) {
  const std::vector<int32_t> prompt = {1, 2};
  const std::vector<double> exact = exact_distribution(prompt);
  constexpr int kAnswers = 15000;
  for (const double noise : {0.7, 5.0}) {
    FakeModel model(kFew), draft(kFew);
    draft.noise = noise;
    Engine engine(model, nullptr, short_context(), &draft);
    std::vector<int> counts(exact.size());
    int64_t drafted = 0, accepted = 0;
    for (uint64_t seed = 0; seed < kAnswers; ++seed) {
      Request request;
      request.prompt = prompt;
      request.config.do_sample = true;
      request.config.top_k = 0;
      request.config.max_new_tokens = 3;
      request.config.seed = seed;
      request.config.num_assistant_tokens_schedule = AssistantSchedule::kConstant;
      const RequestResult result = engine.generate(request);
      const std::vector<int32_t>& ids = result.completions[0].ids;
      ++counts[static_cast<size_t>((ids[0] * kFew + ids[1]) * kFew + ids[2])];
      drafted += result.timings.n_drafted;
      accepted += result.timings.n_accepted;
    }
    EXPECT_EQ(drafted, kAnswers) << "the second of three tokens";
    EXPECT_GT(accepted, kAnswers / 5);
    EXPECT_LT(accepted, kAnswers * 19 / 20);
    double chi_square = 0, n_cells = 0, rare_want = 0, rare_count = 0;
    const auto add_cell = [&](double want, double count) {
      chi_square += (count - want) * (count - want) / want;
      ++n_cells;
    };
    for (size_t i = 0; i < exact.size(); ++i) {
      const double want = kAnswers * exact[i];
      if (want >= 10) {
        add_cell(want, counts[i]);
      } else {
        rare_want += want;
        rare_count += counts[i];
      }
    }
    add_cell(rare_want, rare_count);
    // The mean is the number of degrees of freedom, n; the standard deviation sqrt(2 n).
    const double freedom = n_cells - 1;
    EXPECT_GT(freedom, 50);
    EXPECT_LT(chi_square, freedom + 4 * std::sqrt(2 * freedom)) << "noise " << noise;
    EXPECT_GT(chi_square, freedom - 4 * std::sqrt(2 * freedom)) << "noise " << noise;
  }
}

// ---- what may go wrong with a draft model ------------------------------------------------------

constexpr int64_t kSome = 9;

/// Runs some requests with a draft model that `spoil` makes faulty: every answer as without.
template <typename Spoil>
std::map<RequestId, RequestResult> expect_harmless(const Spoil& spoil) {
  Machine plain({}, kPlain), machine({}, {0, 4, 0.5});
  spoil(machine.draft);
  const auto some_of = [](std::vector<Request> all) {
    all.resize(kSome);
    return all;
  };
  const auto want = run_all(*plain.engine, some_of(requests(kPlain)));
  auto got = run_all(*machine.engine, some_of(requests({0, 4, 0.5})));
  for (const auto& [id, result] : want) {
    for (size_t i = 0; i < result.completions.size(); ++i)
      expect_same(result.completions[i], got.at(id).completions[i], fmt::format("request {}", id));
  }
  return got;
}

int64_t n_with_guesses(const std::map<RequestId, RequestResult>& results) {
  return std::count_if(results.begin(), results.end(),
                       [](const auto& entry) { return entry.second.timings.n_drafted > 0; });
}

TEST(Speculation, ABrokenDraftModelHarmsNobody) {
  // Two are too unsure of their guesses to say any.
  EXPECT_GE(n_with_guesses(expect_harmless([](FakeModel&) {})), kSome - 2);
  const auto after_broken = expect_harmless([](FakeModel& draft) {
    draft.broken_token = 7;
    draft.broken_from = 25;
  });
  EXPECT_GT(n_with_guesses(after_broken), kSome / 2) << "who does not meet it goes on";
  const auto after_nan = expect_harmless([](FakeModel& draft) { draft.nan_token = 3; });
  EXPECT_GT(n_with_guesses(after_nan), kSome / 2);
  const auto after_loss = expect_harmless([](FakeModel& draft) { draft.throw_after = 5; });
  EXPECT_GT(n_with_guesses(after_loss), 0);
  int64_t n_drafted = 0, n_answers = 0;
  for (const auto& [id, result] : after_loss) {
    n_drafted += result.timings.n_drafted;
    n_answers += std::ssize(result.completions);
  }
  EXPECT_LE(n_drafted, 5 * n_answers) << "a fault of the whole ends all guesses";
}

TEST(Speculation, AShorterContextOfTheDraftModelEndsItsGuesses) {
  Machine plain({}, kPlain), machine({}, kPlain);
  FakeModel draft(kWords + 256);
  draft.habit = 8;
  draft.set_max_positions(40);
  EngineOptions options = machine.engine->options();
  Engine engine(machine.model, tokenizer(), options, &draft);
  Request request = open_requests(kPlain)[18];  // a prompt of 21 tokens
  request.config.max_new_tokens = 60;
  const RequestResult want = plain.engine->generate(request);
  set(request.config, kPerfectDraft);
  const RequestResult got = engine.generate(request);
  expect_same(want.completions[0], got.completions[0], "short context");
  EXPECT_GT(got.timings.n_accepted, 12);
  EXPECT_LE(got.timings.n_accepted, 40 - 21 + 1);
}

TEST(Speculation, CancelledAnswersLeaveNothingBehind) {
  Machine machine({}, kPerfectDraft);
  for (int round = 0; round < 3; ++round) {
    std::vector<RequestId> ids;
    for (Request& request : open_requests(kPerfectDraft))
      ids.push_back(machine.engine->submit(std::move(request)));
    for (int step = 0; step < 2 + round; ++step)
      machine.engine->step();
    for (const RequestId id : ids)
      machine.engine->cancel(id);
    while (!machine.engine->idle())
      machine.engine->step();
    EXPECT_EQ(machine.engine->free_pages(), machine.engine->n_pages());
  }
}

TEST(Speculation, ADraftModelSharesPromptsWithinASaltOnly) {
  // Of the second of two equal requests: what the draft model computes, which is more where it has
  // to read the prompt again.
  const auto n_computed = [](const std::string& first, const std::string& second) {
    Machine machine({}, kPerfectDraft);
    Request request = open_requests(kPerfectDraft)[18];
    request.cache_salt = first;
    const RequestResult one = machine.engine->generate(request);
    const int64_t before = machine.draft.n_computed;
    request.cache_salt = second;
    const RequestResult two = machine.engine->generate(request);
    EXPECT_EQ(one.completions[0].ids, two.completions[0].ids);
    return machine.draft.n_computed - before;
  };
  const int64_t shared = n_computed("a", "a");
  EXPECT_EQ(n_computed("", ""), shared);
  EXPECT_GT(n_computed("a", "b"), shared);
  EXPECT_GT(n_computed("", "b"), shared);
}

TEST(Speculation, AnIdThatTheDraftModelLacksIsNotFollowed) {
  FakeModel model(50), draft(30);
  Engine engine(model, nullptr, short_context(), &draft);
  Request request;
  request.config.max_new_tokens = 10;
  request.config.num_assistant_tokens_schedule = AssistantSchedule::kConstant;
  request.prompt = {1, 40, 2};
  EXPECT_EQ(engine.generate(request).timings.n_drafted, 0);
  EXPECT_EQ(draft.n_forwards, 0);
}

}  // namespace
}  // namespace qw
