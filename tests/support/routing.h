// Which rows of a mixture of experts were routed otherwise than in exact arithmetic.
//
// Part of the tests. The choice of experts is a step function of the router's logits: where the
// last chosen and the first refused expert lie closer together than the router's input is rounded,
// another expert answers, and the logits of that row move by as much as experts differ.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "support/model_runner.h"

namespace qw::test {

/// A row whose set of experts differs in some layer.
struct ExpertFlip {
  int layer = 0;
  int64_t row = 0;
  double margin = 0;  // exact router logit of the last chosen expert minus that of the next
  double range = 0;   // largest minus smallest exact router logit of the row

  double relative_margin() const { return margin / range; }
};

/// Observes only the router's logits.
class RouterRecorder : public Recorder {
 public:
  bool wants(std::string_view name) override { return name.ends_with(".router_logits"); }
};

/// Every flip between two runs of one sequence, by layer, then row. Empty for a model without
/// experts.
std::vector<ExpertFlip> expert_flips(const RouterRecorder& exact, const RouterRecorder& got,
                                     const ModelConfig& config);

/// Compares logits of a runner with expected ones. The rows that an expert flip reached are held to
/// rules of their own; a model without experts has none.
class RoutingCheck {
 public:
  /// Of the range of the exact router logits: a choice whose margin is wider must not flip.
  static constexpr double kWidestMargin = 0.02;
  /// Of the range of the logits: how far a row may move because another expert answered.
  static constexpr double kFlippedRow = 0.5;
  /// Of all choices (layers x rows), how many may flip; two in any case.
  static constexpr double kMostFlips = 0.04;

  RoutingCheck(ModelRunner& runner, std::string_view variant);

  /// The largest difference over the rows at which no layer flips. Fails the test for a flip
  /// outside the rules above.
  Difference difference(const std::vector<int32_t>& ids, const std::vector<int32_t>& rows,
                        const std::vector<float>& want);

  int64_t n_flips() const { return n_flips_; }
  double largest_margin() const { return largest_margin_; }
  const Difference& of_flipped_rows() const { return of_flipped_rows_; }

 private:
  std::vector<ExpertFlip> check_flips(const std::vector<int32_t>& ids,
                                      const RouterRecorder& routing);

  ModelRunner& runner_;
  std::unique_ptr<ModelRunner> exact_;  // null: nothing can flip
  int64_t n_flips_ = 0;
  double largest_margin_ = 0;
  Difference of_flipped_rows_;
};

}  // namespace qw::test
