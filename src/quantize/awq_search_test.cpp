// AWQ's pieces against what they say in plain loops.
#include "quantize/awq_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "quantize/awq_tensors.h"
#include "quantize/gptq_solver.h"
#include "quantize/test_support.h"

namespace qw::quantize {
namespace {

using test::at;
using test::Floats;
using test::Team;

/// sum over tokens and rows of (d . x)^2.
double squares_of_outputs(const Floats& d, const Floats& x, int64_t k) {
  double sum = 0;
  for (int64_t r = 0; r < std::ssize(d) / k; ++r) {
    for (int64_t t = 0; t < std::ssize(x) / k; ++t) {
      double y = 0;
      for (int64_t i = 0; i < k; ++i)
        y += static_cast<double>(d[at(r * k + i)]) * static_cast<double>(x[at(t * k + i)]);
      sum += y * y;
    }
  }
  return sum;
}

TEST(AwqSearch, OutputErrorIsThatOfEveryToken) {
  const Team team;
  for (const int64_t k : {1, 7, 96, 400}) {
    const Floats x = test::inputs(120, k, 3), d = test::normals(101 * k, 9);
    Hessian moments("m", k, team);
    moments.add(x.data(), 50, k);
    moments.add(x.data() + 50 * k, 70, k);
    const double expected = squares_of_outputs(d, x, k);
    EXPECT_NEAR(output_error(team, moments, d.data(), 101), expected, 1e-5 * expected) << k;
  }
}

TEST(AwqSearch, InputsAreMeasuredAndEveryFewthTokenIsKept) {
  const Team team;
  const Floats x = test::inputs(30, 8, 3);
  AwqInputs inputs("m", 8, team, 30, 7);  // every fourth
  inputs.add(x.data(), 13);
  inputs.add(x.data() + 13 * 8, 17);
  ASSERT_EQ(inputs.kept().size(), 8u * 8);
  for (size_t i = 0; i < 8; ++i) {
    for (size_t j = 0; j < 8; ++j)
      EXPECT_EQ(inputs.kept()[i * 8 + j], x[i * 4 * 8 + j]);
    double sum = 0;
    for (size_t t = 0; t < 30; ++t)
      sum += static_cast<double>(std::abs(x[t * 8 + i]));
    EXPECT_FLOAT_EQ(inputs.mean_sizes()[i], static_cast<float>(sum / 30));
  }
}

TEST(AwqSearch, RoundingKeepsToGridsAndClippingHelpsOutliers) {
  const Team team;
  const int64_t k = 64, n = 6;
  Floats w = test::normals(n * k, 4);
  for (int64_t r = 0; r < n; ++r)
    w[at(r * k + 5)] *= 20;
  Floats x = test::normals(200 * k, 8);
  for (int64_t t = 0; t < 200; ++t)
    x[at(t * k + 5)] *= 0.001F;  // outliers that hardly matter
  const auto error_of = [&](const Floats& q) {
    Floats d = q;
    for (size_t i = 0; i < d.size(); ++i)
      d[i] -= w[i];
    return squares_of_outputs(d, x, k);
  };
  Floats rounded = w;
  awq_round(rounded.data(), n, k, 32);
  for (int64_t g = 0; g < n * k; g += 32) {
    std::vector<float> levels(rounded.begin() + g, rounded.begin() + g + 32);
    std::ranges::sort(levels);
    EXPECT_LE(std::unique(levels.begin(), levels.end()) - levels.begin(), 16);
    const auto [low, high] = std::minmax_element(w.begin() + g, w.begin() + g + 32);
    EXPECT_NEAR(levels.back(), *high, (*high - *low) / 15);
  }
  const Floats bounds = awq_clip(team, w.data(), n, k, 32, x);
  Floats clipped = w;
  apply_clip(clipped.data(), n, k, 32, bounds);
  awq_round(clipped.data(), n, k, 32);
  EXPECT_LT(error_of(clipped), 0.5 * error_of(rounded));
  // Of a group without outliers' harm every other bound is worse or equal.
  for (const float shrink : {1.0F, 0.9F, 0.75F, 0.55F}) {
    Floats other = w, all = bounds;
    for (size_t i = 0; i < all.size(); ++i) {
      const auto group = w.begin() + static_cast<int64_t>(i) * 32;
      const auto [low, high] = std::minmax_element(group, group + 32);
      all[i] = std::max(-*low, *high) * shrink;
    }
    apply_clip(other.data(), n, k, 32, all);
    awq_round(other.data(), n, k, 32);
    EXPECT_LE(error_of(clipped), error_of(other)) << shrink;
  }
}

/// The factor of H, scaled, is that of H of the scaled inputs: the loss that the solver tells is
/// what its codes leave, measured on the inputs as they were.
TEST(AwqSearch, ScaledFactorsAreThoseOfDividedInputs) {
  const Team team;
  const int64_t k = 200, n = 70;
  const Floats x = test::inputs(500, k, 3);
  Hessian moments("m", k, team);
  moments.add(x.data(), 500, k);
  Floats scales(at(k));
  for (int64_t i = 0; i < k; ++i)
    scales[at(i)] = std::exp2(static_cast<float>(i % 7 - 3));
  for (const int64_t group_size : {40, 200}) {
    GptqOptions options;
    options.group_size = group_size;
    options.sym = false;
    options.zero_from_0 = true;
    GptqFactor factor(moments, options, team);
    const LinearSource w = test::matrix(n, k, test::normals(n * k, 4));
    const LinearSource scaled = scaled_source(w, scales);
    factor.set_input_scales(Floats(at(k), 0.3F));
    factor.set_input_scales(scales);
    const GptqResult result = gptq_quantise(scaled, factor, team);
    Floats d = test::decode(result.source);
    const Floats published = test::decode(w);
    double damped = 0;
    double added = 0;
    for (const double value : moments.diagonal())
      added += options.damp * value / static_cast<double>(k);
    for (size_t i = 0; i < d.size(); ++i) {
      d[i] = d[i] / scales[i % at(k)] - published[i];
      damped += added * static_cast<double>(d[i]) * static_cast<double>(d[i]);
    }
    // scale() is 2 / samples, of which there is one; the solver halves.
    const double expected = squares_of_outputs(d, x, k) + damped;
    EXPECT_NEAR(result.loss, expected, 1e-3 * expected) << group_size;
  }
}

/// 1 / U_ii^2 is the pivot of H when its columns are factored from the last of the order on: of two
/// inputs the first's variance without what the second tells, the second's own.
TEST(AwqSearch, OwnSizesAreWhatLaterInputsDoNotTell) {
  const Team team;
  const Floats x = {3, 1, 3, -1, 1, 2, 2, 0.5F};  // columns (3, 3, 1, 2) and (1, -1, 2, 0.5)
  Hessian moments("m", 2, team);
  moments.add(x.data(), 4, 2);
  GptqOptions options;
  options.damp = 1e-6;
  const double a = 9 + 9 + 1 + 4, b = 3 - 3 + 2 + 1, c = 1 + 1 + 4 + 0.25;
  const double first = std::sqrt(a - b * b / c), second = std::sqrt(c);
  const Floats sizes = GptqFactor(moments, options, team).own_sizes();
  EXPECT_NEAR(sizes[0], 2 * first / (first + second), 1e-4);
  EXPECT_NEAR(sizes[1], 2 * second / (first + second), 1e-4);
}

TEST(AwqSearch, NormsDivideExactly) {
  const Floats norm = {1.5F, -0.37F, 0, 1e-9F, 60000, 2e-7F};
  std::vector<float> scales = {3, 0.7F, 5, 2, 0.01F, 8};
  const Floats folded = fold_into_norm(norm, scales, "norm");
  for (size_t i = 0; i < norm.size(); ++i) {
    EXPECT_EQ(folded[i], f16_to_f32(f32_to_f16(folded[i]))) << i;
    if (folded[i] == 0) continue;
    EXPECT_FLOAT_EQ(folded[i] * scales[i], norm[i]) << i;
  }
  EXPECT_NEAR(scales[0], 3, 3 * 0x1p-11);
  EXPECT_NEAR(scales[1], 0.7, 0.7 * 0x1p-11);
  EXPECT_EQ(folded[2], 0);
  EXPECT_EQ(scales[2], 1);
  EXPECT_EQ(folded[3], 0);
  EXPECT_EQ(scales[3], 1);
  EXPECT_EQ(folded[4], 60000);  // 6e6 is beyond f16
  EXPECT_EQ(scales[4], 60000.0F / folded[4]);
  EXPECT_NE(folded[5], 0);  // 2.5e-8 rounds to 0: the weight itself is kept
}

TEST(AwqSearch, RowsDividedKeepTheirCodes) {
  AffineMatrix matrix;
  matrix.n = 2;
  matrix.k = 4;
  matrix.bits = 4;
  matrix.group_size = 2;
  matrix.n_groups = 2;
  matrix.code_values = {0, 5, 15, 3, 1, 2, 3, 4};
  matrix.scale_values = {0.5F, 0.25F, 1, 2};
  matrix.zero_values = {7, 8, 0, 15};
  const auto divided = divided_rows(matrix, std::vector<float>{2, 0.3F});
  EXPECT_EQ(divided->code_values, matrix.code_values);
  EXPECT_EQ(divided->zero_values, matrix.zero_values);
  EXPECT_EQ(divided->scale_values[0], 0.25F);
  EXPECT_EQ(divided->scale_values[1], 0.125F);
  EXPECT_EQ(divided->scale_values[3], f16_to_f32(f32_to_f16(2 / 0.3F)));
}

}  // namespace
}  // namespace qw::quantize
