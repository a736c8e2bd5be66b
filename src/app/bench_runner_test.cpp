// What bench measures, on a model that takes no time: what is timed, what is not, and how the
// repetitions are compared with the limits of their time.
#include "app/bench_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "backend/profile.h"
#include "base/error.h"
#include "engine/fake_model.h"

namespace qw::app {
namespace {

using Kind = BenchCase::Kind;
using std::chrono_literals::operator""ms;

TEST(BenchSummary, SharesAreMediansOfARepetitionsRateToTheLimitOfItsTime) {
  BenchResult result;
  result.bytes = 10e9;
  result.operations = 100e9;
  // The machine gets slower by half, then one repetition is disturbed.
  const auto add = [&](double seconds, double read, double int8) {
    result.repetitions.push_back({seconds, {read, int8, 1, 2}});
  };
  add(1, 20, 400);  // 10 of 20 GB/s, 100 of 400 GOP/s
  add(2, 10, 250);  // 5 of 10, 50 of 250
  add(4, 100, 50);  // 2.5 of 100, 25 of 50
  const BenchSummary summary = summarise(result, ComputeUnit::kInt8);
  EXPECT_DOUBLE_EQ(summary.seconds, 2);
  EXPECT_DOUBLE_EQ(summary.seconds_p10, 1.2);
  EXPECT_DOUBLE_EQ(summary.seconds_p90, 3.6);
  EXPECT_DOUBLE_EQ(summary.limits.read_gb_per_second, 20);
  EXPECT_DOUBLE_EQ(summary.limits.int8_gop_per_second, 250);
  EXPECT_DOUBLE_EQ(summary.limits.bf16_gflop_per_second, 1);
  EXPECT_DOUBLE_EQ(summary.limits.f32_gflop_per_second, 2);
  EXPECT_DOUBLE_EQ(summary.read_share, 0.5) << "not 5 of 20, of the medians";
  EXPECT_DOUBLE_EQ(summary.compute_share, 0.25) << "not 50 of 250";
  EXPECT_DOUBLE_EQ(summarise(result, ComputeUnit::kF32).compute_share, 25);
}

/// Notes what it is asked for.
class NotingModel : public FakeModel {
 public:
  explicit NotingModel(Profile& profile) : profile_(profile) {}
  void forward(const BatchPlan& plan, KvCache& cache, float* logits,
               ForwardObserver* observer) override {
    ++profile_.at("forward", -1).calls;
    FakeModel::forward(plan, cache, logits, observer);
  }
  std::unique_ptr<KvCache> make_kv(int64_t n_pages, DType type) const override {
    ++n_caches;
    return FakeModel::make_kv(n_pages, type);
  }
  mutable int n_caches = 0;

 private:
  Profile& profile_;
};

TEST(BenchRunner, ProbesBeforeEveryRepetitionOutsideOfWhatIsTimed) {
  const CancelFlag never;
  for (const auto& [kind, n_tokens, n_steps] :
       {std::tuple(Kind::kDecode, 6, 6), std::tuple(Kind::kPrefill, 40, 3 * 2)}) {
    Profile profile;
    NotingModel model(profile);
    int n_probes = 0;
    std::vector<int64_t> steps_before;  // each probe
    BenchRunner runner(model, DType::kF16, 16, never, [&] {
      steps_before.push_back(profile.at("forward", -1).calls);
      std::this_thread::sleep_for(30ms);
      return HostLimits{100.0 + ++n_probes, 1, 1, 1};
    });
    runner.set_profile(profile);
    const BenchResult result = runner.run({kind, n_tokens, /*depth=*/5, /*batch=*/2}, 4);
    ASSERT_EQ(result.repetitions.size(), 4u);
    EXPECT_EQ(n_probes, 4);
    EXPECT_EQ(steps_before, (std::vector<int64_t>{0, n_steps, 2 * n_steps, 3 * n_steps}));
    EXPECT_EQ(profile.at("forward", -1).calls, 4 * n_steps) << "of the repetitions only";
    double least = 1;
    for (size_t r = 0; r < 4; ++r) {
      EXPECT_EQ(result.repetitions[r].limits.read_gb_per_second, 101 + r);
      least = std::min(least, result.repetitions[r].seconds);
    }
    EXPECT_LT(least, 0.03) << "a probe takes longer";
    // Filling to the depth, warming up, and after each probe steps that are not timed.
    const int64_t warm_up = kind == Kind::kDecode ? 4 : 2, settle = kind == Kind::kDecode ? 4 : 1;
    EXPECT_EQ(model.n_forwards, 2 + warm_up + 4 * (settle + n_steps));
  }
}

TEST(BenchRunner, TheHashIsThatOfTheLastRepetition) {
  const CancelFlag never;
  for (const Kind kind : {Kind::kDecode, Kind::kPrefill}) {
    Profile profile;
    NotingModel model(profile);
    BenchRunner runner(model, DType::kF16, 16, never, [] { return HostLimits{1, 1, 1, 1}; });
    const std::string hash = runner.run({kind, 20, 3, 2}, 1).logits_hash;
    EXPECT_EQ(runner.run({kind, 20, 3, 2}, 3).logits_hash, hash);
    EXPECT_NE(runner.run({kind, 19, 3, 2}, 1).logits_hash, hash);
  }
}

TEST(BenchRunner, RefusesMorePlacesThanCanBeNumberedBeforeItMakesACache) {
  const CancelFlag never;
  Profile profile;
  NotingModel model(profile);
  BenchRunner runner(model, DType::kF16, 16, never, [] { return HostLimits{1, 1, 1, 1}; });
  constexpr int64_t kMost = BenchRunner::kMaxCacheTokens;
  EXPECT_NO_THROW(runner.check({Kind::kDecode, 3, kMost / 4 * 4 - 3, 1}));
  for (const BenchCase& test : {BenchCase{Kind::kDecode, 4, kMost / 4 * 4 - 3, 1},
                                BenchCase{Kind::kPrefill, 1 << 20, 1 << 20, 4096}}) {
    try {
      runner.run(test, 1);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      EXPECT_NE(error.message().find("[bench] KV cache: expected at most 2147483647 tokens"),
                std::string::npos)
          << error.message();
    }
  }
  EXPECT_EQ(model.n_caches, 0);
}

}  // namespace
}  // namespace qw::app
