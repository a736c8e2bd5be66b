// Every table of elementwise operations that this CPU can run, against the formulas in double.
#include "kernels/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/rng.h"
#include "kernels/isa_kernels.h"

namespace qw::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<const ElementwiseOps*> tables() {
  std::vector<const ElementwiseOps*> out;
  for (const IsaKernels* row : isa_kernels(detect_isa())) {
    if (row->elementwise != nullptr) out.push_back(row->elementwise);
  }
  return out;
}

std::vector<float> normals(int64_t n, uint64_t stream, float scale = 1) {
  std::vector<float> out(static_cast<size_t>(n));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = scale * static_cast<float>(random_normal(11, stream, i));
  return out;
}

double relative_error(float got, double want) {
  return std::abs(static_cast<double>(got) - want) / std::max(std::abs(want), 1e-37);
}

const std::vector<int64_t> kSizes = {1,  2,  3,  4,  5,  7,  8,  9,   15,   16,
                                     17, 31, 32, 33, 63, 64, 65, 100, 1024, 2817};

class ElementwiseTest : public testing::TestWithParam<const ElementwiseOps*> {};

TEST_P(ElementwiseTest, ExpIsAccurateOverItsWholeRange) {
  std::vector<float> x, y;
  for (float v = -87.3F; v < 88.7F; v += 0.0137F)
    x.push_back(v);
  for (const float v : normals(1000, 1))
    x.push_back(v * 1e-3F);
  y.resize(x.size());
  GetParam()->exp(x.data(), static_cast<int64_t>(x.size()), y.data());
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i)
    worst = std::max(worst, relative_error(y[i], std::exp(static_cast<double>(x[i]))));
  EXPECT_LE(worst, 0x1p-22);

  const std::vector<float> special = {0.0F,   -kInfinity, kInfinity, -100.0F,
                                      100.0F, kNan,       -3e38F,    3e38F};
  std::vector<float> out(special.size());
  GetParam()->exp(special.data(), static_cast<int64_t>(special.size()), out.data());
  EXPECT_EQ(out[0], 1.0F);
  EXPECT_EQ(out[1], 0.0F);
  EXPECT_EQ(out[2], kInfinity);
  EXPECT_EQ(out[3], 0.0F);
  EXPECT_EQ(out[4], kInfinity);
  EXPECT_TRUE(std::isnan(out[5]));
  EXPECT_EQ(out[6], 0.0F);
  EXPECT_EQ(out[7], kInfinity);
}

TEST_P(ElementwiseTest, AddRmsNormMatchesTheFormula) {
  for (const int64_t n : kSizes) {
    const auto size = static_cast<size_t>(n);
    const std::vector<float> x = normals(n, 1), y = normals(n, 2, 100), w = normals(n, 3);
    for (const bool adds : {false, true}) {
      std::vector<float> sum = x, h(size + 1, 42.0F);
      ASSERT_TRUE(GetParam()->add_rms_norm(adds ? y.data() : nullptr, sum.data(), w.data(), 1e-6F,
                                           n, h.data()));
      double squares = 0;
      for (size_t i = 0; i < size; ++i) {
        EXPECT_EQ(sum[i], adds ? x[i] + y[i] : x[i]);
        squares += static_cast<double>(sum[i]) * static_cast<double>(sum[i]);
      }
      const double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + 1e-6);
      for (size_t i = 0; i < size; ++i) {
        EXPECT_LE(
            relative_error(h[i], static_cast<double>(sum[i]) * scale * static_cast<double>(w[i])),
            1e-6)
            << n;
      }
      EXPECT_EQ(h[size], 42.0F) << "wrote past the row";
    }
  }
}

TEST_P(ElementwiseTest, AddRmsNormSeesEveryValueThatIsNotFinite) {
  for (const int64_t n : {int64_t{5}, int64_t{64}, int64_t{77}}) {
    for (int64_t at = 0; at < n; ++at) {
      for (const float value : {kNan, kInfinity, -kInfinity}) {
        std::vector<float> x = normals(n, 1), y(x.size(), 0.0F), h(x.size());
        const std::vector<float> w(x.size(), 1.0F);
        y[static_cast<size_t>(at)] = value;
        EXPECT_FALSE(GetParam()->add_rms_norm(y.data(), x.data(), w.data(), 1e-6F, n, h.data()))
            << n << " " << at;
      }
    }
  }
}

TEST_P(ElementwiseTest, SiluMulMatchesTheFormula) {
  for (const int64_t n : kSizes) {
    std::vector<float> gate = normals(n, 4, 8);
    const std::vector<float> before = gate, up = normals(n, 5);
    gate.push_back(42.0F);
    ASSERT_TRUE(GetParam()->silu_mul(gate.data(), up.data(), n));
    for (size_t i = 0; i < before.size(); ++i) {
      const auto g = static_cast<double>(before[i]);
      EXPECT_LE(relative_error(gate[i], g / (1 + std::exp(-g)) * static_cast<double>(up[i])), 1e-6)
          << before[i];
    }
    EXPECT_EQ(gate[before.size()], 42.0F);
  }
  std::vector<float> extreme = {-200.0F, 200.0F, -1e30F, 0.0F};
  const std::vector<float> ones(4, 1.0F);
  EXPECT_TRUE(GetParam()->silu_mul(extreme.data(), ones.data(), 4));
  EXPECT_EQ(extreme, (std::vector<float>{0.0F, 200.0F, 0.0F, 0.0F}));
  for (const float value : {kNan, kInfinity, -kInfinity}) {
    std::vector<float> gate = {1, 2, value, 4, 5};
    const std::vector<float> up(5, 1.0F);
    EXPECT_FALSE(GetParam()->silu_mul(gate.data(), up.data(), 5)) << value;
  }
}

TEST_P(ElementwiseTest, RopeRotatesPairsHalfAHeadApart) {
  for (const int64_t half : {1, 3, 8, 16, 20, 32, 40, 64}) {
    std::vector<float> x = normals(2 * half, 6), cos, sin;
    const std::vector<float> before = x;
    for (int64_t i = 0; i < half; ++i) {
      cos.push_back(std::cos(0.37F * static_cast<float>(i + 1)));
      sin.push_back(std::sin(0.37F * static_cast<float>(i + 1)));
    }
    GetParam()->rope(x.data(), cos.data(), sin.data(), half);
    for (size_t i = 0, h = static_cast<size_t>(half); i < h; ++i) {
      EXPECT_FLOAT_EQ(x[i], before[i] * cos[i] - before[i + h] * sin[i]);
      EXPECT_FLOAT_EQ(x[i + h], before[i + h] * cos[i] + before[i] * sin[i]);
    }
  }
}

TEST_P(ElementwiseTest, ScaledAdditionsMatchTheFormulas) {
  for (const int64_t n : kSizes) {
    const std::vector<float> base = normals(n, 7), x = normals(n, 8), f = normals(n, 9),
                             u = normals(n, 10);
    std::vector<float> lora = base, dora = base;
    GetParam()->add_scaled(x.data(), 0.7F, lora.data(), n);
    GetParam()->add_dora(f.data(), x.data(), u.data(), 0.7F, dora.data(), n);
    for (size_t i = 0; i < base.size(); ++i) {
      EXPECT_NEAR(lora[i], base[i] + 0.7F * x[i], 2e-6);
      EXPECT_NEAR(dora[i], base[i] + (f[i] - 1) * x[i] + f[i] * 0.7F * u[i], 5e-6);
    }
  }
}

TEST_P(ElementwiseTest, SoftmaxMatchesTheFormula) {
  for (const int64_t n : {1, 2, 6, 8, 15, 16, 17, 60, 64, 100}) {
    std::vector<float> x = normals(n, 12, 5);
    for (float& v : x)
      v -= 300;  // only differences matter
    const std::vector<float> before = x;
    ASSERT_TRUE(GetParam()->softmax(x.data(), n));
    double total = 0;
    for (const float v : before)
      total += std::exp(static_cast<double>(v) + 300);
    for (size_t i = 0; i < x.size(); ++i)
      EXPECT_LE(relative_error(x[i], std::exp(static_cast<double>(before[i]) + 300) / total), 1e-6);
    std::vector<float> bad = before;
    bad[static_cast<size_t>(n - 1)] = kNan;
    EXPECT_FALSE(GetParam()->softmax(bad.data(), n));
  }
}

TEST_P(ElementwiseTest, AlignmentChangesNoBit) {
  constexpr int64_t kSize = 77;
  const std::vector<float> gate = normals(kSize, 13), up = normals(kSize, 14);
  std::vector<float> want = gate;
  GetParam()->silu_mul(want.data(), up.data(), kSize);
  for (size_t shift = 1; shift < 17; ++shift) {
    std::vector<float> moved(gate.size() + shift);
    std::copy(gate.begin(), gate.end(), moved.begin() + static_cast<int64_t>(shift));
    GetParam()->silu_mul(moved.data() + shift, up.data(), kSize);
    EXPECT_EQ(std::memcmp(moved.data() + shift, want.data(), kSize * sizeof(float)), 0) << shift;
    // In pieces, too: an element's bits do not depend on its place.
    std::vector<float> pieces = gate;
    const auto cut = static_cast<int64_t>(shift);
    GetParam()->silu_mul(pieces.data(), up.data(), cut);
    GetParam()->silu_mul(pieces.data() + cut, up.data() + cut, kSize - cut);
    EXPECT_EQ(std::memcmp(pieces.data(), want.data(), kSize * sizeof(float)), 0) << shift;
  }
}

INSTANTIATE_TEST_SUITE_P(AllIsa, ElementwiseTest, testing::ValuesIn(tables()),
                         [](const auto& each) { return std::string(each.param->name); });

}  // namespace
}  // namespace qw::kernels
