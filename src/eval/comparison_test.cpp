// Figures against those computed by hand from a few probabilities.
#include "eval/comparison.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "checkpoint/test_support.h"
#include "engine/fake_model.h"

namespace qw {
namespace {

constexpr int64_t kVocab = 12;
using Probabilities = std::array<double, kVocab>;

/// What it predicts depends on the last token alone; its one layer puts out the same for all.
class TableModel : public FakeModel {
 public:
  TableModel(const Probabilities& after_0, const Probabilities& after_others,
             std::array<float, 2> hidden)
      : FakeModel(kVocab), after_0_(after_0), after_others_(after_others), hidden_(hidden) {}

  void forward(const BatchPlan& plan, KvCache&, float* logits, ForwardObserver* observer) override {
    if (observer != nullptr && observer->wants("hidden.layer.0")) {
      std::vector<float> values;
      for (int64_t t = 0; t < plan.n_tokens(); ++t)
        values.insert(values.end(), hidden_.begin(), hidden_.end());
      observer->on_value("hidden.layer.0", plan.n_tokens(), std::ssize(hidden_), values.data());
    }
    for (const int32_t row : plan.logit_rows) {
      const bool is_0 = plan.tokens[static_cast<size_t>(row)] == 0;
      for (const double p : is_0 ? after_0_ : after_others_)
        *logits++ = static_cast<float>(std::log(p) + 3);  // logits have no fixed sum
    }
  }

 private:
  Probabilities after_0_, after_others_;
  std::array<float, 2> hidden_;
};

struct Pair {
  Pair() {
    Probabilities after_0_a, after_0_b, other;
    after_0_a.fill(1.0 / 40);
    after_0_a[0] = 1.0 / 2, after_0_a[1] = 1.0 / 4;
    after_0_b = after_0_a;
    after_0_b[0] = 1.0 / 4, after_0_b[1] = 1.0 / 2, after_0_b[2] = 1.0 / 80,
    after_0_b[11] = 3.0 / 80;
    other.fill(1.0 / 22);
    other[0] = 1.0 / 2;
    model_a = std::make_unique<TableModel>(after_0_a, other, std::array{3.0F, 4.0F});
    model_b = std::make_unique<TableModel>(after_0_b, other, std::array{3.0F, 5.0F});
    engine_a = std::make_unique<Engine>(*model_a, nullptr, EngineOptions());
    engine_b = std::make_unique<Engine>(*model_b, nullptr, EngineOptions());
  }
  Comparison compare(const std::vector<int32_t>& ids, const ComparisonOptions& options = {}) const {
    return compare_models({*engine_a, kVocab}, {*engine_b, kVocab}, ids, options);
  }
  std::unique_ptr<TableModel> model_a, model_b;
  std::unique_ptr<Engine> engine_a, engine_b;
};

constexpr double kNear = 1e-6;  // logits are floats
const double kLn2 = std::log(2.0);
/// 1/2 ln(1/2 : 1/4) + 1/4 ln(1/4 : 1/2) + 1/40 ln(1/40 : 1/80) + 1/40 ln(1/40 : 3/80)
const double kKl = kLn2 / 4 + std::log(4.0 / 3) / 40;

TEST(Comparison, IsWhatProbabilitiesGive) {
  // Predicted: 1 after 0, 0 after 1, 11 after 0.
  const Comparison c = Pair().compare({0, 1, 0, 11});
  EXPECT_EQ(c.n_tokens, 3);
  ASSERT_EQ(c.kls.size(), 3u);
  EXPECT_NEAR(c.kls[0], kKl, kNear);
  EXPECT_NEAR(c.kls[1], 0, kNear);
  EXPECT_NEAR(c.kls[2], kKl, kNear);
  EXPECT_NEAR(c.kl.mean, 2 * kKl / 3, kNear);
  EXPECT_NEAR(c.kl.error, kKl / 3, kNear);  // sqrt((1 + 4 + 1) / 9 / 2 / 3)
  EXPECT_NEAR(c.kl_median, kKl, kNear);
  EXPECT_NEAR(c.kl_max, kKl, kNear);
  // After 0: 0 and 1 first; then 0, 1, 2, 3, 4 and 1, 0, 11, 3, 4; of ten all but 2 and 11.
  EXPECT_NEAR(c.same_top1.mean, 1.0 / 3, kNear);
  EXPECT_NEAR(c.same_top5.mean, (0.8 + 1 + 0.8) / 3, kNear);
  EXPECT_NEAR(c.same_top10.mean, (0.9 + 1 + 0.9) / 3, kNear);
  EXPECT_NEAR(std::exp(c.nll_a.mean), std::cbrt(4.0 * 2 * 40), 1e-4);
  EXPECT_NEAR(std::exp(c.nll_b.mean), std::cbrt(2.0 * 2 * 80 / 3), 1e-4);
  EXPECT_NEAR(c.nll_difference.mean, -std::log(3.0) / 3, kNear);
  EXPECT_NEAR(c.p_difference.mean, (1.0 / 4 + 1.0 / 80) / 3, kNear);
  EXPECT_NEAR(c.rms_p_difference, std::sqrt((1.0 / 16 + 1.0 / 6400) / 3), kNear);
}

TEST(Comparison, OfAModelWithItselfIsNothing) {
  const Pair pair;
  const ComparedModel a{*pair.engine_a, kVocab};
  const Comparison c = compare_models(a, a, std::vector<int32_t>{0, 1, 0, 11});
  EXPECT_EQ(c.kl.mean, 0);
  EXPECT_EQ(c.kl_max, 0);
  EXPECT_EQ(c.same_top1.mean, 1);
  EXPECT_EQ(c.nll_difference.mean, 0);
  EXPECT_EQ(c.rms_p_difference, 0);
}

TEST(Comparison, ReadsWindowByWindow) {
  const Pair pair;
  // 1 after 0, 11 after 0; what begins a window is not predicted, and a last token alone is none.
  const Comparison c = pair.compare({0, 1, 0, 11, 5}, {.window = 2});
  EXPECT_EQ(c.window, 2);
  ASSERT_EQ(c.kls.size(), 2u);
  EXPECT_NEAR(c.kl.mean, kKl, kNear);
  EXPECT_NEAR(std::exp(c.nll_a.mean), std::sqrt(4.0 * 40), 1e-4);
}

TEST(Comparison, TellsHowFarLayersAreApart) {
  const Comparison c = Pair().compare({0, 1, 0, 11}, {.window = 3, .layers = true});
  ASSERT_EQ(c.layer_errors.size(), 1u);
  EXPECT_NEAR(c.layer_errors[0], 1.0 / 5, kNear);  // (0, 1) beside (3, 4)
}

TEST(Comparison, RefusesWhatCannotBeCompared) {
  const Pair pair;
  const auto refuse = [](const std::string& part, const auto& action) {
    expect_error(ErrorKind::kInvalidArgument, {part}, action);
  };
  refuse("at least 2", [&] { pair.compare({0}); });
  refuse("window", [&] { pair.compare({0, 1}, {.window = 1}); });
  refuse("window", [&] { pair.compare({0, 1}, {.window = 257}); });
  FakeModel other(kVocab + 1);
  Engine engine(other, nullptr, EngineOptions());
  refuse("same size", [&] {
    compare_models({*pair.engine_a, kVocab}, {engine, kVocab + 1}, std::vector<int32_t>{0, 1});
  });
}

}  // namespace
}  // namespace qw
