#include "engine/draft_pace.h"

#include <algorithm>

#include "base/error.h"

namespace qw {

void Acceptance::note(int64_t n_tried, int64_t n_right) {
  QW_CHECK(n_right >= 0 && n_right <= n_tried);
  const int64_t n_known = std::min(n_tried, n_right + 1);  // behind a wrong guess nothing is known
  for (int64_t i = 0; i < n_known; ++i) {
    const double weight = std::max(weight_, 1.0 / static_cast<double>(n_seen_ + 3));
    rate_ += weight * ((i < n_right ? 1.0 : 0.0) - rate_);
    ++n_seen_;
  }
}

int64_t DraftPace::next(const DraftCosts& costs, double credit) {
  if (costs.with.empty()) return 0;
  double best_gain = 0, tokens = 1, power = 1;
  int64_t best = 0;
  for (size_t i = 0; i < costs.with.size(); ++i) {
    power *= acceptance_.rate();
    tokens += power;
    const double gain = (1 + costs.share * (tokens - 1)) * costs.plain / costs.with[i];
    if (gain <= best_gain) continue;
    best_gain = gain;
    best = static_cast<int64_t>(i) + 1;
  }
  const auto horizon = static_cast<double>(std::min(costs.tokens_left, kHorizon));
  const double won = horizon * costs.plain * (1 - 1 / best_gain);
  if (best_gain >= kMinGain && won > costs.catch_up) {
    wait_ = 0;
    next_pause_ = 1;
    return best;
  }
  if (wait_ > 0) {
    --wait_;
    return 0;
  }
  if (costs.catch_up + costs.with[0] - costs.plain > credit) return 0;
  wait_ = next_pause_;
  next_pause_ = std::min(2 * next_pause_, kMaxPause);
  return 1;
}

}  // namespace qw
