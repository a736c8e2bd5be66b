// Blocked products, factors and inverses against the formulas in double.
#include "quantize/blocked_matrix.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "quantize/hessian.h"
#include "quantize/test_support.h"

namespace qw::quantize {
namespace {

using test::at;
using test::Floats;
using test::Team;

// Around a tile, the small blocks, the blocks of a factor and the blocks of a product.
const int64_t kSizes[] = {1, 2, 5, 6, 7, 16, 17, 47, 48, 49, 64, 97, 191, 192, 193, 200, 385, 400};

/// X^T X + 0.5 I in double, of tokens that do not make it singular.
std::vector<double> gram(const Floats& x, int64_t n_tokens, int64_t n, double added) {
  std::vector<double> out(at(n * n));
  for (int64_t t = 0; t < n_tokens; ++t) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j <= i; ++j)
        out[at(i * n + j)] += static_cast<double>(x[at(t * n + i)]) * x[at(t * n + j)];
    }
  }
  for (int64_t i = 0; i < n; ++i)
    out[at(i * n + i)] += added;
  return out;
}

Floats narrow(const std::vector<double>& values) {
  return Floats(values.begin(), values.end());
}

TEST(BlockedMatrix, GramIsXTimesX) {
  const Team team;
  for (const int64_t n : kSizes) {
    for (const int64_t n_tokens : {int64_t{1}, int64_t{3}, int64_t{257}}) {
      const int64_t stride = n + 3;
      const Floats wide = test::normals(n_tokens * stride, 1);
      Floats x;
      for (int64_t t = 0; t < n_tokens; ++t)
        x.insert(x.end(), wide.begin() + t * stride, wide.begin() + t * stride + n);
      Floats c(at(n * n), 1.0F);
      PackedPair scratch;
      add_gram(team, wide.data(), stride, n_tokens, n, c.data(), scratch);
      const std::vector<double> expected = gram(x, n_tokens, n, 0);
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          ASSERT_NEAR(c[at(i * n + j)], 1 + expected[at(i * n + j)],
                      2e-6 * static_cast<double>(n_tokens + 4))
              << n << ' ' << n_tokens << ' ' << i << ' ' << j;
        }
      }
    }
  }
}

TEST(BlockedMatrix, FactorTimesItsTransposeAndItsInverse) {
  const Team team;
  for (const int64_t n : kSizes) {
    const Floats x = test::normals((n + 8) * n, 2);
    const std::vector<double> a = gram(x, n + 8, n, 1.0);
    Floats l = narrow(a);
    for (int64_t i = 0; i < n; ++i)  // what is above the diagonal must not matter
      std::fill(l.begin() + i * n + i + 1, l.begin() + (i + 1) * n, 1e9F);
    ASSERT_EQ(cholesky(team, l.data(), n), -1) << n;
    const double size = a[0] * 3;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        double sum = 0;
        for (int64_t p = 0; p <= j; ++p)
          sum += static_cast<double>(l[at(i * n + p)]) * l[at(j * n + p)];
        ASSERT_NEAR(sum, a[at(i * n + j)], 1e-6 * size) << n << ' ' << i << ' ' << j;
      }
    }
    Floats inverse = l;
    invert_lower(team, inverse.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        double sum = 0, magnitude = 0;
        for (int64_t p = j; p <= i; ++p) {
          const double product = static_cast<double>(l[at(i * n + p)]) * inverse[at(p * n + j)];
          sum += product;
          magnitude += std::abs(product);
        }
        ASSERT_NEAR(sum, i == j ? 1 : 0, 1e-5 * (1 + magnitude)) << n << ' ' << i << ' ' << j;
      }
    }
  }
}

TEST(BlockedMatrix, AnyNumberOfThreadsGivesTheSameBits) {
  constexpr int64_t kN = 400, kTokens = 300;
  const Floats x = test::normals(kTokens * kN, 3);
  std::vector<Floats> results;
  for (const int n_threads : {1, 2, 5}) {
    const Team team(n_threads);
    Floats c(at(kN * kN));
    PackedPair scratch;
    add_gram(team, x.data(), kN, kTokens, kN, c.data(), scratch);
    for (int64_t i = 0; i < kN; ++i)
      c[at(i * kN + i)] += 200;
    ASSERT_EQ(cholesky(team, c.data(), kN), -1);
    invert_lower(team, c.data(), kN);
    Floats lower;
    for (int64_t i = 0; i < kN; ++i)
      lower.insert(lower.end(), c.begin() + i * kN, c.begin() + i * kN + i + 1);
    results.push_back(lower);
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST(BlockedMatrix, NamesTheFirstPivotThatIsNotPositive) {
  const Team team;
  constexpr int64_t kN = 300;
  for (const int64_t bad : {int64_t{0}, int64_t{47}, int64_t{100}, int64_t{192}, int64_t{299}}) {
    for (const float value : {0.0F, -1.0F, std::nanf("")}) {
      Floats a(at(kN * kN));
      for (int64_t i = 0; i < kN; ++i)
        a[at(i * kN + i)] = i == bad ? value : 2.0F;
      EXPECT_EQ(cholesky(team, a.data(), kN), bad) << value;
    }
  }
}

TEST(Hessian, SamplesAddUpAndTheDiagonalIsExact) {
  const Team team;
  constexpr int64_t kK = 70;
  const Floats x = test::inputs(600, kK, 4);
  Hessian hessian("layer", kK, team);
  EXPECT_EQ(hessian.scale(), 0);
  hessian.add(x.data(), 200, kK);
  hessian.add(x.data(), 0, kK);
  hessian.add(x.data() + 200 * kK, 400, kK);
  EXPECT_EQ(hessian.n_samples(), 2);
  EXPECT_EQ(hessian.n_tokens(), 600);
  EXPECT_EQ(hessian.scale(), 1.0);
  const std::vector<double> expected = gram(x, 600, kK, 0);
  for (int64_t i = 0; i < kK; ++i) {
    EXPECT_NEAR(hessian.diagonal()[at(i)], expected[at(i * kK + i)],
                1e-13 * expected[at(i * kK + i)]);
    for (int64_t j = 0; j <= i; ++j) {
      EXPECT_NEAR(hessian.at(i, j), expected[at(i * kK + j)],
                  1e-5 * std::sqrt(expected[at(i * kK + i)] * expected[at(j * kK + j)]));
      EXPECT_EQ(hessian.at(i, j), hessian.at(j, i));
    }
  }
}

TEST(Hessian, RefusesInputsThatAreNotFinite) {
  const Team team;
  for (const float bad : {std::nanf(""), HUGE_VALF, 3e38F}) {
    Hessian hessian("model.layers.3.mlp.down_proj", 40, team);
    Floats x(400, 1.0F);
    x[7 * 40 + 11] = bad;
    try {
      hessian.add(x.data(), 10, 40);
      FAIL() << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      EXPECT_NE(error.message().find("model.layers.3.mlp.down_proj"), std::string::npos);
      EXPECT_NE(error.message().find("feature 11"), std::string::npos) << error.message();
    }
  }
}

}  // namespace
}  // namespace qw::quantize
