#include "model/low_rank.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace qw {

void check_adapter_shape(const std::string& module, const LinearSource& got, int64_t n, int64_t k,
                         const std::string& path) {
  if (got.n == n && got.k == k) return;
  fail(ErrorKind::kCorrupt, "adapter", "module {}: expected {} [{}, {}], got [{}, {}] ({})",
       printable(module), printable(got.name), n, k, got.n, got.k, printable(path));
}

DeltaRows::DeltaRows(const LowRankDelta& delta, double scale)
    : delta_(delta), scale_(scale), a_(static_cast<size_t>(delta.a.n * delta.a.k)) {
  delta.a.decode_rows(0, delta.a.n, a_.data());
}

void DeltaRows::row(int64_t row, std::span<double> out) const {
  const auto rank = static_cast<size_t>(delta_.a.n), k = static_cast<size_t>(delta_.a.k);
  QW_CHECK(out.size() == k);
  std::vector<float> b(rank);
  delta_.b.decode_rows(row, 1, b.data());
  std::ranges::fill(out, 0.0);
  for (size_t j = 0; j < rank; ++j) {
    const double factor = scale_ * static_cast<double>(b[j]);
    const float* a = a_.data() + j * k;
    for (size_t i = 0; i < k; ++i)
      out[i] += factor * static_cast<double>(a[i]);
  }
}

double DeltaRows::factor(int64_t row, std::span<const float> w,
                         std::span<const double> delta) const {
  double squares = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    const double value = static_cast<double>(w[i]) + delta[i];
    squares += value * value;
  }
  return static_cast<double>(delta_.magnitude[static_cast<size_t>(row)]) / std::sqrt(squares);
}

void DeltaRows::finish(int64_t row, std::span<const float> w, std::span<double> delta) const {
  if (delta_.magnitude.empty()) return;
  const double f = factor(row, w, delta);
  for (size_t i = 0; i < w.size(); ++i)
    delta[i] = (f - 1) * static_cast<double>(w[i]) + f * delta[i];
}

std::vector<float> dora_row_factors(const LinearSource& w, const LowRankDelta& delta,
                                    double scale) {
  const DeltaRows rows(delta, scale);
  std::vector<float> row(static_cast<size_t>(w.k)), factors;
  std::vector<double> change(static_cast<size_t>(w.k));
  for (int64_t o = 0; o < w.n; ++o) {
    w.decode_rows(o, 1, row.data());
    rows.row(o, change);
    factors.push_back(static_cast<float>(rows.factor(o, row, change)));
  }
  return factors;
}

void add_embedding_delta(std::vector<float>& table, int64_t vocab, int64_t hidden,
                         const EmbeddingDelta& delta, double scale) {
  const int64_t rank = delta.b.k;
  std::vector<float> a(static_cast<size_t>(rank * vocab)), b(static_cast<size_t>(hidden * rank));
  delta.a.decode_rows(0, delta.a.n, a.data());
  delta.b.decode_rows(0, hidden, b.data());
  for (int64_t t = 0; t < vocab; ++t) {
    for (int64_t h = 0; h < hidden; ++h) {
      double sum = 0;
      for (int64_t j = 0; j < rank; ++j) {
        const float at =
            a[static_cast<size_t>(delta.a_rows_are_tokens ? t * rank + j : j * vocab + t)];
        sum += static_cast<double>(b[static_cast<size_t>(h * rank + j)]) * static_cast<double>(at);
      }
      table[static_cast<size_t>(t * hidden + h)] += static_cast<float>(scale * sum);
    }
  }
}

}  // namespace qw
