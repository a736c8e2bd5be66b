// Kept pages copied out and in piece by piece, while others want them: the same bits, no page lost.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/log.h"
#include "engine/engine.h"
#include "engine/fake_model.h"
#include "engine/kv_sequence_file.h"

namespace qw {
namespace {

constexpr int kPage = 4;

class EngineCopies : public testing::Test {
 protected:
  EngineCopies() : model_(50, kPage) { model_.content = "weights"; }
  void SetUp() override { init_logging("off"); }
  void TearDown() override { init_logging("warning"); }

  std::unique_ptr<Engine> engine(int64_t kv_tokens = 0, FakeModel* model = nullptr) {
    EngineOptions options;
    options.ctx = 256;
    options.n_slots = 4;
    options.kv_tokens = kv_tokens;
    options.chunk_tokens = 16;
    options.check_integrity = true;
    return std::make_unique<Engine>(model == nullptr ? model_ : *model, nullptr, options);
  }
  static Request request_of(int64_t prompt_len, uint64_t seed, int64_t max_new = 8) {
    Request request;
    for (int64_t i = 0; i < prompt_len; ++i)
      request.prompt.push_back(
          static_cast<int32_t>(random_bits(seed, 7, static_cast<uint64_t>(i)) % 50));
    request.config.max_new_tokens = max_new;
    request.config.do_sample = true;
    request.config.seed = seed;
    return request;
  }
  /// Generates; prompt and answer.
  static std::vector<int32_t> run(Engine& engine, const Request& request) {
    std::vector<int32_t> all = request.prompt;
    const RequestResult result = engine.generate(request);
    all.insert(all.end(), result.completions[0].ids.begin(), result.completions[0].ids.end());
    return all;
  }
  struct Copy {
    KvSequence sequence;
    std::vector<std::byte> pages;
  };
  static std::vector<std::byte> read(Engine& engine, const Engine::Held& held, int64_t first,
                                     int64_t n) {
    std::vector<std::byte> out(static_cast<size_t>(n * held.sequence.page_bytes));
    engine.read_held(held.id, first, out);
    return out;
  }
  static Copy copy_out(Engine& engine, std::span<const int32_t> tokens, int64_t per_piece) {
    const Engine::Held held = engine.hold(-1, tokens, 0);
    Copy out{held.sequence, {}};
    for (int64_t at = 0; at < held.sequence.n_pages; at += per_piece) {
      const auto piece = read(engine, held, at, std::min(per_piece, held.sequence.n_pages - at));
      out.pages.insert(out.pages.end(), piece.begin(), piece.end());
    }
    engine.let_go(held.id);
    return out;
  }
  /// What is kept after every piece.
  static std::vector<int64_t> copy_in(Engine& engine, const Copy& copy, int64_t per_piece,
                                      const BlockScope& scope = -1) {
    std::vector<int64_t> kept;
    const auto size = static_cast<size_t>(copy.sequence.page_bytes);
    for (int64_t at = 0; at < copy.sequence.n_pages; at += per_piece) {
      const auto n = static_cast<size_t>(std::min(per_piece, copy.sequence.n_pages - at));
      kept.push_back(engine.import_pages(
          scope, copy.sequence, 0, at,
          std::span(copy.pages).subspan(static_cast<size_t>(at) * size, n * size)));
    }
    return kept;
  }
  /// Steps until every request has ended; the tokens of each.
  static std::map<RequestId, std::vector<int32_t>> finish(Engine& engine) {
    std::map<RequestId, std::vector<int32_t>> out;
    while (!engine.idle()) {
      for (const Event& event : engine.step()) {
        if (event.kind != Event::Kind::kRequest) continue;
        EXPECT_EQ(event.result->completions[0].error, "");
        out[event.request] = event.result->completions[0].ids;
      }
      if (engine.stalled()) break;
    }
    return out;
  }

  FakeModel model_;
};

TEST_F(EngineCopies, ComeBackWhateverThePieces) {
  const Request request = request_of(30, 1);
  const auto first = engine();
  const std::vector<int32_t> all = run(*first, request);
  const Copy whole = copy_out(*first, all, 100);
  EXPECT_EQ(whole.sequence.tokens.size(), 37) << "the last token was never computed";
  EXPECT_EQ(whole.sequence.n_pages, 10);
  for (const int64_t per_piece : {1, 3, 10}) {
    EXPECT_EQ(copy_out(*first, all, per_piece).pages, whole.pages);
    const auto other = engine();
    const std::vector<int64_t> kept = copy_in(*other, whole, per_piece);
    EXPECT_EQ(kept.front(), std::min<int64_t>(37, per_piece * kPage));
    EXPECT_EQ(kept.back(), 37);
    EXPECT_EQ(copy_in(*other, whole, per_piece).back(), 37) << "it is there";
    const RequestResult again = other->generate(request);
    EXPECT_EQ(again.timings.n_cached, 29);
    EXPECT_THAT(all, testing::ElementsAreArray([&] {
                  std::vector<int32_t> expected = request.prompt;
                  expected.insert(expected.end(), again.completions[0].ids.begin(),
                                  again.completions[0].ids.end());
                  return expected;
                }()));
    EXPECT_EQ(other->free_pages(), other->n_pages());
  }
  EXPECT_EQ(first->forget(-1, all), 37) << "nothing is held any more";
  EXPECT_EQ(copy_out(*first, all, 3).sequence.n_pages, 0);
}

TEST_F(EngineCopies, OfAnythingElseAreRefused) {
  const auto first = engine();
  const Copy copy = copy_out(*first, run(*first, request_of(30, 1)), 3);
  const auto other = engine();
  const auto refuses = [&](const Copy& changed, const BlockScope& scope = -1) {
    EXPECT_THROW(copy_in(*other, changed, 3, scope), Error);
    EXPECT_EQ(other->kept_pages(), 0);
  };
  refuses(copy, 0);                     // another adapter
  refuses(copy, {-1, hash_salt("a")});  // of no salt
  Copy changed = copy;
  changed.sequence.tokens[36] = 1000;  // outside the vocabulary
  refuses(changed);
  changed = copy;
  changed.sequence.tokens.resize(36);  // a page without tokens
  refuses(changed);
  changed = copy;
  changed.sequence.root[0] ^= 1;
  refuses(changed);
  changed = copy;
  changed.pages.resize(changed.pages.size() - 1);  // a page that is not whole
  EXPECT_THROW(other->import_pages(-1, changed.sequence, 0, 0, changed.pages), Error);
  EXPECT_THROW(other->import_pages(-1, copy.sequence, 0, 1, copy.pages), Error) << "beyond its end";
  EXPECT_EQ(other->kept_pages(), 0);
  FakeModel different(50, kPage);
  different.content = "other weights";
  const auto third = engine(0, &different);
  EXPECT_THROW(copy_in(*third, copy, 3), Error);
  different.content = "";
  EXPECT_THROW(third->hold(-1, copy.sequence.tokens, 0), Error) << "weights without a name";
  const Engine::Held held = first->hold(-1, copy.sequence.tokens, 0);
  first->let_go(held.id);
  first->let_go(held.id);
  EXPECT_THROW(read(*first, held, 0, 1), Error) << "not held any more";
}

// What makes room between two pieces ends what can be brought back; what is kept is right.
TEST_F(EngineCopies, EndWhereRoomOrWhatCameBeforeIsMissing) {
  const Request request = request_of(30, 1);
  const auto first = engine();
  const std::vector<int32_t> all = run(*first, request);
  const Copy copy = copy_out(*first, all, 3);

  const auto small = engine(/*kv_tokens=*/20);
  EXPECT_EQ(copy_in(*small, copy, 3), (std::vector<int64_t>{12, 20, 20, 20}));
  EXPECT_EQ(small->free_pages(), small->n_pages());
  Request little = request;
  little.prompt.resize(15);
  little.config.max_new_tokens = 4;
  const RequestResult again = small->generate(little);
  EXPECT_EQ(again.timings.n_cached, 14);
  EXPECT_EQ(again.completions[0].ids, engine()->generate(little).completions[0].ids);

  const auto robbed = engine();
  const auto size = static_cast<size_t>(copy.sequence.page_bytes);
  EXPECT_EQ(robbed->import_pages(-1, copy.sequence, 0, 0, std::span(copy.pages).first(3 * size)),
            12);
  robbed->drop_kept_pages();
  EXPECT_EQ(robbed->import_pages(-1, copy.sequence, 0, 3, std::span(copy.pages).subspan(3 * size)),
            0);
  EXPECT_EQ(robbed->kept_pages(), 0);
  EXPECT_EQ(run(*robbed, request), all);
}

// Held pages do not move: others wait beside them, and go on with the same bits after.
TEST_F(EngineCopies, HeldPagesStayWhoeverWantsThem) {
  const Request kept = request_of(30, 1), small = request_of(9, 2), large = request_of(40, 3);
  const auto alone = engine();
  const std::vector<int32_t> all = run(*alone, kept);
  const auto of_small = alone->generate(small).completions[0].ids;
  const auto of_large = alone->generate(large).completions[0].ids;

  const auto tight = engine(/*kv_tokens=*/60);
  EXPECT_EQ(run(*tight, kept), all);
  const Copy before = copy_out(*tight, all, 10);
  const Engine::Held held = tight->hold(-1, all, 0);
  EXPECT_EQ(held.sequence.n_pages, 10);
  EXPECT_EQ(tight->free_pages(), 5);
  const RequestId a = tight->submit(small);
  const RequestId b = tight->submit(large);
  auto answers = finish(*tight);
  EXPECT_EQ(answers[a], of_small) << "there is room for it";
  EXPECT_EQ(answers.count(b), 0u);
  EXPECT_TRUE(tight->stalled());
  EXPECT_FALSE(tight->idle());
  EXPECT_TRUE(tight->step().empty());
  tight->drop_kept_pages();
  EXPECT_EQ(tight->forget(-1, all), 0);
  EXPECT_EQ(read(*tight, held, 0, 10), before.pages);
  const RequestId c = tight->submit(large);
  tight->cancel(c);
  finish(*tight);  // it ends though the other waits
  EXPECT_EQ(tight->load().n_running + tight->load().n_waiting, 1);
  tight->let_go(held.id);
  answers = finish(*tight);
  EXPECT_EQ(answers[b], of_large);
  EXPECT_FALSE(tight->stalled());
  EXPECT_TRUE(tight->idle());
  EXPECT_EQ(tight->free_pages(), tight->n_pages());
}

TEST_F(EngineCopies, ARequestUnderWayWaitsForPagesThatAreHeld) {
  const Request kept = request_of(30, 1), growing = request_of(9, 2, /*max_new=*/30);
  const auto alone = engine();
  const std::vector<int32_t> all = run(*alone, kept);
  const auto expected = alone->generate(growing).completions[0].ids;
  const auto tight = engine(/*kv_tokens=*/60);
  run(*tight, kept);
  const Engine::Held held = tight->hold(-1, all, 0);
  const RequestId id = tight->submit(growing);
  EXPECT_TRUE(finish(*tight).empty());
  EXPECT_TRUE(tight->stalled()) << "after the first 20 tokens";
  tight->let_go(held.id);
  EXPECT_EQ(finish(*tight)[id], expected);
  EXPECT_EQ(tight->free_pages(), tight->n_pages());
}

TEST_F(EngineCopies, WhoRunsAloneSaysThatPagesAreMissing) {
  const auto tight = engine(/*kv_tokens=*/60);
  const std::vector<int32_t> all = run(*tight, request_of(30, 1));
  const Engine::Held held = tight->hold(-1, all, 0);
  EXPECT_THROW(tight->generate(request_of(40, 3)), Error);
  EXPECT_TRUE(tight->idle());
  EXPECT_THROW(tight->score(all, [](int64_t, int64_t, const float*) {}), Error);
  tight->let_go(held.id);
  EXPECT_EQ(tight->free_pages(), tight->n_pages());
  EXPECT_EQ(run(*tight, request_of(40, 3)), run(*engine(), request_of(40, 3)));
}

// Random requests, some cancelled, while sequences are held, copied and let go of at any moment.
TEST_F(EngineCopies, ChangeNoAnswerUnderAnyPressure) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const auto under_test = engine(/*kv_tokens=*/seed % 2 == 0 ? 72 : 160);
    const auto alone = engine();
    std::map<RequestId, Request> requests;
    std::vector<std::vector<int32_t>> ended;  // prompts with their answers
    std::map<int64_t, std::pair<Engine::Held, std::vector<std::byte>>> holds;
    uint64_t n_sent = 0;
    const auto draw = [&](uint64_t what, int step) {
      return random_bits(seed, what, static_cast<uint64_t>(step));
    };
    for (int step = 0; n_sent < 25 || !under_test->idle(); ++step) {
      ASSERT_LT(step, 5000);
      if (n_sent < 25 && draw(1, step) % 3 == 0) {
        Request request = request_of(5 + static_cast<int64_t>(draw(2, step) % 30), n_sent,
                                     1 + static_cast<int64_t>(draw(3, step) % 20));
        if (!ended.empty() && draw(4, step) % 2 == 0) {
          request.prompt = ended[draw(5, step) % ended.size()];
          request.prompt.resize(std::min<size_t>(request.prompt.size(), 40));
        }
        const RequestId id = under_test->submit(request);
        ++n_sent;
        requests[id] = std::move(request);
        if (draw(6, step) % 8 == 0) {
          under_test->cancel(id);
          requests.erase(id);
        }
      }
      if (holds.size() < 3 && !ended.empty() && draw(7, step) % 4 == 0) {
        const Engine::Held held = under_test->hold(-1, ended[draw(8, step) % ended.size()], 0);
        holds[held.id] = {held, read(*under_test, held, 0, held.sequence.n_pages)};
      }
      // Whoever holds lets go after a while, whatever happens.
      if (!holds.empty() && (under_test->stalled() || draw(9, step) % 5 == 0)) {
        const auto& [held, pages] = holds.begin()->second;
        EXPECT_EQ(read(*under_test, held, 0, held.sequence.n_pages), pages);
        under_test->let_go(held.id);
        holds.erase(holds.begin());
      }
      for (const Event& event : under_test->step()) {
        if (event.kind != Event::Kind::kRequest || requests.count(event.request) == 0) continue;
        const Completion& completion = event.result->completions[0];
        EXPECT_EQ(completion.error, "");
        std::vector<int32_t> all = requests[event.request].prompt;
        all.insert(all.end(), completion.ids.begin(), completion.ids.end());
        EXPECT_EQ(all, run(*alone, requests[event.request]));
        ended.push_back(std::move(all));
      }
    }
    for (const auto& [id, hold] : holds)
      under_test->let_go(id);
    EXPECT_EQ(under_test->free_pages(), under_test->n_pages());
  }
}

}  // namespace
}  // namespace qw
