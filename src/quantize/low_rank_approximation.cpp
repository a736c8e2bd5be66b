#include "quantize/low_rank_approximation.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/rng.h"

namespace qw {

namespace {

constexpr int64_t kOversampling = 10;  // directions beside the wanted ones
constexpr int kPowerIterations = 2;    // each sharpens the spectrum to its square

/// Vectors of the same length, one after the other: what a projection is onto.
struct Vectors {
  int64_t n = 0, length = 0;
  std::vector<double> values;

  Vectors(int64_t count, int64_t size)
      : n(count), length(size), values(static_cast<size_t>(count * size)) {}
  std::span<double> operator[](int64_t i) {
    return {values.data() + i * length, static_cast<size_t>(length)};
  }
  std::span<const double> operator[](int64_t i) const {
    return {values.data() + i * length, static_cast<size_t>(length)};
  }
  /// [length][n]: what products read, since their inner loops run over the vectors.
  std::vector<double> transposed() const {
    std::vector<double> out(values.size());
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t p = 0; p < length; ++p)
        out[static_cast<size_t>(p * n + i)] = values[static_cast<size_t>(i * length + p)];
    }
    return out;
  }
};

class Product {
 public:
  Product(std::span<const float> d, int64_t n, int64_t k, ThreadPool& pool)
      : d_(d), n_(n), k_(k), pool_(pool) {}

  /// D x of every vector x of length k.
  Vectors times(const Vectors& x) const {
    const std::vector<double> by_place = x.transposed();
    Vectors out(x.n, n_);
    pool_.parallel_for(n_, 8, [&](int64_t begin, int64_t end, int) {
      std::vector<double> sums(static_cast<size_t>(x.n));
      for (int64_t row = begin; row < end; ++row) {
        std::ranges::fill(sums, 0.0);
        for (int64_t p = 0; p < k_; ++p)
          add(at(row, p), by_place.data() + p * x.n, x.n, sums.data());
        for (int64_t i = 0; i < x.n; ++i)
          out[i][static_cast<size_t>(row)] = sums[static_cast<size_t>(i)];
      }
    });
    return out;
  }

  /// D^T y of every vector y of length n.
  Vectors transposed_times(const Vectors& y) const {
    const std::vector<double> by_place = y.transposed();
    Vectors out(y.n, k_);
    constexpr int64_t kColumns = 64;
    pool_.parallel_for((k_ + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end, int) {
      const int64_t first = begin * kColumns, last = std::min(k_, end * kColumns);
      std::vector<double> sums(static_cast<size_t>((last - first) * y.n));
      for (int64_t row = 0; row < n_; ++row) {
        for (int64_t p = first; p < last; ++p)
          add(at(row, p), by_place.data() + row * y.n, y.n, sums.data() + (p - first) * y.n);
      }
      for (int64_t p = first; p < last; ++p) {
        for (int64_t i = 0; i < y.n; ++i)
          out[i][static_cast<size_t>(p)] = sums[static_cast<size_t>((p - first) * y.n + i)];
      }
    });
    return out;
  }

 private:
  double at(int64_t row, int64_t p) const {
    return static_cast<double>(d_[static_cast<size_t>(row * k_ + p)]);
  }
  static void add(double factor, const double* x, int64_t n, double* sums) {
    for (int64_t i = 0; i < n; ++i)
      sums[i] += factor * x[i];
  }

  std::span<const float> d_;
  int64_t n_, k_;
  ThreadPool& pool_;
};

double dot(std::span<const double> a, std::span<const double> b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// Gram and Schmidt's, twice, so that the vectors are orthogonal to the last bits. Vectors that are
/// nothing but the others' become zeros.
void orthonormalise(Vectors& v) {
  for (int64_t i = 0; i < v.n; ++i) {
    const double before = std::sqrt(dot(v[i], v[i]));
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = 0; j < i; ++j) {
        const double share = dot(v[i], v[j]);
        for (size_t p = 0; p < v[i].size(); ++p)
          v[i][p] -= share * v[j][p];
      }
    }
    const double length = std::sqrt(dot(v[i], v[i]));
    const double factor = length > 1e-12 * before && length > 0 ? 1 / length : 0;
    for (double& value : v[i])
      value *= factor;
  }
}

/// Eigenvectors of the symmetric matrix m [n, n], as rows, by Jacobi's rotations; m's diagonal is
/// the eigenvalues afterwards.
std::vector<double> eigenvectors(std::vector<double>& m, int64_t n) {
  const auto at = [n](std::vector<double>& matrix, int64_t i, int64_t j) -> double& {
    return matrix[static_cast<size_t>(i * n + j)];
  };
  std::vector<double> vectors(m.size());
  for (int64_t i = 0; i < n; ++i)
    at(vectors, i, i) = 1;
  constexpr int kSweeps = 40;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    double outside = 0, inside = 0;
    for (int64_t i = 0; i < n; ++i) {
      inside += at(m, i, i) * at(m, i, i);
      for (int64_t j = i + 1; j < n; ++j)
        outside += at(m, i, j) * at(m, i, j);
    }
    if (outside <= 1e-30 * inside) break;
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t q = p + 1; q < n; ++q) {
        const double off = at(m, p, q);
        if (off == 0) continue;
        const double theta = (at(m, q, q) - at(m, p, p)) / (2 * off);
        const double t = std::copysign(1 / (std::abs(theta) + std::hypot(theta, 1)), theta);
        const double c = 1 / std::hypot(t, 1), s = t * c;
        for (int64_t i = 0; i < n; ++i) {
          const double x = at(m, i, p), y = at(m, i, q);
          at(m, i, p) = c * x - s * y;
          at(m, i, q) = s * x + c * y;
        }
        for (int64_t i = 0; i < n; ++i) {
          const double x = at(m, p, i), y = at(m, q, i);
          at(m, p, i) = c * x - s * y;
          at(m, q, i) = s * x + c * y;
          const double u = at(vectors, p, i), v = at(vectors, q, i);
          at(vectors, p, i) = c * u - s * v;
          at(vectors, q, i) = s * u + c * v;
        }
      }
    }
  }
  return vectors;
}

/// sum_i weights[i] v[i].
std::vector<double> combined(const Vectors& v, std::span<const double> weights) {
  std::vector<double> out(static_cast<size_t>(v.length));
  for (int64_t i = 0; i < v.n; ++i) {
    for (size_t p = 0; p < out.size(); ++p)
      out[p] += weights[static_cast<size_t>(i)] * v[i][p];
  }
  return out;
}

}  // namespace

LowRankFactors approximate_low_rank(std::span<const float> d, int64_t n, int64_t k, int64_t rank,
                                    ThreadPool& pool) {
  QW_CHECK(std::ssize(d) == n * k && rank > 0);
  LowRankFactors out;
  out.rank = std::min({rank, n, k});
  out.a.resize(static_cast<size_t>(out.rank * k));
  out.b.resize(static_cast<size_t>(n * out.rank));
  double total = 0;
  for (const float value : d)
    total += static_cast<double>(value) * static_cast<double>(value);
  if (total == 0) return out;

  const Product product(d, n, k, pool);
  Vectors random(std::min({out.rank + kOversampling, n, k}), k);
  for (size_t i = 0; i < random.values.size(); ++i)
    random.values[i] = random_normal(0, 0, i);
  Vectors basis = product.times(random);  // of what D reaches
  orthonormalise(basis);
  for (int i = 0; i < kPowerIterations; ++i) {
    Vectors back = product.transposed_times(basis);
    orthonormalise(back);
    basis = product.times(back);
    orthonormalise(basis);
  }
  // D ~ Q (Q^T D), whose singular values are the roots of the eigenvalues of (Q^T D)(Q^T D)^T.
  const Vectors seen = product.transposed_times(basis);
  const int64_t m = seen.n;
  std::vector<double> gram(static_cast<size_t>(m * m));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < m; ++j)
      gram[static_cast<size_t>(i * m + j)] = dot(seen[i], seen[j]);
  }
  const std::vector<double> vectors = eigenvectors(gram, m);
  std::vector<int64_t> order(static_cast<size_t>(m));
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto value_of = [&](int64_t i) { return gram[static_cast<size_t>(i * m + i)]; };
  std::ranges::stable_sort(order, [&](int64_t i, int64_t j) { return value_of(i) > value_of(j); });
  double kept = 0;
  for (int64_t r = 0; r < out.rank; ++r) {
    const int64_t i = order[static_cast<size_t>(r)];
    const double square = value_of(i);  // of the singular value
    if (square <= 0) break;
    kept += square;
    const std::span<const double> weights(vectors.data() + i * m, static_cast<size_t>(m));
    // u = Q w and sigma v = (Q^T D)^T w.
    const std::vector<double> u = combined(basis, weights), sv = combined(seen, weights);
    const double root = std::pow(square, 0.25);
    for (int64_t p = 0; p < k; ++p)
      out.a[static_cast<size_t>(r * k + p)] = static_cast<float>(sv[static_cast<size_t>(p)] / root);
    for (int64_t row = 0; row < n; ++row)
      out.b[static_cast<size_t>(row * out.rank + r)] =
          static_cast<float>(u[static_cast<size_t>(row)] * root);
  }
  out.lost = std::max(0.0, 1 - kept / total);
  return out;
}

}  // namespace qw
