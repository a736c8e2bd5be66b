#include "quantize/low_rank_approximation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/rng.h"

namespace qw {
namespace {

/// sum over j of sigma[j] u_j v_j^T with u and v of cosines, which are orthogonal.
std::vector<float> with_spectrum(int64_t n, int64_t k, const std::vector<double>& sigma) {
  const auto wave = [](int64_t length, int64_t j, int64_t at) {
    const auto size = static_cast<double>(length);
    return std::sqrt(2 / size) * std::cos(3.14159265358979 * (static_cast<double>(at) + 0.5) *
                                          static_cast<double>(j + 1) / size);
  };
  std::vector<float> d(static_cast<size_t>(n * k));
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t col = 0; col < k; ++col) {
      double sum = 0;
      for (int64_t j = 0; j < std::ssize(sigma); ++j)
        sum += sigma[static_cast<size_t>(j)] * wave(n, j, row) * wave(k, j, col);
      d[static_cast<size_t>(row * k + col)] = static_cast<float>(sum);
    }
  }
  return d;
}

/// ||D - B A||^2 / ||D||^2, computed from the factors.
double lost_by(const std::vector<float>& d, int64_t n, int64_t k, const LowRankFactors& f) {
  double lost = 0, total = 0;
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t col = 0; col < k; ++col) {
      double sum = 0;
      for (int64_t r = 0; r < f.rank; ++r)
        sum += static_cast<double>(f.b[static_cast<size_t>(row * f.rank + r)]) *
               static_cast<double>(f.a[static_cast<size_t>(r * k + col)]);
      const auto value = static_cast<double>(d[static_cast<size_t>(row * k + col)]);
      lost += (value - sum) * (value - sum);
      total += value * value;
    }
  }
  return lost / total;
}

TEST(LowRankApproximation, FindsAMatrixOfTheRank) {
  ThreadPool pool(2);
  const auto d = with_spectrum(70, 45, {5, 3, 0.01});
  const LowRankFactors f = approximate_low_rank(d, 70, 45, 3, pool);
  EXPECT_EQ(f.rank, 3);
  EXPECT_LT(lost_by(d, 70, 45, f), 1e-12);
  EXPECT_LT(f.lost, 1e-12);
}

TEST(LowRankApproximation, KeepsTheLargestOfAFlatSpectrum) {
  ThreadPool pool(2);
  std::vector<double> sigma;
  for (int j = 0; j < 40; ++j)
    sigma.push_back(std::pow(0.93, j));
  const auto d = with_spectrum(64, 100, sigma);
  double total = 0, best = 0;
  for (size_t j = 0; j < sigma.size(); ++j) {
    total += sigma[j] * sigma[j];
    if (j >= 8) best += sigma[j] * sigma[j];
  }
  const LowRankFactors f = approximate_low_rank(d, 64, 100, 8, pool);
  EXPECT_NEAR(lost_by(d, 64, 100, f), f.lost, 1e-6);
  EXPECT_GE(f.lost, best / total - 1e-9);  // Eckart and Young: nothing is better
  EXPECT_LT(f.lost, 1.01 * best / total);
}

TEST(LowRankApproximation, TakesZerosAndRanksBeyondTheShorterSide) {
  ThreadPool pool(2);
  const std::vector<float> zeros(12);
  const LowRankFactors none = approximate_low_rank(zeros, 3, 4, 2, pool);
  EXPECT_EQ(none.lost, 0);
  EXPECT_EQ(none.a, std::vector<float>(8));
  std::vector<float> d;
  for (size_t i = 0; i < 12; ++i)
    d.push_back(static_cast<float>(random_normal(3, 1, i)));
  const LowRankFactors all = approximate_low_rank(d, 3, 4, 64, pool);
  EXPECT_EQ(all.rank, 3);
  EXPECT_LT(lost_by(d, 3, 4, all), 1e-12);
}

TEST(LowRankApproximation, IsTheSameForAnyNumberOfThreads) {
  std::vector<float> d;
  for (size_t i = 0; i < 130 * 150; ++i)
    d.push_back(static_cast<float>(random_normal(5, 1, i)));
  ThreadPool one(1), three(3);
  const LowRankFactors a = approximate_low_rank(d, 130, 150, 7, one);
  const LowRankFactors b = approximate_low_rank(d, 130, 150, 7, three);
  EXPECT_EQ(a.a, b.a);
  EXPECT_EQ(a.b, b.b);
  EXPECT_EQ(a.lost, b.lost);
}

}  // namespace
}  // namespace qw
