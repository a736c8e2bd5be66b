// Attention and KV page functions of every ISA that this CPU can run: against double-precision
// formulas, against the generic table, and independent of how many rows go together.
#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/half.h"
#include "base/rng.h"
#include "kernels/isa_kernels.h"

namespace qw::kernels {
namespace {

constexpr int P = kKvPageTokens;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Path {
  const char* name;
  const AttentionOps* attention;
  const KvOps* kv;
  const ElementwiseOps* elementwise;
};

std::vector<Path> paths() {
  std::vector<Path> out;
  for (const IsaKernels* row : isa_kernels(detect_isa())) {
    if (row->attention == nullptr) continue;
    out.push_back({row->attention->name, row->attention, row->kv, row->elementwise});
  }
  return out;
}

std::vector<float> normals(size_t n, uint64_t stream) {
  std::vector<float> out(n);
  for (size_t i = 0; i < n; ++i)
    out[i] = static_cast<float>(random_normal(5, stream, i));
  return out;
}

float plain(KvType type, float x) {
  if (type == KvType::kF16) return f16_to_f32(f32_to_f16(x));
  if (type == KvType::kBF16) return bf16_to_f32(f32_to_bf16(x));
  return x;
}

/// What the cache type makes of x, a block of a row: the definition in kv_pages.h, in plain C++.
std::vector<float> rounded_block(KvType type, std::vector<float> x) {
  if (type != KvType::kQ8_0 && type != KvType::kQ4_0) {
    for (float& v : x)
      v = plain(type, v);
    return x;
  }
  float high = 0, low = 0;
  for (const float v : x)
    high = std::max(high, v), low = std::min(low, v);
  const float d =
      type == KvType::kQ8_0 ? std::max(high, -low) / 127.0F : (-low > high ? low : high) / -8.0F;
  const float inverse = d != 0 ? 1.0F / d : 0.0F, stored = f16_to_f32(f32_to_f16(d));
  for (float& v : x) {
    if (type == KvType::kQ8_0) {
      v = stored * std::nearbyint(v * inverse);
    } else {
      v = stored *
          (std::min(15.0F, std::max(0.0F, std::nearbyint(std::fma(v, inverse, 8.0F)))) - 8.0F);
    }
  }
  return x;
}

std::vector<float> rounded_row(KvType type, const float* x, int head_dim) {
  std::vector<float> out;
  for (int begin = 0; begin < head_dim; begin += kKvBlock) {
    const std::vector<float> block =
        rounded_block(type, {x + begin, x + std::min(head_dim, begin + kKvBlock)});
    out.insert(out.end(), block.begin(), block.end());
  }
  return out;
}

class AttentionKernelTest : public testing::TestWithParam<Path> {};

TEST_P(AttentionKernelTest, PagesHoldWhatTheTypeSays) {
  for (const KvType type :
       {KvType::kF32, KvType::kF16, KvType::kBF16, KvType::kQ8_0, KvType::kQ4_0}) {
    for (const int head_dim : {2, 6, 16, 34, 64, 80, 128}) {
      const KvLayout layout = kv_layout(type, head_dim);
      std::vector<std::byte> page(static_cast<size_t>(layout.head_bytes));
      const auto hd = static_cast<size_t>(head_dim);
      const std::vector<float> k = normals(P * hd, 1), v = normals(P * hd, 2);
      // In three stores, as chunks of a prefill would.
      for (const auto& [offset, n] : {std::pair{0, 5}, {5, 1}, {6, P - 6}}) {
        GetParam().kv->store_k(layout, page.data(), offset, n, k.data() + offset * head_dim,
                               head_dim);
        GetParam().kv->store_v(layout, page.data(), offset, n, v.data() + offset * head_dim,
                               head_dim);
      }
      std::vector<float> wide_k(hd * P), wide_v(static_cast<size_t>(P * layout.v_stride), 9.0F);
      GetParam().kv->widen_k(layout, page.data(), P, 0, wide_k.data());
      GetParam().kv->widen_v(layout, page.data(), 0, P, 0, wide_v.data());
      // A tie of a quantised code may go either way where the fused product differs: half a step.
      const float slack = type == KvType::kQ4_0 ? 0.6F : type == KvType::kQ8_0 ? 0.04F : 0.0F;
      int ties = 0;
      for (int t = 0; t < P; ++t) {
        const std::vector<float> want_k = rounded_row(type, k.data() + t * head_dim, head_dim);
        const std::vector<float> want_v = rounded_row(type, v.data() + t * head_dim, head_dim);
        for (int d = 0; d < head_dim; ++d) {
          const float got_k = wide_k[static_cast<size_t>(d * P + t)],
                      got_v = wide_v[static_cast<size_t>(t * layout.v_stride + d)];
          ties += got_k != want_k[static_cast<size_t>(d)];
          ties += got_v != want_v[static_cast<size_t>(d)];
          ASSERT_NEAR(got_k, want_k[static_cast<size_t>(d)], slack)
              << head_dim << " " << t << " " << d;
          ASSERT_NEAR(got_v, want_v[static_cast<size_t>(d)], slack)
              << head_dim << " " << t << " " << d;
        }
        for (int d = head_dim; d < layout.v_stride; ++d) {
          ASSERT_EQ(wide_v[static_cast<size_t>(t * layout.v_stride + d)], 0.0F) << "padding";
        }
      }
      EXPECT_LE(ties, slack > 0 ? 2 : 0);
    }
  }
}

TEST_P(AttentionKernelTest, QuantisedBlocksPoisonedByNonFiniteValuesReadAsNan) {
  for (const KvType type : {KvType::kQ8_0, KvType::kQ4_0}) {
    for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
      const KvLayout layout = kv_layout(type, 80);
      std::vector<std::byte> page(static_cast<size_t>(layout.head_bytes));
      std::vector<float> row = normals(80, 3);
      row[70] = bad;
      GetParam().kv->store_k(layout, page.data(), 3, 1, row.data(), 80);
      std::vector<float> wide(80 * P);
      GetParam().kv->widen_k(layout, page.data(), P, 0, wide.data());
      EXPECT_TRUE(std::isnan(wide[70 * P + 3]));
      EXPECT_FALSE(std::isnan(wide[3]));
    }
  }
}

/// One page of attention for `rows` rows, from scores to finish.
struct OnePage {
  int rows, head_dim;
  KvType type;
  std::vector<int> begin, end;
  bool widened = false;  // widen the page first, whatever its type

  std::vector<float> run(const Path& path, const std::vector<float>& q, const std::vector<float>& k,
                         const std::vector<float>& v, int first_row, int n_rows) const {
    const KvLayout layout = kv_layout(type, head_dim);
    std::vector<std::byte> page(static_cast<size_t>(layout.head_bytes));
    path.kv->store_k(layout, page.data(), 0, P, k.data(), head_dim);
    path.kv->store_v(layout, page.data(), 0, P, v.data(), head_dim);
    std::vector<float> s(static_cast<size_t>(n_rows * P)),
        m(static_cast<size_t>(n_rows), -kInfinity), l(m.size()), correction(m.size());
    std::vector<float> o(static_cast<size_t>(n_rows * layout.v_stride)),
        out(static_cast<size_t>(n_rows * head_dim));
    const SoftmaxRows state{m.data(), l.data(), o.data(), layout.v_stride};
    const AttentionOps& ops = *path.attention;
    PageMatrix keys{page.data(), type, P},
        values{page.data() + layout.v_codes, type, layout.v_stride};
    std::vector<float> wide_k(static_cast<size_t>(head_dim * P)),
        wide_v(static_cast<size_t>(layout.v_stride * P));
    if (widened) {
      path.kv->widen_k(layout, page.data(), P, 0, wide_k.data());
      path.kv->widen_v(layout, page.data(), 0, P, 0, wide_v.data());
      keys = {wide_k.data(), KvType::kF32, P};
      values = {wide_v.data(), KvType::kF32, layout.v_stride};
    } else if (layout.n_blocks != 0) {
      path.kv->widen_scales(layout, page.data(), 0, wide_k.data(), wide_v.data());
      keys.scales = wide_k.data();
      values.scales = wide_v.data();
      keys.n_blocks = values.n_blocks = layout.n_blocks;
    }
    ops.scores(q.data() + first_row * head_dim, head_dim, n_rows, head_dim, keys, P, s.data());
    EXPECT_EQ(ops.softmax(s.data(), n_rows, P, begin.data() + first_row, end.data() + first_row,
                          state, correction.data()),
              -1);
    ops.values(s.data(), n_rows, 0, P, values, correction.data(), state);
    for (int r = 0; r < n_rows; ++r) {
      if (begin[static_cast<size_t>(first_row + r)] >= end[static_cast<size_t>(first_row + r)])
        continue;
      EXPECT_TRUE(ops.finish(o.data() + r * layout.v_stride, l[static_cast<size_t>(r)], head_dim,
                             out.data() + r * head_dim));
    }
    return out;
  }
};

TEST_P(AttentionKernelTest, OnePageMatchesTheFormulaForEveryNumberOfRows) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kBF16}) {
    for (const int head_dim : {6, 16, 80, 128}) {
      for (const int rows : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 25}) {
        OnePage page{rows, head_dim, type, {}, {}};
        for (int r = 0; r < rows; ++r) {
          page.begin.push_back(r % 3 == 0 ? 0 : r);
          page.end.push_back(std::min(P, r + 1 + r * 5 % 64));
        }
        const auto hd = static_cast<size_t>(head_dim);
        std::vector<float> q = normals(static_cast<size_t>(rows) * hd, 1);
        for (float& x : q)
          x /= std::sqrt(static_cast<float>(head_dim));
        const std::vector<float> k = normals(P * hd, 2), v = normals(P * hd, 3);
        const std::vector<float> got = page.run(GetParam(), q, k, v, 0, rows);
        for (int r = 0; r < rows; ++r) {
          double total = 0;
          std::vector<double> sum(hd);
          for (int t = page.begin[static_cast<size_t>(r)]; t < page.end[static_cast<size_t>(r)];
               ++t) {
            double score = 0;
            for (size_t d = 0; d < hd; ++d) {
              score += static_cast<double>(q[static_cast<size_t>(r) * hd + d]) *
                       static_cast<double>(plain(type, k[static_cast<size_t>(t) * hd + d]));
            }
            total += std::exp(score);
            for (size_t d = 0; d < hd; ++d)
              sum[d] += std::exp(score) *
                        static_cast<double>(plain(type, v[static_cast<size_t>(t) * hd + d]));
          }
          for (size_t d = 0; d < hd; ++d) {
            ASSERT_NEAR(got[static_cast<size_t>(r) * hd + d], sum[d] / total, 3e-6)
                << rows << " rows, row " << r;
          }
          const std::vector<float> alone = page.run(GetParam(), q, k, v, r, 1);
          ASSERT_EQ(std::memcmp(alone.data(), got.data() + static_cast<size_t>(r) * hd,
                                hd * sizeof(float)),
                    0)
              << r;
        }
      }
    }
  }
}

TEST_P(AttentionKernelTest, WideningWhereItIsReadChangesNoBit) {
  for (const KvType type : {KvType::kF16, KvType::kBF16, KvType::kQ8_0}) {
    for (const int head_dim : {6, 16, 48, 80, 128}) {
      for (const int rows : {1, 2, 4, 6, 11}) {
        const std::vector<int> begin(static_cast<size_t>(rows), 0),
            end(static_cast<size_t>(rows), P);
        const OnePage read{rows, head_dim, type, begin, end},
            widened{rows, head_dim, type, begin, end, true};
        const auto n = static_cast<size_t>(P * head_dim);
        const std::vector<float> q = normals(static_cast<size_t>(rows * head_dim), 1),
                                 k = normals(n, 2), v = normals(n, 3);
        ASSERT_EQ(read.run(GetParam(), q, k, v, 0, rows), widened.run(GetParam(), q, k, v, 0, rows))
            << rows << " rows of " << head_dim;
      }
    }
  }
}

TEST_P(AttentionKernelTest, WeightsAreTheExponentialsOfTheElementwiseKernel) {
  // Softmax takes fewer steps, since its arguments are not positive; no bit may differ. The first
  // score is the largest, so that the argument is the score itself.
  std::vector<float> s(P, 0.0F), wanted(P);
  const auto check = [&] {
    GetParam().elementwise->exp(s.data(), P, wanted.data());
    for (const int end : {P, P - 3}) {
      std::vector<float> got = s, m{-kInfinity}, l{0}, correction{0}, o(16);
      const int begin = 0;
      ASSERT_EQ(
          GetParam().attention->softmax(got.data(), 1, P, &begin, &end,
                                        {m.data(), l.data(), o.data(), 16}, correction.data()),
          -1);
      for (int t = 0; t < P; ++t)
        ASSERT_EQ(got[static_cast<size_t>(t)], t < end ? wanted[static_cast<size_t>(t)] : 0.0F)
            << s[static_cast<size_t>(t)];
    }
  };
  for (uint64_t round = 0; round < 2000; ++round) {
    for (size_t t = 1; t < s.size(); ++t)  // -2^-16 to -2^8: the edge is among them
      s[t] = -std::exp2(static_cast<float>(random_uniform(5, round, t)) * 24.0F - 16.0F);
    check();
  }
  float edge = -87.33654F;  // below this the result is 0
  for (size_t t = 32; t > 0; --t)
    edge = std::nextafter(edge, 0.0F);
  for (size_t t = 1; t < s.size(); ++t)
    s[t] = edge = std::nextafter(edge, -100.0F);
  check();
}

TEST_P(AttentionKernelTest, SoftmaxNamesTheFirstRowWithABadScore) {
  for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> s = normals(4 * P, 1), m(4, -kInfinity), l(4), correction(4), o(4 * 16);
    const SoftmaxRows state{m.data(), l.data(), o.data(), 16};
    const std::vector<int> begin(4, 2), end(4, 50);
    s[1 * P + 50] = bad;  // masked: not seen
    std::vector<float> masked = s;
    EXPECT_EQ(GetParam().attention->softmax(masked.data(), 4, P, begin.data(), end.data(), state,
                                            correction.data()),
              -1);
    EXPECT_EQ(masked[1 * P + 50], 0.0F);
    s[2 * P + 49] = bad;
    EXPECT_EQ(GetParam().attention->softmax(s.data(), 4, P, begin.data(), end.data(), state,
                                            correction.data()),
              2);
  }
}

TEST_P(AttentionKernelTest, MergeJoinsPartsAndLeavesEmptyOnesOut) {
  std::vector<float> m = {-kInfinity, 1.0F, 3.0F}, l = {0, 2, 4}, o = normals(3 * 16, 1);
  std::fill_n(o.begin(), 16, 0.0F);
  std::vector<float> part_m = {2.0F, -kInfinity, 5.0F}, part_l = {3, 0, 1},
                     part_o = normals(3 * 16, 2);
  const std::vector<float> before = o;
  GetParam().attention->merge(3, {part_m.data(), part_l.data(), part_o.data(), 16},
                              {m.data(), l.data(), o.data(), 16});
  EXPECT_EQ(m, (std::vector<float>{2.0F, 1.0F, 5.0F}));
  EXPECT_EQ(l[0], 3.0F);
  EXPECT_EQ(l[1], 2.0F);
  EXPECT_NEAR(l[2], 4 * std::exp(-2.0F) + 1, 1e-6);
  for (size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(o[i], part_o[i]);
    EXPECT_EQ(o[16 + i], before[16 + i]);
    EXPECT_NEAR(o[32 + i], before[32 + i] * std::exp(-2.0F) + part_o[32 + i], 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(AllIsa, AttentionKernelTest, testing::ValuesIn(paths()),
                         [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace qw::kernels
