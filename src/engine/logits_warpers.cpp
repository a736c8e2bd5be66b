#include "engine/logits_warpers.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/logits_math.h"

namespace qw {
namespace {

/// softmax over the live values.
struct Probabilities {
  explicit Probabilities(std::span<const float> values) : p(values.size()) {
    const int32_t best = argmax(values);
    if (best < 0) return;  // every value is -infinity: all stay 0
    const double sum = exp_all(values, values[static_cast<size_t>(best)], p.data());
    largest = 1 / sum;
    scale = 1 / sum;
  }
  double operator[](size_t i) const { return static_cast<double>(p[i]) * scale; }

  std::vector<float> p;  // e^(x - max), not yet divided by the sum
  double scale = 0;
  double largest = 0;
};

/// The elements 0 .. n-1 in an order, sorted only as far as they are asked for.
template <typename Before>
class LazyOrder {
 public:
  LazyOrder(size_t n, Before before) : order_(n), before_(before) {
    std::iota(order_.begin(), order_.end(), 0u);
  }
  LazyOrder(std::vector<uint32_t> elements, Before before)
      : order_(std::move(elements)), before_(before) {}
  size_t size() const { return order_.size(); }
  size_t operator[](size_t rank) {
    while (rank >= sorted_)
      extend();
    return order_[rank];
  }

 private:
  void extend() {
    const size_t end = std::min(order_.size(), sorted_ == 0 ? size_t{128} : sorted_ * 4);
    const auto at = [this](size_t i) { return order_.begin() + static_cast<std::ptrdiff_t>(i); };
    if (end < order_.size()) std::nth_element(at(sorted_), at(end), order_.end(), before_);
    std::sort(at(sorted_), at(end), before_);
    sorted_ = end;
  }

  std::vector<uint32_t> order_;
  Before before_;
  size_t sorted_ = 0;
};

/// Keeps the elements (indices into `compact`) for which keep(i) holds.
template <typename Keep>
void keep_if(LogitsRow& row, const LogitsRow::Compact& compact, Keep keep) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < compact.values.size(); ++i) {
    if (keep(i)) ids.push_back(compact.id(i));
  }
  row.keep_only(std::move(ids));
}

/// Keeps the first n elements of an order.
template <typename Order>
void keep_first(LogitsRow& row, const LogitsRow::Compact& compact, Order& order, size_t n) {
  std::vector<int32_t> ids(n);
  for (size_t rank = 0; rank < n; ++rank)
    ids[rank] = compact.id(order[rank]);
  std::sort(ids.begin(), ids.end());
  row.keep_only(std::move(ids));
}

double entropy_of(std::span<const float> values, double log_sum) {
  double entropy = 0;
  for (const float v : values) {
    const double lp = static_cast<double>(v) - log_sum;
    if (v != kMinusInfinity) entropy -= lp * std::exp(lp);
  }
  return entropy;
}

}  // namespace

void Temperature::process(const TokenHistory&, LogitsRow& row) const {
  if (row.is_sparse()) {
    for (const int32_t id : row.live())
      row[id] /= temperature_;
  } else {
    for (float& v : row.values())
      v /= temperature_;
  }
}

void TopK::process(const TokenHistory&, LogitsRow& row) const {
  const LogitsRow::Compact compact = row.compact();
  if (k_ >= static_cast<int64_t>(compact.values.size())) return;
  const float threshold = kth_largest(compact.values, k_);
  keep_if(row, compact, [&](size_t i) {
    return compact.values[i] >= threshold && compact.values[i] != kMinusInfinity;
  });
}

void TopP::process(const TokenHistory&, LogitsRow& row) const {
  const LogitsRow::Compact compact = row.compact();
  const std::span<const float> values = compact.values;
  const Probabilities p(values);
  // The tokens below (1 - p) / n have less than 1 - p together, so none of them is ever reached;
  // half of that keeps rounding out of it. On a long row this leaves a fraction to be sorted.
  const double least = 0.5 * (1 - p_) / static_cast<double>(values.size());
  std::vector<uint32_t> reachable;
  for (size_t i = 0; i < values.size(); ++i) {
    if (p[i] >= least) reachable.push_back(static_cast<uint32_t>(i));
  }
  if (static_cast<int64_t>(reachable.size()) < min_keep_) {
    reachable.resize(values.size());
    std::iota(reachable.begin(), reachable.end(), 0u);
  }
  LazyOrder order(std::move(reachable), [values](uint32_t a, uint32_t b) {
    return values[a] != values[b] ? values[a] > values[b] : a > b;
  });
  size_t kept = 0;
  for (double above = 0; kept < order.size(); ++kept) {
    if (above >= p_ && static_cast<int64_t>(kept) >= min_keep_) break;
    const size_t i = order[kept];
    if (values[i] == kMinusInfinity) break;
    above += p[i];
  }
  keep_first(row, compact, order, kept);
}

void MinP::process(const TokenHistory&, LogitsRow& row) const {
  const LogitsRow::Compact compact = row.compact();
  const Probabilities p(compact.values);
  const float always = kth_largest(compact.values, min_keep_);
  const double threshold = min_p_ * p.largest;
  keep_if(row, compact, [&](size_t i) { return p[i] >= threshold || compact.values[i] >= always; });
}

void TypicalP::process(const TokenHistory&, LogitsRow& row) const {
  const LogitsRow::Compact compact = row.compact();
  const std::span<const float> values = compact.values;
  const double log_sum = log_sum_exp(values);
  if (!std::isfinite(log_sum)) return;
  const double entropy = entropy_of(values, log_sum);
  std::vector<float> distance(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    distance[i] = static_cast<float>(std::abs(log_sum - static_cast<double>(values[i]) - entropy));
  }
  LazyOrder order(values.size(), [&distance](uint32_t a, uint32_t b) {
    return distance[a] != distance[b] ? distance[a] < distance[b] : a < b;
  });
  size_t last = 0;  // how many cumulated masses stay below
  for (double mass = 0; last + 1 < order.size(); ++last) {
    mass += std::exp(static_cast<double>(values[order[last]]) - log_sum);
    if (mass >= mass_) break;
  }
  const float limit = distance[order[last]];
  size_t kept = last + 1;
  while (kept < order.size() &&
         (distance[order[kept]] <= limit || static_cast<int64_t>(kept) < min_keep_)) {
    if (values[order[kept]] == kMinusInfinity) break;
    ++kept;
  }
  keep_first(row, compact, order, kept);
}

void Cutoff::process(const TokenHistory&, LogitsRow& row) const {
  const LogitsRow::Compact compact = row.compact();
  const Probabilities p(compact.values);
  double cutoff = epsilon_;
  if (kind_ == Kind::kEta) {
    const double log_sum = log_sum_exp(compact.values);
    if (!std::isfinite(log_sum)) return;
    cutoff =
        std::min(epsilon_, std::sqrt(epsilon_) * std::exp(-entropy_of(compact.values, log_sum)));
  }
  const float always = kth_largest(compact.values, min_keep_);
  keep_if(row, compact, [&](size_t i) {
    return compact.values[i] != kMinusInfinity && (p[i] >= cutoff || compact.values[i] >= always);
  });
}

}  // namespace qw
