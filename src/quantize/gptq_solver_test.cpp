// GPTQ's properties: what it must do whatever the numbers.
#include "quantize/gptq_solver.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"
#include "base/half.h"
#include "quant/gptq.h"
#include "quantize/test_support.h"

namespace qw::quantize {
namespace {

using test::at;
using test::Floats;
using test::Team;
using Mode = GptqOptions::Mode;

Hessian hessian_of(const Floats& x, int64_t k, const MatrixTeam& team) {
  Hessian out("layers.0.q_proj", k, team);
  out.add(x.data(), static_cast<int64_t>(x.size()) / k, k);
  return out;
}

/// H = identity: sqrt(1/2) on the diagonal of X, since H = 2 X^T X.
Floats unit_inputs(int64_t k) {
  Floats out(at(k * k));
  for (int64_t i = 0; i < k; ++i)
    out[at(i * k + i)] = 1;
  return out;
}

std::vector<GptqOptions> variants() {
  std::vector<GptqOptions> out;
  for (const Mode mode : {Mode::kBetter, Mode::kReference}) {
    for (const int bits : {2, 3, 4, 8}) {
      for (const bool sym : {true, false}) {
        for (const auto& [group, act, fixed] :
             {std::tuple{-1, false, false}, std::tuple{32, false, false},
              std::tuple{48, true, false}, std::tuple{200, true, true},
              std::tuple{150, false, true}}) {
          GptqOptions options;
          options.mode = mode;
          options.bits = bits;
          options.sym = sym;
          options.group_size = group;
          options.desc_act = act;
          options.static_groups = fixed;
          out.push_back(options);
          if (mode == Mode::kReference || act || fixed || group == -1) continue;
          options.late_grids = true;
          out.push_back(options);
        }
      }
    }
  }
  return out;
}

std::string describe(const GptqOptions& options) {
  return fmt::format("{} b{} g{} {}{}{}{}", options.mode == Mode::kBetter ? "better" : "reference",
                     options.bits, options.group_size, options.sym ? "sym" : "asym",
                     options.desc_act ? " act" : "", options.static_groups ? " static" : "",
                     options.late_grids ? " late" : "");
}

/// The nearest code of every weight on the grids of `matrix`, decoded.
Floats nearest_on_grids(const AffineMatrix& matrix, const Floats& w) {
  Floats out(w.size());
  const float highest = static_cast<float>((1 << matrix.bits) - 1);
  for (int64_t o = 0; o < matrix.n; ++o) {
    for (int64_t i = 0; i < matrix.k; ++i) {
      const int64_t group =
          matrix.group_of.empty() ? i / matrix.group_size : matrix.group_of[at(i)];
      const float scale = matrix.scale_values[at(o * matrix.n_groups + group)];
      const float zero = matrix.zero_values[at(o * matrix.n_groups + group)];
      const float code =
          std::clamp(std::nearbyint(w[at(o * matrix.k + i)] / scale) + zero, 0.0F, highest);
      out[at(o * matrix.k + i)] = scale * (code - zero);
    }
  }
  return out;
}

TEST(Gptq, WithoutCorrelationsItRoundsToNearest) {
  const Team team;
  constexpr int64_t kN = 70, kK = 330;
  const Floats w = test::normals(kN * kK, 1, 0.02);
  const Hessian hessian = hessian_of(unit_inputs(kK), kK, team);
  for (const GptqOptions& options : variants()) {
    SCOPED_TRACE(describe(options));
    const GptqFactor factor(hessian, options, team);
    const GptqResult result = gptq_quantise(test::matrix(kN, kK, w), factor, team);
    EXPECT_EQ(test::decode(result.source), nearest_on_grids(*result.matrix, w));
  }
}

TEST(Gptq, FeedbackLessensTheOutputError) {
  const Team team;
  constexpr int64_t kN = 70, kK = 330;
  const Floats x = test::inputs(700, kK, 10);
  const Floats w = test::normals(kN * kK, 2, 0.02);
  const LinearSource source = test::matrix(kN, kK, w);
  const Hessian hessian = hessian_of(x, kK, team);
  for (const GptqOptions& options : variants()) {
    SCOPED_TRACE(describe(options));
    const GptqFactor factor(hessian, options, team);
    const GptqResult result = gptq_quantise(source, factor, team);
    const double mse = test::out_mse(source, result.source, x);
    const LinearSource nearest = test::matrix(kN, kK, nearest_on_grids(*result.matrix, w));
    EXPECT_LT(mse, 0.6 * test::out_mse(source, nearest, x));
    // loss = trace(E H E^T) / 2 with H = 2 / samples * X^T X and its damp, so E X^T X E^T is less.
    const double total = mse * kN * 700;
    EXPECT_LE(total, result.loss * 1.001);
    EXPECT_GE(total, result.loss * 0.2);

    if (options.mode == Mode::kReference) continue;
    GptqOptions reference = options;
    reference.mode = Mode::kReference;
    const GptqFactor old(hessian, reference, team);
    EXPECT_LT(mse, test::out_mse(source, gptq_quantise(source, old, team).source, x));
    for (const float scale : result.matrix->scale_values)
      ASSERT_EQ(f16_to_f32(f32_to_f16(scale)), scale);
  }
}

TEST(Gptq, RowsDoNotDependOnThreadsOrOtherRows) {
  constexpr int64_t kN = 130, kK = 200;
  const Floats x = test::inputs(300, kK, 20);
  const Floats w = test::normals(kN * kK, 3, 0.02);
  for (const Mode mode : {Mode::kBetter, Mode::kReference}) {
    GptqOptions options;
    options.mode = mode;
    options.group_size = 64;
    std::vector<Floats> results;
    for (const int n_threads : {1, 2, 4}) {
      const Team team(n_threads);
      const GptqFactor factor(hessian_of(x, kK, team), options, team);
      results.push_back(test::decode(gptq_quantise(test::matrix(kN, kK, w), factor, team).source));
      const Floats last(w.end() - kK, w.end());
      const Floats alone =
          test::decode(gptq_quantise(test::matrix(1, kK, last), factor, team).source);
      EXPECT_EQ(alone, Floats(results.back().end() - kK, results.back().end()));
    }
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(results[0], results[2]);
  }
}

TEST(Gptq, SingularInputsAreDampedUntilTheyFactor) {
  const Team team;
  constexpr int64_t kK = 160;
  // One direction only, and a damp below what f32 can tell from nothing.
  Floats x(at(kK * 4));
  for (int64_t i = 0; i < kK * 4; ++i)
    x[at(i)] = 1 + static_cast<float>(i / kK);
  const Hessian hessian = hessian_of(x, kK, team);
  const Floats w = test::normals(8 * kK, 4, 0.02);
  GptqOptions options;
  options.damp = 1e-12;
  const GptqFactor factor(hessian, options, team);
  EXPECT_GT(factor.damp(), 1e-12);
  EXPECT_LT(factor.damp(), 1e-3);
  GptqOptions less = options;  // not raised further than it had to be
  less.damp = factor.damp() / 3.1622776601683795;
  EXPECT_GT(GptqFactor(hessian, less, team).damp(), less.damp);
  const GptqResult result = gptq_quantise(test::matrix(8, kK, w), factor, team);
  EXPECT_TRUE(std::isfinite(result.loss));
  EXPECT_LT(test::out_mse(test::matrix(8, kK, w), result.source, x), 1e-2);

  options.mode = Mode::kReference;
  try {
    const GptqFactor refused(hessian, options, team);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    EXPECT_NE(error.message().find("layers.0.q_proj"), std::string::npos) << error.message();
  }
}

TEST(Gptq, DeadColumnsAreDroppedByTheReferenceAndKeptByDefault) {
  const Team team;
  constexpr int64_t kN = 5, kK = 128;
  Floats x = test::inputs(300, kK, 30);
  for (size_t i = 0; i < x.size(); ++i) {
    if (i % kK % 9 == 4) x[i] = 0;
  }
  const Hessian hessian = hessian_of(x, kK, team);
  const Floats w = test::normals(kN * kK, 5, 0.02);
  for (const Mode mode : {Mode::kBetter, Mode::kReference}) {
    GptqOptions options;
    options.mode = mode;
    options.bits = 8;
    const GptqFactor factor(hessian, options, team);
    EXPECT_EQ(factor.n_dead(), 14);
    const Floats q = test::decode(gptq_quantise(test::matrix(kN, kK, w), factor, team).source);
    for (size_t i = 0; i < q.size(); ++i) {
      if (i % kK % 9 == 4) {
        EXPECT_NEAR(q[i], mode == Mode::kBetter ? w[i] : 0.0F, 5e-4);
      }
    }
  }
}

TEST(Gptq, SymmetricGridsTurnToTheLargerSide) {
  const Team team;
  constexpr int64_t kK = 32;
  Floats up(at(kK)), down(at(kK));  // -7 .. 8 and -8 .. 7, in quarters
  for (int64_t i = 0; i < kK; ++i) {
    down[at(i)] = 0.25F * static_cast<float>(i % 16 - 8);
    up[at(i)] = -down[at(i)];
  }
  Floats w = up;
  w.insert(w.end(), down.begin(), down.end());
  const GptqFactor factor(Hessian("w", kK, team), {}, team);
  const GptqResult result = gptq_quantise(test::matrix(2, kK, w), factor, team);
  EXPECT_EQ(test::decode(result.source), w);
  EXPECT_EQ(result.matrix->scale_values, (Floats{-0.25F, 0.25F}));
}

TEST(Gptq, WithoutInputsItStillRounds) {
  const Team team;
  constexpr int64_t kN = 3, kK = 96;
  const Floats w = test::normals(kN * kK, 6, 0.02);
  GptqOptions options;
  options.group_size = 32;
  for (const bool fixed : {false, true}) {
    options.static_groups = fixed;
    const GptqFactor factor(Hessian("expert", kK, team), options, team);
    const GptqResult result = gptq_quantise(test::matrix(kN, kK, w), factor, team);
    EXPECT_EQ(test::decode(result.source), nearest_on_grids(*result.matrix, w));
  }
}

TEST(Gptq, ZerosStayZeros) {
  const Team team;
  constexpr int64_t kN = 3, kK = 130;
  const Hessian hessian = hessian_of(test::inputs(200, kK, 40), kK, team);
  for (const GptqOptions& options : variants()) {
    const GptqFactor factor(hessian, options, team);
    const GptqResult result = gptq_quantise(test::matrix(kN, kK, Floats(kN * kK)), factor, team);
    EXPECT_EQ(test::decode(result.source), Floats(kN * kK)) << describe(options);
    EXPECT_EQ(result.loss, 0);
  }
}

TEST(Gptq, ZeroPointsFitTheirStorage) {
  const Team team;
  constexpr int64_t kN = 64, kK = 128;
  const Hessian hessian = hessian_of(test::inputs(200, kK, 50), kK, team);
  Floats w = test::normals(kN * kK, 7, 0.02);
  for (float& value : w)  // no negative weights: the zero point of least range is 0
    value = std::abs(value);
  for (const bool from_0 : {false, true}) {
    GptqOptions options;
    options.sym = false;
    options.zero_from_0 = from_0;
    const GptqFactor factor(hessian, options, team);
    const GptqResult result = gptq_quantise(test::matrix(kN, kK, w), factor, team);
    const auto& zeros = result.matrix->zero_values;
    EXPECT_EQ(*std::min_element(zeros.begin(), zeros.end()), from_0 ? 0 : 1);
    const GptqFile file = publish_gptq(*result.matrix, from_0, "w");
    const GptqFile::Views views = file.views("w");
    const auto opened = open_gptq({4, 128, false, false, from_0}, views.tensors("w"));
    EXPECT_EQ(test::decode(source_of("w", opened)), test::decode(result.source));
  }
}

TEST(Gptq, SaysWhatIsWrong) {
  const Team team;
  constexpr int64_t kK = 64;
  const Hessian hessian = hessian_of(test::inputs(100, kK, 60), kK, team);
  const GptqFactor factor(hessian, {}, team);
  const auto message_of = [&](const LinearSource& w) {
    try {
      gptq_quantise(w, factor, team);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      return error.message();
    }
    return std::string();
  };
  Floats w(2 * kK, 0.5F);
  w[kK + 3] = std::nanf("");
  EXPECT_EQ(message_of(test::matrix(2, kK, w)),
            "[gptq] layers.0.q_proj.weight: expected finite weights, got nan (row 1, column 3)");
  w[kK + 3] = 1e30F;
  EXPECT_NE(message_of(test::matrix(2, kK, w)).find("f16"), std::string::npos);
  EXPECT_NE(message_of(test::matrix(2, 32, Floats(64))).find("expected 64 input features, got 32"),
            std::string::npos);
  for (const auto& wrong : {GptqOptions{.bits = 5}, GptqOptions{.group_size = 0},
                            GptqOptions{.group_size = -2}, GptqOptions{.damp = 0}})
    EXPECT_THROW(GptqFactor(hessian, wrong, team), Error);
}

}  // namespace
}  // namespace qw::quantize
