// The engine with a tier on disk: the same tokens with it as without, whatever becomes of the
// files.
#include "engine/prefix_tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "base/log.h"
#include "engine/fake_model.h"

namespace qw {
namespace {

namespace fs = std::filesystem;

constexpr int kPage = 4;

class PrefixTierTest : public testing::Test {
 protected:
  void SetUp() override {
    init_logging("off");
    fs::remove_all(directory_);
  }
  void TearDown() override {
    fs::remove_all(directory_);
    init_logging("warning");
  }

  EngineOptions options(bool on_disk = true, int64_t kv_tokens = 0) const {
    EngineOptions options;
    options.ctx = 256;
    options.n_slots = 4;
    options.kv_tokens = kv_tokens;
    options.chunk_tokens = 16;
    options.check_integrity = true;
    if (on_disk)
      options.prefix_store = std::make_shared<PrefixStore>(PrefixStoreOptions{directory_});
    return options;
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
  /// What a new process answers.
  RequestResult restart(const Request& request, const std::string& content = "weights",
                        bool on_disk = true) const {
    FakeModel model(50, kPage);
    model.content = content;
    Engine engine(model, nullptr, options(on_disk));
    RequestResult result = engine.generate(request);
    return result;
  }
  std::vector<std::string> files() const {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(directory_)) {
      if (entry.path().extension() == ".kv") out.push_back(entry.path());
    }
    return out;
  }

  const std::string directory_ = testing::TempDir() + "prefix_tier_" +
                                 testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(PrefixTierTest, ANewProcessReadsWhatAnotherComputed) {
  const Request request = request_of(101, 1);
  const RequestResult plain = restart(request, "weights", false);
  const RequestResult first = restart(request);
  EXPECT_EQ(first.timings.n_cached, 0);
  const RequestResult second = restart(request);
  EXPECT_EQ(second.timings.n_cached, 100) << "all but the last token, which has a page of its own";
  EXPECT_EQ(first.completions[0].ids, plain.completions[0].ids);
  EXPECT_EQ(second.completions[0].ids, plain.completions[0].ids);
  // The answer is kept as well: the next turn goes on behind it.
  Request turn = request;
  turn.prompt.insert(turn.prompt.end(), plain.completions[0].ids.begin(),
                     plain.completions[0].ids.end());
  EXPECT_EQ(restart(turn).timings.n_cached, 108);
}

// Blocks in memory are written once; where their files were deleted, once more.
TEST_F(PrefixTierTest, WhatWasDeletedAndIsInMemoryIsWrittenAgain) {
  const Request before = request_of(41, 1);
  Request after = before;
  after.prompt.insert(after.prompt.end(), before.prompt.begin(), before.prompt.begin() + 20);
  {
    FakeModel model(50, kPage);
    model.content = "weights";
    const EngineOptions with = options();
    Engine engine(model, nullptr, with);
    engine.generate(before);
    with.prefix_store->flush();
    fs::remove_all(directory_);
    engine.generate(after);
    with.prefix_store->flush();
    engine.generate(request_of(9, 2));
  }
  EXPECT_EQ(restart(after).timings.n_cached, 60);
}

TEST_F(PrefixTierTest, WhatIsOfOtherWeightsOrAnotherAdapterIsNotFound) {
  Request request = request_of(41, 1);
  restart(request);
  EXPECT_EQ(restart(request, "other weights").timings.n_cached, 0);
  EXPECT_EQ(restart(request, "").timings.n_cached, 0) << "weights without a name";
  request.adapter = 0;
  const RequestResult adapted = restart(request);
  EXPECT_EQ(adapted.timings.n_cached, 0);
  EXPECT_EQ(restart(request).timings.n_cached, 40);
  EXPECT_EQ(restart(request).completions[0].ids, adapted.completions[0].ids);
  request.adapter = -1;
  EXPECT_EQ(restart(request).timings.n_cached, 40);
}

TEST_F(PrefixTierTest, OnlyTheSameSaltFindsWhatIsKept) {
  Request request = request_of(41, 1);
  const RequestResult plain = restart(request);
  const auto expect = [&](const std::string& salt, int64_t n_cached, const RequestResult& got) {
    EXPECT_EQ(got.timings.n_cached, n_cached) << salt;
    EXPECT_EQ(got.completions[0].ids, plain.completions[0].ids) << salt;
  };
  for (const int64_t n_cached : {0, 40}) {
    for (const char* salt : {"a", "b"}) {
      request.cache_salt = salt;
      expect(salt, n_cached, restart(request));
    }
  }
  request.cache_salt.clear();
  expect("", 40, restart(request));
  // The same within one process, whether it has a disk or not.
  for (const bool on_disk : {false, true}) {
    fs::remove_all(directory_);
    FakeModel model(50, kPage);
    model.content = "weights";
    Engine engine(model, nullptr, options(on_disk));
    for (const int64_t n_cached : {0, 40}) {
      for (const char* salt : {"", "a", "b"}) {
        request.cache_salt = salt;
        expect(salt, n_cached, engine.generate(request));
      }
    }
  }
}

TEST_F(PrefixTierTest, ALaterPartIsReadBehindWhatMemoryHolds) {
  const Request whole = request_of(81, 1);
  Request half = whole;
  half.prompt.resize(41);
  restart(whole);
  FakeModel model(50, kPage);
  model.content = "weights";
  Engine engine(model, nullptr, options());
  engine.generate(half);
  const int64_t n_before = engine.disk_stats()->n_hit_tokens;
  EXPECT_EQ(n_before, 40);
  EXPECT_EQ(engine.generate(whole).timings.n_cached, 80);
  EXPECT_EQ(engine.disk_stats()->n_hit_tokens - n_before, 40) << "not what was there";
  EXPECT_EQ(engine.generate(whole).timings.n_cached, 80);
  EXPECT_EQ(engine.disk_stats()->n_hit_tokens - n_before, 40) << "nothing is read twice";
  EXPECT_EQ(engine.disk_stats()->n_queried_tokens, 80);
}

TEST_F(PrefixTierTest, AMissingBlockEndsWhatIsRead) {
  const Request request = request_of(81, 1);
  const RequestResult first = restart(request);
  // Every chain of files with any one missing gives the same tokens.
  for (const std::string& file : files()) {
    fs::rename(file, file + ".away");
    const RequestResult again = restart(request);
    EXPECT_EQ(again.completions[0].ids, first.completions[0].ids);
    EXPECT_TRUE(fs::exists(file)) << "computed and kept again";
    fs::rename(file + ".away", file);
  }
}

TEST_F(PrefixTierTest, BrokenFilesChangeNothing) {
  const Request request = request_of(121, 1, 20);
  const RequestResult first = restart(request);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    for (const std::string& path : files()) {
      if (random_bits(seed, 1, path.back()) % 4 != 0) continue;
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(static_cast<std::streamoff>(random_bits(seed, 2, path.size()) % 100));
      file.put('\xA5');
    }
    EXPECT_EQ(restart(request).completions[0].ids, first.completions[0].ids);
  }
}

TEST_F(PrefixTierTest, UnderALimitTheBeginningOfAPromptStays) {
  // Room for half of what the request leaves.
  const auto limited = [&](const Request& request) {
    FakeModel model(50, kPage);
    model.content = "weights";
    EngineOptions set = options(false);
    set.prefix_store = std::make_shared<PrefixStore>(PrefixStoreOptions{directory_, 2000});
    Engine engine(model, nullptr, set);
    return engine.generate(request).timings.n_cached;
  };
  const Request request = request_of(101, 1);
  EXPECT_EQ(limited(request), 0);
  const int64_t n_cached = limited(request);
  EXPECT_GE(n_cached, 36);
  EXPECT_LT(n_cached, 100);
}

TEST_F(PrefixTierTest, WhatIsAskedOfThePromptIsComputed) {
  Request request = request_of(41, 1);
  restart(request);
  request.config.prompt_logprobs = 2;
  const RequestResult result = restart(request);
  EXPECT_EQ(result.timings.n_cached, 0);
  EXPECT_EQ(result.prompt_logprobs.size(), 40);
}

/// Runs requests that come at different times, some of them cancelled; the answers of the others.
std::map<uint64_t, std::vector<int32_t>> run_all(Engine& engine, uint64_t seed,
                                                 const std::function<void(int)>& between) {
  std::map<uint64_t, std::vector<int32_t>> out;
  std::map<RequestId, uint64_t> running;
  uint64_t next = 0;
  constexpr uint64_t kRequests = 30;
  for (int step = 0; next < kRequests || !engine.idle(); ++step) {
    if (next < kRequests && random_bits(seed, 4, static_cast<uint64_t>(step)) % 3 == 0) {
      // Prompts begin alike: a stem of several, then their own.
      Request request;
      const uint64_t stem = next % 4;
      for (uint64_t i = 0; i < 20 + 7 * stem; ++i)
        request.prompt.push_back(static_cast<int32_t>(random_bits(stem, 5, i) % 50));
      for (uint64_t i = 0; i < next % 9; ++i)
        request.prompt.push_back(static_cast<int32_t>(random_bits(next, 6, i) % 50));
      request.adapter = next % 5 == 4 ? 0 : -1;
      request.config.max_new_tokens = 3 + static_cast<int64_t>(next % 12);
      request.config.do_sample = true;
      request.config.seed = next;
      request.config.num_return_sequences = next % 7 == 6 ? 2 : 1;
      const RequestId id = engine.submit(request);
      running[id] = next++;
      if (random_bits(seed, 8, next) % 6 == 0) {
        engine.cancel(id);
        running.erase(id);
      }
    }
    between(step);
    for (const Event& event : engine.step()) {
      if (event.kind != Event::Kind::kRequest || running.count(event.request) == 0) continue;
      for (const Completion& completion : event.result->completions) {
        EXPECT_EQ(completion.error, "");
        auto& ids = out[running[event.request]];
        ids.insert(ids.end(), completion.ids.begin(), completion.ids.end());
      }
    }
  }
  return out;
}

TEST_F(PrefixTierTest, AnswersAreTheSameUnderEveryPressure) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    for (const int64_t kv_tokens : {int64_t{72}, int64_t{200}, int64_t{1024}}) {
      FakeModel model(50, kPage), with_disk(50, kPage);
      with_disk.content = "weights";
      Engine plain(model, nullptr, options(false, kv_tokens));
      Engine engine(with_disk, nullptr, options(true, kv_tokens));
      const auto expected = run_all(plain, seed, [](int) {});
      const auto got = run_all(engine, seed, [&](int step) {
        if (step % 17 == 3) engine.drop_kept_pages();
        const auto all = files();
        if (step % 5 == 2 && !all.empty()) {
          const std::string& path = all[static_cast<size_t>(step) % all.size()];
          if (step % 2 == 0) {
            fs::remove(path);
          } else {
            std::ofstream(path, std::ios::binary) << "broken";
          }
        }
      });
      // Those that ended before they were cancelled differ by the pace of steps.
      for (const auto& [number, ids] : expected) {
        if (got.count(number) != 0) {
          EXPECT_EQ(got.at(number), ids) << number;
        }
      }
      EXPECT_GT(got.size(), 15);
      engine.drop_kept_pages();
      EXPECT_EQ(engine.free_pages(), engine.n_pages());
    }
  }
}

TEST_F(PrefixTierTest, BlocksAreWrittenSoonAfterTheyAreComputed) {
  FakeModel model(50, kPage);
  model.content = "weights";
  const EngineOptions set = options();
  Engine engine(model, nullptr, set);
  engine.submit(request_of(41, 1, 30));
  engine.step();
  engine.step();
  engine.step();  // the prompt, while its answer goes on
  set.prefix_store->flush();
  EXPECT_GE(files().size(), 10);
  EXPECT_FALSE(engine.idle());
  while (!engine.idle())
    engine.step();
  set.prefix_store->flush();
  EXPECT_EQ(files().size(), 70 / kPage) << "the last token was never computed";
}

}  // namespace
}  // namespace qw
