#include "engine/logits_warpers.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "base/rng.h"
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

/// Elements in an order, sorted only as far as they are asked for.
template <typename Before>
class LazyOrder {
 public:
  LazyOrder(std::vector<uint32_t> elements, Before before)
      : order_(std::move(elements)), before_(before) {}
  size_t size() const { return order_.size(); }
  uint32_t operator[](size_t rank) {
    QW_CHECK(rank < order_.size(), "rank {} of {}", rank, order_.size());
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

/// The elements 0 .. n-1 in ascending order of keys >= 0, ties by lower index. They are dealt into
/// ranges of keys in two passes, and a range is sorted when it is reached: cheaper than LazyOrder
/// where the elements are a whole vocabulary.
class RangeOrder {
 public:
  explicit RangeOrder(std::span<const float> keys) : keys_(keys), order_(keys.size()) {
    float largest = 0;
    for (const float key : keys)
      largest = std::max(largest, std::min(key, kLargest));
    const float scale = static_cast<float>(kRanges) / std::max(largest, 1e-6f);
    std::vector<uint16_t> range_of(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
      const float range = std::min(keys[i], kLargest) * scale;
      range_of[i] = static_cast<uint16_t>(std::min(range, static_cast<float>(kRanges - 1)));
      ++ends_[range_of[i] + 1u];
    }
    std::partial_sum(ends_.begin(), ends_.end(), ends_.begin());
    // ends_[r] is where range r begins; dealing its elements moves it to where the range ends.
    for (size_t i = 0; i < keys.size(); ++i)
      order_[ends_[range_of[i]]++] = static_cast<uint32_t>(i);
  }

  size_t size() const { return order_.size(); }
  uint32_t operator[](size_t rank) {
    QW_CHECK(rank < order_.size(), "rank {} of {}", rank, order_.size());
    while (rank >= sorted_)
      sort_next_range();
    return order_[rank];
  }

 private:
  static constexpr size_t kRanges = 4096;
  static constexpr float kLargest = 100;  // keys beyond share the last range

  void sort_next_range() {
    const size_t end = ends_[range_++];
    std::sort(order_.begin() + static_cast<std::ptrdiff_t>(sorted_),
              order_.begin() + static_cast<std::ptrdiff_t>(end), [this](uint32_t a, uint32_t b) {
                return keys_[a] != keys_[b] ? keys_[a] < keys_[b] : a < b;
              });
    sorted_ = end;
  }

  std::span<const float> keys_;
  std::vector<uint32_t> order_;
  std::array<uint32_t, kRanges + 1> ends_{};
  size_t range_ = 0, sorted_ = 0;
};

/// softmax of single values, for rules that look at few of them.
struct Softmax {
  explicit Softmax(float best, double sum) : max(best), scale(1 / sum) {}
  double operator()(float value) const {
    return static_cast<double>(fast_exp(value - max)) * scale;
  }
  float max;
  double scale;
};

/// Where, in descending order of the values, the cumulated probability reaches a bound.
struct Crossing {
  std::vector<uint32_t> elements;  // it is reached among these, in no order
  double mass_above = 0;           // of all elements with larger values
  int64_t n_above = 0;
};

/// Finds the elements that have to be sorted to see where `mass` is reached by at least `count`
/// elements: all of a few; of many, those in one of 4096 ranges of values.
Crossing find_crossing(const std::vector<uint32_t>& elements, std::span<const float> values,
                       const Softmax& p, double mass, int64_t count) {
  constexpr size_t kFew = 512, kRanges = 4096;
  if (elements.size() <= kFew) return {elements, 0, 0};
  float low = std::numeric_limits<float>::max(), high = kMinusInfinity;
  for (const uint32_t i : elements) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  // Probabilities vanish long before 100 below the best.
  const float scale = static_cast<float>(kRanges) / std::clamp(high - low, 1e-6f, 100.0f);
  const auto range_of = [&](uint32_t i) {  // monotone, 0 for the largest
    const float range = (high - values[i]) * scale;
    return static_cast<size_t>(std::min(range, static_cast<float>(kRanges - 1)));
  };
  struct Range {
    double mass = 0;
    int64_t count = 0;
  };
  std::vector<Range> ranges(kRanges);
  for (const uint32_t i : elements) {
    Range& range = ranges[range_of(i)];
    range.mass += p(values[i]);
    ++range.count;
  }
  Crossing crossing;
  size_t at = 0;
  for (; at + 1 < kRanges; ++at) {
    const double reached = crossing.mass_above + ranges[at].mass;
    const int64_t n_reached = crossing.n_above + ranges[at].count;
    // With the last element all of the mass is reached, whatever rounding made of the sum.
    if ((reached >= mass && n_reached >= count) || n_reached == std::ssize(elements)) break;
    crossing.mass_above = reached;
    crossing.n_above = n_reached;
  }
  for (const uint32_t i : elements) {
    if (range_of(i) == at) crossing.elements.push_back(i);
  }
  return crossing;
}

/// Keeps `elements`, ascending indices into `compact`.
void keep(LogitsRow& row, const LogitsRow::Compact& compact,
          const std::vector<uint32_t>& elements) {
  std::vector<int32_t> ids;
  ids.reserve(elements.size());
  for (const uint32_t i : elements)
    ids.push_back(compact.id(i));
  row.keep_only(std::move(ids));
}

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
void keep_first(LogitsRow& row, const LogitsRow::Compact& compact, RangeOrder& order, size_t n) {
  std::vector<bool> kept(order.size());
  for (size_t rank = 0; rank < n; ++rank)
    kept[order[rank]] = true;
  keep_if(row, compact, [&kept](size_t i) { return kept[i]; });
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

/// Cuts a dense row to a superset of what dividing and TopK leave of it, where that is few values
/// and certain.
void Temperature::cut_for_top_k(LogitsRow& row) const {
  const std::span<const float> values = row.values();
  constexpr float kTame = 1e4f;  // neither over- nor underflow comes near
  if (next_top_k_ <= 0 || row.is_sparse() || next_top_k_ > std::ssize(values) / 16 ||
      !(temperature_ <= kTame && temperature_ >= 1 / kTame)) {
    return;
  }
  const std::vector<int32_t> top = top_indices(values, next_top_k_);
  const float kth = values[static_cast<size_t>(top.back())];
  if (!(std::abs(values[static_cast<size_t>(top.front())]) < 1e30f)) return;
  // Rounding can make quotients equal, and TopK keeps all that are equal to the k-th. Two quotients
  // of normal size differ if the dividends do by 2^-22 of theirs; of others, by much less than the
  // constant.
  const float slack = std::abs(kth) * 0x1p-20f + 1e-30f;
  const std::vector<uint32_t> candidates = kth == kMinusInfinity
                                               ? indices_above(values, kMinusInfinity)
                                               : indices_from(values, kth - slack);
  row.keep_only({candidates.begin(), candidates.end()});
}

void Temperature::process(const TokenHistory&, LogitsRow& row) const {
  cut_for_top_k(row);
  const LogitsRow::Compact compact = row.compact();
  const int32_t best = argmax(compact.values);
  if (best < 0) return;  // every token is banned
  if (temperature_ == 0) return row.keep_only({compact.id(static_cast<size_t>(best))});
  // A shift of all values changes no probability. It is made where a huge bias over a small
  // temperature would leave the floats: relative to the largest value nothing can.
  const float max = compact.values[static_cast<size_t>(best)];
  const float shift = std::isfinite(max / temperature_) ? 0 : max;
  const auto warp = [&](float& v) { v = (v - shift) / temperature_; };
  if (row.is_sparse()) {
    for (const int32_t id : row.live())
      warp(row[id]);
  } else {
    for (float& v : row.values())
      warp(v);
  }
}

void TopK::process(const TokenHistory&, LogitsRow& row) const {
  const LogitsRow::Compact compact = row.compact();
  if (k_ >= static_cast<int64_t>(compact.values.size())) return;
  const float threshold = kth_largest(compact.values, k_);
  keep(row, compact,
       threshold == kMinusInfinity ? indices_above(compact.values, threshold)
                                   : indices_from(compact.values, threshold));
}

void TopP::process(const TokenHistory&, LogitsRow& row) const {
  const LogitsRow::Compact compact = row.compact();
  const std::span<const float> values = compact.values;
  const int32_t best = argmax(values);
  if (best < 0) return row.keep_only({});  // every token is banned
  const float max = values[static_cast<size_t>(best)];
  const double sum = sum_exp(values, max);
  const Softmax p(max, sum);
  // The tokens below (1 - p) / n have less than 1 - p together, so none of them is ever reached;
  // half of that keeps rounding out of it.
  const double least = 0.5 * (1 - p_) / static_cast<double>(values.size());
  std::vector<uint32_t> reachable =
      indices_above(values, max + static_cast<float>(std::log(least * sum)));
  if (std::ssize(reachable) < min_keep_) reachable = indices_above(values, kMinusInfinity);
  const auto before = [values](uint32_t a, uint32_t b) {
    return values[a] != values[b] ? values[a] > values[b] : a > b;
  };
  Crossing crossing = find_crossing(reachable, values, p, p_, min_keep_);
  LazyOrder order(std::move(crossing.elements), before);
  size_t n = 0;
  for (double above = crossing.mass_above; n < order.size(); ++n) {
    if (above >= p_ && crossing.n_above + static_cast<int64_t>(n) >= min_keep_) break;
    above += p(values[order[n]]);
  }
  const uint32_t last = order[n - 1];
  std::vector<int32_t> ids;
  for (const uint32_t i : reachable) {
    if (!before(last, i)) ids.push_back(compact.id(i));
  }
  row.keep_only(std::move(ids));
}

void MinP::process(const TokenHistory&, LogitsRow& row) const {
  const LogitsRow::Compact compact = row.compact();
  const std::span<const float> values = compact.values;
  const int32_t best = argmax(values);
  if (best < 0) return row.keep_only({});  // every token is banned
  const float max = values[static_cast<size_t>(best)];
  const float always = kth_largest(values, min_keep_);
  // p >= min_p * p_max says e^(x - max) >= min_p: both sides have the same factor, 1 / sum. Only
  // where they are nearly equal can rounding by that factor tell, and the sum over all is needed.
  std::optional<double> scale;
  const auto is_likely = [&](float value) {
    const auto ratio = static_cast<double>(fast_exp(value - max));
    if (std::abs(ratio - min_p_) > 1e-12 * min_p_) return ratio > min_p_;
    if (!scale) scale = 1 / sum_exp(values, max);
    return ratio * *scale >= min_p_ * *scale;
  };
  // A generous bound first: few values pass it.
  const float bound = max + static_cast<float>(std::log(min_p_)) - 0.01f - 1e-6f * std::abs(max);
  std::vector<uint32_t> elements = indices_from(values, std::min(bound, always));
  std::erase_if(elements, [&](uint32_t i) { return values[i] < always && !is_likely(values[i]); });
  keep(row, compact, elements);
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
  RangeOrder order(distance);
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

void TopNSigma::process(const TokenHistory&, LogitsRow& row) const {
  const LogitsRow::Compact compact = row.compact();
  const std::span<const float> values = compact.values;
  const int32_t best = argmax(values);
  if (best < 0) return row.keep_only({});  // every token is banned
  double sum = 0, n_values = 0;
  for (const float v : values) {
    if (v == kMinusInfinity) continue;
    sum += static_cast<double>(v);
    ++n_values;
  }
  const double mean = sum / n_values;
  double squares = 0;
  for (const float v : values) {
    const double off = static_cast<double>(v) - mean;
    if (v != kMinusInfinity) squares += off * off;
  }
  const double max = static_cast<double>(values[static_cast<size_t>(best)]);
  const double limit = max - n_ * std::sqrt(squares / n_values);
  const float always = kth_largest(values, min_keep_);
  keep_if(row, compact, [&](size_t i) {
    const float v = values[i];
    return v != kMinusInfinity && (static_cast<double>(v) >= limit || v >= always);
  });
}

void Xtc::process(const TokenHistory& history, LogitsRow& row) const {
  // Apart from the streams that answers are drawn with, which are small numbers.
  const uint64_t stream = (uint64_t{1} << 63) | (place_ << 48) | history.stream;
  const auto position = static_cast<uint64_t>(history.size());
  if (random_uniform(seed_, stream, position) >= probability_) return;
  const LogitsRow::Compact compact = row.compact();
  const std::span<const float> values = compact.values;
  const Probabilities p(values);
  size_t last = values.size();  // the least likely of the top choices
  int64_t n_top = 0, n_live = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] != kMinusInfinity) ++n_live;
    if (p[i] < threshold_ || values[i] == kMinusInfinity) continue;
    ++n_top;
    if (last == values.size() || values[i] <= values[last]) last = i;
  }
  if (n_top < 2 || n_live - (n_top - 1) < min_keep_) return;
  keep_if(row, compact, [&](size_t i) {
    return values[i] != kMinusInfinity && (p[i] < threshold_ || i == last);
  });
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
