#include "eval/comparison.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numeric>
#include <string_view>

#include "base/error.h"
#include "engine/logits_math.h"

namespace qw {

namespace {

constexpr int64_t kDefaultWindow = 512;

/// Mean and variance without cancellation (Welford 1962).
class Mean {
 public:
  void add(double value) {
    ++n_;
    const double delta = value - mean_;
    mean_ += delta / static_cast<double>(n_);
    squares_ += delta * (value - mean_);
  }
  Estimate estimate() const {
    const auto n = static_cast<double>(n_);
    return {mean_, n_ > 1 ? std::sqrt(squares_ / (n - 1) / n) : 0};
  }

 private:
  int64_t n_ = 0;
  double mean_ = 0, squares_ = 0;
};

/// What one row of logits is reduced to.
struct Row {
  std::span<const float> logits;
  double log_sum = 0;  // log sum_i e^logits[i]

  explicit Row(std::span<const float> values) : logits(values), log_sum(log_sum_exp(values)) {}
  double log_p(size_t i) const { return static_cast<double>(logits[i]) - log_sum; }
};

/// sum_i p_a(i) (log p_a(i) - log p_b(i)). Terms in double, in order of i within eight sums.
double divergence(const Row& a, const Row& b) {
  const auto max = static_cast<float>(a.log_sum);
  const double shift = b.log_sum - a.log_sum;
  std::array<double, 8> sums{};
  const size_t n = a.logits.size();
  for (size_t i = 0; i < n; ++i) {
    const float p = fast_exp(a.logits[i] - max);
    const double difference =
        static_cast<double>(a.logits[i]) - static_cast<double>(b.logits[i]) + shift;
    sums[i % sums.size()] += p == 0 ? 0 : static_cast<double>(p) * difference;
  }
  return std::max(0.0, std::accumulate(sums.begin(), sums.end(), 0.0));
}

/// The ten likeliest tokens, likeliest first; of equals the lower id.
std::array<size_t, 10> likeliest(std::span<const float> logits) {
  std::array<size_t, 10> best;
  best.fill(logits.size());
  const auto is_before = [&](size_t i, size_t j) {
    return j == logits.size() || logits[i] > logits[j] || (logits[i] == logits[j] && i < j);
  };
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!is_before(i, best.back())) continue;
    size_t at = best.size() - 1;
    for (; at > 0 && is_before(i, best[at - 1]); --at)
      best[at] = best[at - 1];
    best[at] = i;
  }
  return best;
}

double share_of_same(std::span<const size_t> a, std::span<const size_t> b) {
  const auto n = std::ranges::count_if(
      a, [&](size_t token) { return std::ranges::find(b, token) != b.end(); });
  return static_cast<double>(n) / static_cast<double>(a.size());
}

/// Keeps what every layer of one model puts out in a window, or compares it with what is kept.
class LayerTap : public ForwardObserver {
 public:
  explicit LayerTap(LayerTap* base) : base_(base) {}

  bool wants(std::string_view name) override { return layer_of(name) >= 0; }
  void on_value(std::string_view name, int64_t rows, int64_t cols, const float* values) override {
    const auto layer = static_cast<size_t>(layer_of(name));
    if (kept_.size() <= layer) kept_.resize(layer + 1);
    if (errors_.size() <= layer) errors_.resize(layer + 1);
    const auto n = static_cast<size_t>(rows * cols);
    const size_t begin = kept_[layer].size();  // chunks of a window come one after the other
    kept_[layer].insert(kept_[layer].end(), values, values + n);
    if (base_ == nullptr || layer >= base_->kept_.size()) return;
    const std::vector<float>& other = base_->kept_[layer];
    if (other.size() < begin + n) return;
    for (size_t i = 0; i < n; ++i) {
      const double x = other[begin + i], d = static_cast<double>(values[i]) - x;
      errors_[layer].difference += d * d;
      errors_[layer].base += x * x;
    }
  }
  void next_window() {
    for (std::vector<float>& values : kept_)
      values.clear();
  }
  std::vector<double> errors() const {
    std::vector<double> out;
    for (const Sums& sums : errors_)
      out.push_back(sums.base > 0 ? std::sqrt(sums.difference / sums.base) : 0);
    return out;
  }

 private:
  struct Sums {
    double difference = 0, base = 0;
  };
  static int layer_of(std::string_view name) {
    constexpr std::string_view kPrefix = "hidden.layer.";
    if (!name.starts_with(kPrefix)) return -1;
    name.remove_prefix(kPrefix.size());
    int layer = -1;
    std::from_chars(name.data(), name.data() + name.size(), layer);
    return layer;
  }
  LayerTap* base_;
  std::vector<std::vector<float>> kept_;  // of the window, by layer
  std::vector<Sums> errors_;
};

class Comparer {
 public:
  Comparer(const ComparedModel& a, const ComparedModel& b, const ComparisonOptions& options)
      : a_(a), b_(b), options_(options) {}

  void window(std::span<const int32_t> ids) {
    const auto vocab = static_cast<size_t>(a_.vocab);
    const size_t n = ids.size() - 1;  // predictions; what follows the last token is not known
    rows_.resize(n * vocab);
    const auto pass = [&](const ComparedModel& model, LayerTap& tap, const auto& take) {
      ScoreOptions score;
      score.adapter = model.adapter;
      score.cancel = options_.cancel;
      if (options_.layers) score.observer = &tap;
      tap.next_window();
      model.engine.score(
          ids,
          [&](int64_t first, int64_t n_rows, const float* logits) {
            for (int64_t i = 0; i < n_rows && first + i < std::ssize(ids) - 1; ++i)
              take(static_cast<size_t>(first + i),
                   std::span(logits + i * static_cast<int64_t>(vocab), vocab));
          },
          score);
    };
    pass(a_, tap_a_, [&](size_t row, std::span<const float> logits) {
      std::ranges::copy(logits, rows_.begin() + static_cast<std::ptrdiff_t>(row * vocab));
    });
    pass(b_, tap_b_, [&](size_t row, std::span<const float> logits) {
      compare(std::span(rows_).subspan(row * vocab, vocab), logits,
              static_cast<size_t>(ids[row + 1]));
    });
  }

  Comparison result() {
    out_.n_tokens = std::ssize(out_.kls);
    out_.kl = kl_.estimate();
    std::vector<float> sorted = out_.kls;
    std::ranges::sort(sorted);
    const auto quantile = [&](double q) {
      return static_cast<double>(sorted[static_cast<size_t>(
          std::floor(q * static_cast<double>(sorted.size() - 1) + 0.5))]);
    };
    out_.kl_median = quantile(0.5);
    out_.kl_p90 = quantile(0.9);
    out_.kl_p99 = quantile(0.99);
    out_.kl_max = sorted.back();
    out_.same_top1 = top1_.estimate();
    out_.same_top5 = top5_.estimate();
    out_.same_top10 = top10_.estimate();
    out_.nll_a = nll_a_.estimate();
    out_.nll_b = nll_b_.estimate();
    out_.nll_difference = nll_difference_.estimate();
    out_.p_difference = p_difference_.estimate();
    out_.rms_p_difference = std::sqrt(p_squares_.estimate().mean);
    if (options_.layers) out_.layer_errors = tap_b_.errors();
    return std::move(out_);
  }

 private:
  void compare(std::span<const float> logits_a, std::span<const float> logits_b, size_t token) {
    const Row a(logits_a), b(logits_b);
    const double kl = divergence(a, b);
    out_.kls.push_back(static_cast<float>(kl));
    kl_.add(kl);
    const auto best_a = likeliest(logits_a), best_b = likeliest(logits_b);
    const auto same = [&](size_t n) {
      return share_of_same(std::span(best_a).first(n), std::span(best_b).first(n));
    };
    top1_.add(same(1));
    top5_.add(same(5));
    top10_.add(same(10));
    const double log_a = a.log_p(token), log_b = b.log_p(token);
    nll_a_.add(-log_a);
    nll_b_.add(-log_b);
    nll_difference_.add(log_a - log_b);
    const double difference = std::exp(log_b) - std::exp(log_a);
    p_difference_.add(difference);
    p_squares_.add(difference * difference);
  }

  const ComparedModel &a_, &b_;
  const ComparisonOptions& options_;
  std::vector<float> rows_;  // the logits of `a` in a window
  LayerTap tap_a_{nullptr}, tap_b_{&tap_a_};
  Comparison out_;
  Mean kl_, top1_, top5_, top10_, nll_a_, nll_b_, nll_difference_, p_difference_, p_squares_;
};

void check(const ComparedModel& a, const ComparedModel& b, std::span<const int32_t> ids,
           int64_t window, int64_t ctx) {
  if (a.vocab != b.vocab) {
    fail(ErrorKind::kInvalidArgument, "compare",
         "models: expected vocabularies of the same size, got {} and {}", a.vocab, b.vocab);
  }
  if (ids.size() < 2)
    fail(ErrorKind::kInvalidArgument, "compare", "text: expected at least 2 tokens, got {}",
         ids.size());
  if (window < 2 || window > ctx) {
    fail(ErrorKind::kInvalidArgument, "compare", "window: expected 2 to {} (the context), got {}",
         ctx, window);
  }
}

}  // namespace

Comparison compare_models(const ComparedModel& a, const ComparedModel& b,
                          std::span<const int32_t> ids, const ComparisonOptions& options) {
  const int64_t ctx = std::min(a.engine.options().ctx, b.engine.options().ctx);
  const int64_t window = options.window == 0 ? std::min(kDefaultWindow, ctx) : options.window;
  check(a, b, ids, window, ctx);
  Comparer comparer(a, b, options);
  for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(window)) {
    const std::span<const int32_t> rest = ids.subspan(begin);
    const std::span<const int32_t> part =
        rest.first(std::min(rest.size(), static_cast<size_t>(window)));
    if (part.size() >= 2) comparer.window(part);  // a single token at the end predicts nothing
    if (options.on_progress)
      options.on_progress(static_cast<int64_t>(begin + part.size()), std::ssize(ids));
  }
  Comparison out = comparer.result();
  out.window = window;
  return out;
}

}  // namespace qw
