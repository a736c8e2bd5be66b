#include "support/routing.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <span>

#include "base/error.h"

namespace qw::test {

namespace {

/// Indices of `logits`, largest first; of equal ones the lower index first.
std::vector<size_t> ranking(std::span<const float> logits) {
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  return order;
}

}  // namespace

std::vector<ExpertFlip> expert_flips(const RouterRecorder& exact, const RouterRecorder& got,
                                     const ModelConfig& config) {
  std::vector<ExpertFlip> out;
  if (!config.moe) return out;
  const auto n_experts = static_cast<size_t>(config.moe->n_experts);
  const auto top_k = static_cast<std::ptrdiff_t>(config.moe->top_k);
  for (int layer = 0; layer < config.n_layers; ++layer) {
    const std::string name = fmt::format("layer{}.router_logits", layer);
    const auto found = exact.values().find(name), other = got.values().find(name);
    if (found == exact.values().end()) continue;  // a dense layer
    QW_CHECK(other != got.values().end() && other->second.size() == found->second.size());
    for (size_t begin = 0; begin < found->second.size(); begin += n_experts) {
      const auto logits = std::span(found->second).subspan(begin, n_experts);
      std::vector<size_t> want = ranking(logits);
      std::vector<size_t> have = ranking(std::span(other->second).subspan(begin, n_experts));
      const double last = static_cast<double>(logits[want[static_cast<size_t>(top_k - 1)]]),
                   next = static_cast<double>(logits[want[static_cast<size_t>(top_k)]]),
                   range = static_cast<double>(logits[want.front()] - logits[want.back()]);
      std::sort(want.begin(), want.begin() + top_k);
      std::sort(have.begin(), have.begin() + top_k);
      if (std::equal(want.begin(), want.begin() + top_k, have.begin())) continue;
      out.push_back({layer, static_cast<int64_t>(begin / n_experts), last - next, range});
    }
  }
  return out;
}

RoutingCheck::RoutingCheck(ModelRunner& runner, std::string_view variant) : runner_(runner) {
  if (runner.model().config().moe && !is_exact(variant))
    exact_ = std::make_unique<ModelRunner>(runner.path(), "cpu_f32");
}

std::vector<ExpertFlip> RoutingCheck::check_flips(const std::vector<int32_t>& ids,
                                                  const RouterRecorder& routing) {
  if (!exact_) return {};
  RouterRecorder exact;
  exact_->logits(ids, {}, &exact);
  const ModelConfig& config = runner_.model().config();
  std::vector<ExpertFlip> flips = expert_flips(exact, routing, config);
  for (const ExpertFlip& flip : flips) {
    EXPECT_LE(flip.relative_margin(), kWidestMargin)
        << "layer " << flip.layer << " row " << flip.row;
    largest_margin_ = std::max(largest_margin_, flip.relative_margin());
  }
  const double choices = static_cast<double>(config.n_layers) * static_cast<double>(ids.size());
  EXPECT_LE(static_cast<double>(flips.size()), std::max(2.0, kMostFlips * choices));
  n_flips_ += static_cast<int64_t>(flips.size());
  return flips;
}

Difference RoutingCheck::difference(const std::vector<int32_t>& ids,
                                    const std::vector<int32_t>& rows,
                                    const std::vector<float>& want) {
  RouterRecorder routing;
  const std::vector<float> got = runner_.logits(ids, rows, &routing);
  if (got.size() != want.size()) return largest_difference(got, want, runner_.vocab());
  const std::vector<ExpertFlip> flips = check_flips(ids, routing);
  const auto cols = static_cast<size_t>(runner_.vocab());
  Difference plain;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto row_of = [&](const std::vector<float>& all) {
      const std::span<const float> row = std::span(all).subspan(i * cols, cols);
      return std::vector<float>(row.begin(), row.end());
    };
    const Difference d = largest_difference(row_of(got), row_of(want), runner_.vocab());
    const bool flipped =
        std::ranges::any_of(flips, [&](const ExpertFlip& flip) { return flip.row == rows[i]; });
    if (flipped) {
      EXPECT_LE(d.relative, kFlippedRow) << "row " << rows[i];
    }
    Difference& worst = flipped ? of_flipped_rows_ : plain;
    worst = {std::max(worst.absolute, d.absolute), std::max(worst.relative, d.relative)};
  }
  return plain;
}

}  // namespace qw::test
