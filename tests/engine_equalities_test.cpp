// The numeric contract on real checkpoints: batched == alone, chunked == whole, any number of
// threads, any place in the cache, preempted == uninterrupted, prefix taken from the cache ==
// computed, guessed ahead == plain. Bit for bit, on both backends, on dense, mixture-of-experts,
// windowed, rope-scaled and quantised weights.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>

#include "base/rng.h"
#include "engine/bundle.h"
#include "support/golden.h"

namespace qw {
namespace {

struct Setting {
  std::string device = "cpu";
  int threads = 1;
  int64_t chunk = 512;
  int64_t logit_rows = 64;
  int64_t kv_tokens = 0;
  int64_t slots = 1;
  std::string kv_type = "f16";
};

std::unique_ptr<LoadedModel> open(const std::string& path, const Setting& setting) {
  OpenOptions options;
  options.device = setting.device;
  options.backend.n_threads = setting.threads;
  options.quiet = true;
  options.on_warning = [](const std::string&) {};
  options.engine.ctx = 192;
  options.engine.chunk_tokens = setting.chunk;
  options.engine.logit_rows = setting.logit_rows;
  options.engine.kv_tokens = setting.kv_tokens;
  options.engine.n_slots = setting.slots;
  options.engine.kv_type = setting.kv_type;
  options.engine.check_integrity = true;
  return open_model(path, options);
}

std::vector<int32_t> some_ids(int64_t n, int64_t vocab, uint64_t seed) {
  std::vector<int32_t> out;
  for (int64_t i = 0; i < n; ++i) {
    out.push_back(static_cast<int32_t>(random_bits(seed, 3, static_cast<uint64_t>(i)) %
                                       static_cast<uint64_t>(vocab - 3)));
  }
  return out;
}

std::vector<float> all_logits(Engine& engine, const std::vector<int32_t>& ids, int64_t vocab) {
  std::vector<float> out;
  engine.score(ids, [&](int64_t row, int64_t n, const float* logits) {
    EXPECT_EQ(row * vocab, ssize(out));
    out.insert(out.end(), logits, logits + n * vocab);
  });
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Case {
  std::string model, device;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.model << " on " << c.device;
}

class Equalities : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto found = test::find_golden(GetParam().model);
    if (!found)
      GTEST_SKIP() << GetParam().model << " is neither in the project nor in QIANWEN_SHARED";
    path_ = *found;
  }
  Setting setting() const {
    Setting s;
    s.device = GetParam().device;
    return s;
  }
  std::string path_;
};

TEST_P(Equalities, ThreadsAndChunksDoNotChangeABit) {
  Setting base = setting();
  const auto loaded = open(path_, base);
  const int64_t vocab = loaded->config().vocab;
  const auto ids = some_ids(90, vocab, 1);
  const std::vector<float> whole = all_logits(*loaded->make_engine(), ids, vocab);
  ASSERT_EQ(ssize(whole), ssize(ids) * vocab);

  for (const int64_t chunk : {1, 7, 32}) {
    EngineOptions options = loaded->engine_options;
    options.chunk_tokens = chunk;
    options.logit_rows = 1000;
    Engine engine(*loaded->model, nullptr, options);
    EXPECT_TRUE(same_bits(whole, all_logits(engine, ids, vocab))) << "chunks of " << chunk;
  }
  for (const int threads : {2, 4}) {
    Setting other = setting();
    other.threads = threads;
    other.chunk = 33;
    const auto again = open(path_, other);
    EXPECT_TRUE(same_bits(whole, all_logits(*again->make_engine(), ids, vocab)))
        << threads << " threads";
  }
}

/// Greedy and sampled requests that outgrow a page (of 16 to 64 tokens) while they decode, so that
/// a small cache must preempt; logprobs carry the bits of the logits.
std::vector<Request> requests(int64_t vocab) {
  std::vector<Request> out;
  constexpr std::array<int64_t, 5> kLengths = {58, 61, 120, 59, 27};
  for (uint64_t seed = 1; seed <= kLengths.size(); ++seed) {
    Request request;
    request.prompt = some_ids(kLengths[seed - 1], vocab, seed);
    request.config.max_new_tokens = 10 + static_cast<int64_t>(seed);
    request.config.do_sample = seed % 2 == 0;
    request.config.num_return_sequences = seed == 4 ? 2 : 1;
    request.config.seed = seed;
    request.config.logprobs = 3;
    out.push_back(std::move(request));
  }
  return out;
}

void expect_same_bits(const Completion& a, const Completion& b, const std::string& where) {
  ASSERT_EQ(a.ids, b.ids) << where;
  ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
  for (size_t t = 0; t < a.logprobs.size(); ++t) {
    for (size_t k = 0; k < a.logprobs[t].top.size(); ++k) {
      ASSERT_EQ(a.logprobs[t].top[k].id, b.logprobs[t].top[k].id) << where << " token " << t;
      ASSERT_EQ(
          std::memcmp(&a.logprobs[t].top[k].logprob, &b.logprobs[t].top[k].logprob, sizeof(float)),
          0)
          << where << " token " << t;
    }
  }
}

TEST_P(Equalities, MatesPagingAndPreemptionDoNotChangeABit) {
  const auto loaded = open(path_, setting());
  const int64_t vocab = loaded->config().vocab;
  std::vector<RequestResult> alone;
  for (Request& request : requests(vocab))
    alone.push_back(loaded->make_engine()->generate(std::move(request)));

  int64_t preemptions = 0;
  for (const int64_t kv_tokens : {192, 320, 2048}) {
    for (const int64_t chunk : {6, 64}) {
      EngineOptions options = loaded->engine_options;
      options.n_slots = 8;
      options.chunk_tokens = chunk;
      options.kv_tokens = kv_tokens;
      Engine engine(*loaded->model, nullptr, options);
      for (Request& request : requests(vocab))
        engine.submit(std::move(request));
      size_t ended = 0;
      while (!engine.idle()) {
        for (const Event& event : engine.step()) {
          if (event.kind != Event::Kind::kRequest) continue;
          ++ended;
          const RequestResult& expected = alone[event.request - 1];
          ASSERT_EQ(event.result->completions.size(), expected.completions.size());
          for (size_t i = 0; i < expected.completions.size(); ++i) {
            expect_same_bits(expected.completions[i], event.result->completions[i],
                             fmt::format("request {} answer {}, {} KV tokens, chunks of {}",
                                         event.request, i, kv_tokens, chunk));
          }
        }
      }
      EXPECT_EQ(ended, alone.size());
      EXPECT_EQ(engine.free_pages(), engine.n_pages());
      preemptions += engine.n_preemptions();
    }
  }
  EXPECT_GT(preemptions, 0) << "the test must reach preemption";
}

/// Turns of a conversation, each with all that was said before it; then one that parts from it in
/// the middle of a page. Alone in a new engine, and after each other in one: the same bits.
void expect_warm_equals_cold(const LoadedModel& loaded, bool reuses, const std::string& where) {
  const int64_t vocab = loaded.config().vocab;
  Request request;
  request.prompt = some_ids(70, vocab, 11);
  request.config.max_new_tokens = 9;
  request.config.ignore_eos = true;
  request.config.logprobs = 3;
  EngineOptions roomy = loaded.engine_options;
  roomy.kv_tokens = 2048;
  Engine warm(*loaded.model, nullptr, roomy);
  const auto check = [&](int64_t n_known, const std::string& turn) {
    EngineOptions options = loaded.engine_options;
    options.prefix_cache = false;
    Engine cold(*loaded.model, nullptr, options);
    const RequestResult want = cold.generate(request), got = warm.generate(request);
    expect_same_bits(want.completions[0], got.completions[0], where + ", " + turn);
    EXPECT_EQ(got.timings.n_cached, reuses ? n_known : 0) << where << ", " << turn;
    EXPECT_EQ(warm.free_pages(), warm.n_pages());
    return want.completions[0].ids;
  };
  int64_t n_known = 0;
  for (int turn = 1; turn <= 3; ++turn) {
    const auto answer = check(n_known, fmt::format("turn {}", turn));
    request.prompt.insert(request.prompt.end(), answer.begin(), answer.end());
    n_known = ssize(request.prompt) - 1;  // the last token was chosen, not computed
    const auto more = some_ids(15, vocab, static_cast<uint64_t>(turn));
    request.prompt.insert(request.prompt.end(), more.begin(), more.end());
  }
  request.prompt.resize(101);
  request.prompt[77] = (request.prompt[77] + 1) % static_cast<int32_t>(vocab - 3);
  check(77, "another way from token 77 on");
  check(100, "the same again");
}

TEST_P(Equalities, APrefixFromTheCacheDoesNotChangeABit) {
  const auto loaded = open(path_, setting());
  const bool reuses = loaded->config().rope.scaling != RopeScaling::kDynamic;
  expect_warm_equals_cold(*loaded, reuses, GetParam().model);
}

/// A prompt that says the same several times, so that there is something to look up.
Request request_to_guess(uint64_t seed, int64_t vocab) {
  Request request;
  const std::vector<int32_t> phrase = some_ids(3 + static_cast<int64_t>(seed), vocab, seed);
  for (int i = 0; i < 6; ++i)
    request.prompt.insert(request.prompt.end(), phrase.begin(), phrase.end());
  request.config.max_new_tokens = 60;
  request.config.do_sample = seed % 2 == 0;
  request.config.temperature = 0.1;
  request.config.seed = seed;
  request.config.ignore_eos = true;
  request.config.logprobs = 3;
  request.config.num_assistant_tokens_schedule = AssistantSchedule::kConstant;
  return request;
}

TEST_P(Equalities, LookingUpDoesNotChangeABit) {
  const auto loaded = open(path_, setting());
  const int64_t vocab = loaded->config().vocab;
  int64_t drafted = 0, accepted = 0;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    Request request = request_to_guess(seed, vocab);
    const Completion plain = loaded->make_engine()->generate(request).completions[0];
    for (const int64_t n_draft : {2, 8}) {
      request.config.prompt_lookup_num_tokens = n_draft;
      const auto engine = loaded->make_engine();
      const RequestResult got = engine->generate(request);
      expect_same_bits(plain, got.completions[0],
                       fmt::format("seed {}, drafts of {}", seed, n_draft));
      drafted += got.timings.n_drafted;
      accepted += got.timings.n_accepted;
      EXPECT_EQ(engine->free_pages(), engine->n_pages());
    }
  }
  EXPECT_GT(accepted, 0) << "the test must reach right guesses";
  EXPECT_GT(drafted, accepted) << "and wrong ones";
}

/// The same checkpoint as its own draft model, but with other arithmetic, so that it is right
/// mostly and not always; alone and together, with any number of threads and any chunks.
TEST_P(Equalities, ADraftModelDoesNotChangeABit) {
  const auto loaded = open(path_, setting());
  const int64_t vocab = loaded->config().vocab;
  std::vector<RequestResult> plain;
  for (uint64_t seed = 1; seed <= 4; ++seed)
    plain.push_back(loaded->make_engine()->generate(request_to_guess(seed, vocab)));

  int64_t drafted = 0, accepted = 0;
  for (const int threads : {1, 3}) {
    Setting other = setting();
    other.threads = threads;
    const auto answering = open(path_, other);
    other.device = other.device == "cpu" ? "reference" : "cpu";
    const auto draft = open(path_, other);
    for (const int64_t chunk : {5, 64}) {
      for (const int64_t slots : {1, 4}) {
        EngineOptions options = answering->engine_options;
        options.chunk_tokens = chunk;
        options.n_slots = slots;
        options.kv_tokens = 0;
        Engine engine(*answering->model, nullptr, options, draft->model.get());
        for (uint64_t seed = 1; seed <= 4; ++seed) {
          Request request = request_to_guess(seed, vocab);
          request.config.num_assistant_tokens = 1 + static_cast<int64_t>(seed);
          if (seed == 4) request.config.prompt_lookup_num_tokens = 3;
          engine.submit(std::move(request));
        }
        while (!engine.idle()) {
          for (const Event& event : engine.step()) {
            if (event.kind != Event::Kind::kRequest) continue;
            expect_same_bits(plain[event.request - 1].completions[0], event.result->completions[0],
                             fmt::format("request {}, {} threads, chunks of {}, {} slots",
                                         event.request, threads, chunk, slots));
            drafted += event.result->timings.n_drafted;
            accepted += event.result->timings.n_accepted;
          }
        }
        EXPECT_EQ(engine.free_pages(), engine.n_pages());
      }
    }
  }
  EXPECT_GT(accepted, 400) << "the test must reach right guesses";
  RecordProperty("drafted", static_cast<int>(drafted));
  RecordProperty("accepted", static_cast<int>(accepted));
}

/// Another network of the same vocabulary, which guesses nothing right.
TEST(EqualitiesOfDrafts, AStrangerChangesNothing) {
  const auto target = test::find_golden("models/dense-gqa-untied-sharded");
  const auto stranger = test::find_golden("models/moe");
  if (!target || !stranger) GTEST_SKIP() << "no goldens";
  const auto loaded = open(*target, {}), draft = open(*stranger, {});
  const int64_t vocab = loaded->config().vocab;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    Request request = request_to_guess(seed, vocab);
    request.config.temperature = 0.7;
    const Completion plain = loaded->make_engine()->generate(request).completions[0];
    for (const int64_t n_draft : {1, 4}) {
      request.config.num_assistant_tokens = n_draft;
      Engine engine(*loaded->model, nullptr, loaded->engine_options, draft->model.get());
      const RequestResult got = engine.generate(request);
      expect_same_bits(plain, got.completions[0], fmt::format("seed {}", seed));
      EXPECT_GT(got.timings.n_drafted, 50);
      EXPECT_LT(got.timings.n_accepted, got.timings.n_drafted / 2);
    }
  }
}

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const char* model : {"models/dense-gqa-untied-sharded", "models/moe",
                            "models/sliding-window", "models/rope-dynamic", "models/rope-yarn"}) {
    out.push_back({model, "cpu"});
    out.push_back({model, "reference"});
  }
  for (const char* model : {"gptq/int4_g128_desc_act", "gptq/int8_g128_official",
                            "awq/gemm_g128_official", "gguf/files/base-q4_k_m.gguf"})
    out.push_back({model, "cpu"});
  return out;
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Equalities, testing::ValuesIn(cases()), [](const auto& one) {
  std::string name = one.param.model + "_" + one.param.device;
  for (char& c : name)
    c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return name;
});

TEST(EqualitiesOfKvTypes, EveryTypeKeepsTheContract) {
  const std::string path = std::string(QIANWEN_SOURCE_DIR) + "/models/qianwen-mini-chat";
  for (const char* type : {"f32", "bf16", "f16", "q8_0", "q4_0"}) {
    Setting setting;
    setting.kv_type = type;
    const auto loaded = open(path, setting);
    const int64_t vocab = loaded->config().vocab;
    const auto ids = some_ids(70, vocab, 4);
    const auto whole = all_logits(*loaded->make_engine(), ids, vocab);
    EngineOptions options = loaded->engine_options;
    options.chunk_tokens = 9;
    Engine chunked(*loaded->model, nullptr, options);
    EXPECT_TRUE(same_bits(whole, all_logits(chunked, ids, vocab))) << type;
    expect_warm_equals_cold(*loaded, true, type);
  }
}

}  // namespace
}  // namespace qw
