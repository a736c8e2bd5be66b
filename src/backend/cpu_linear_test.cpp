// Every linear kernel this CPU can run, against the codec's reference decoder in double precision.
//
// The reference rounds activations as the kernel under test does, so the bound is that of f32
// summation alone: an integer off by one is hundreds of times larger, and a test shows that.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <set>

#include "backend/cpu_linear_test_support.h"
#include "base/error.h"
#include "kernels/linear_pack.h"

namespace qw {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace): one test program

// ---- the reference ------------------------------------------------------------------------------

/// What the kernel makes of its input, computed here anew: blocks of 32 in the kernel's column
/// order.
std::vector<float> rounded(const std::vector<float>& x, int64_t k, std::string_view form,
                           const std::vector<int32_t>& columns) {
  std::vector<float> out(x.size());
  if (form.find("(f32)") != form.npos) return x;
  if (form.find("(bf16)") != form.npos) {
    std::transform(x.begin(), x.end(), out.begin(),
                   [](float v) { return bf16_to_f32(f32_to_bf16(v)); });
    return out;
  }
  for (size_t row = 0; row < x.size(); row += static_cast<size_t>(k)) {
    for (int64_t b = 0; b < k; b += 32) {
      const auto at = [&](int64_t i) {
        return row + static_cast<size_t>(columns.empty() ? i : columns[static_cast<size_t>(i)]);
      };
      float largest = 0;
      for (int64_t i = b; i < std::min(k, b + 32); ++i)
        largest = std::max(largest, std::fabs(x[at(i)]));
      if (largest == 0) continue;
      for (int64_t i = b; i < std::min(k, b + 32); ++i) {
        out[at(i)] = std::nearbyint(x[at(i)] * (127.0F / largest)) * (largest / 127.0F);
      }
    }
  }
  return out;
}

struct Expected {
  double value = 0, bound = 0;
};

/// y and the error allowed: f32 summation over k, plus the cancellation of scale * code against a
/// minimum or zero, which is bounded by the largest weight of the 256 columns around.
Expected expected(const float* w, const float* x, int64_t k) {
  Expected out;
  double magnitude = 0;
  for (int64_t b = 0; b < k; b += 256) {
    double largest = 0, sum = 0;
    for (int64_t i = b; i < std::min(k, b + 256); ++i) {
      out.value += double{w[i]} * double{x[i]};
      largest = std::max(largest, std::fabs(double{w[i]}));
      sum += std::fabs(double{x[i]});
    }
    magnitude += 2 * largest * sum;
  }
  constexpr double kEps = 0x1p-24;
  out.bound = (static_cast<double>(k) / 16 + 8) * kEps * magnitude + 1e-30;
  return out;
}

std::string mismatch(const std::vector<float>& y, const std::vector<float>& w,
                     const std::vector<float>& x, int64_t m, int64_t n, int64_t k) {
  for (int64_t t = 0; t < m; ++t) {
    for (int64_t o = 0; o < n; ++o) {
      const Expected want = expected(w.data() + o * k, x.data() + t * k, k);
      const double got = y[static_cast<size_t>(t * n + o)];
      if (!(std::fabs(got - want.value) <= want.bound)) {
        return fmt::format("y[{}, {}] = {}, expected {} +- {}", t, o, got, want.value, want.bound);
      }
    }
  }
  return "";
}

std::vector<int32_t> act_order_columns(const LinearSource& source) {
  const auto* groups = std::get_if<std::shared_ptr<const GroupAffine>>(&source.data);
  if (groups == nullptr || (*groups)->group_of.empty()) return {};
  std::vector<int32_t> columns(static_cast<size_t>(source.k));
  for (size_t i = 0; i < columns.size(); ++i)
    columns[i] = static_cast<int32_t>(i);
  std::stable_sort(columns.begin(), columns.end(), [&](int32_t a, int32_t b) {
    return (*groups)->group_of[static_cast<size_t>(a)] <
           (*groups)->group_of[static_cast<size_t>(b)];
  });
  return columns;
}

std::vector<float> decoded(const LinearSource& source) {
  std::vector<float> w(static_cast<size_t>(source.n * source.k));
  source.decode_rows(0, source.n, w.data());
  return w;
}

// ---- tests --------------------------------------------------------------------------------------

struct CpuLinearFormat : testing::TestWithParam<Format> {};
INSTANTIATE_TEST_SUITE_P(All, CpuLinearFormat, testing::ValuesIn(all_formats()),
                         [](const auto& test) { return test.param.name; });

TEST_P(CpuLinearFormat, PackingIsAPermutation) {
  for (int64_t n : {1, 16, 21, 35}) {
    for (int64_t blocks : {1, 2, 3, 5}) {
      const LinearSource source = make_source(GetParam(), n, blocks * GetParam().k_step(), 3);
      const std::vector<float> want = decoded(source);
      for (IsaLevel level : levels_here()) {
        CpuContext context = make_context(level, ActivationMode::kAuto);
        const auto weight = pack_cpu_linear(std::span(&source, 1), context);
        std::vector<float> got(want.size());
        weight->decode_rows(0, n, got.data());
        ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size() * 4), 0)
            << weight->kernel << " n " << n << " k " << source.k;
        if (n > 3) {  // some rows out of the middle
          weight->decode_rows(1, n - 2, got.data());
          ASSERT_EQ(std::memcmp(got.data(), want.data() + source.k,
                                static_cast<size_t>((n - 2) * source.k) * 4),
                    0);
        }
      }
    }
  }
}

TEST(CpuLinear, AnyBytesArePackedExactly) {
  for (DType type : all_block_types()) {
    const DTypeInfo& block = info(type);
    const int64_t n = 37, k = 3 * block.block_elems;
    LinearSource source = empty_blocks(type, n, k);
    Random random{7};
    std::vector<float> values(static_cast<size_t>(block.block_elems));
    for (int64_t i = 0; i < 3 * n; ++i) {
      std::byte* at = block_bytes(source) + i * block.block_bytes;
      do {  // until no scale is infinite
        for (int j = 0; j < block.block_bytes; ++j)
          at[j] = static_cast<std::byte>(random.below(256));
        decode_row(type, at, block.block_elems, values.data());
      } while (
          !std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }));
    }
    const std::vector<float> want = decoded(source);
    for (IsaLevel level : levels_here()) {
      CpuContext context = make_context(level, ActivationMode::kAuto);
      const auto weight = pack_cpu_linear(std::span(&source, 1), context);
      std::vector<float> got(want.size());
      weight->decode_rows(0, n, got.data());
      ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size() * 4), 0) << weight->kernel;
    }
  }
}

TEST(CpuLinear, EveryScaleOfNvfp4IsExact) {
  LinearSource source = empty_blocks(DType::kNVFP4, 1, 64 * 64);
  for (int i = 0; i < 64; ++i) {
    std::byte* block = block_bytes(source) + 36 * i;
    for (int s = 0; s < 4; ++s)
      block[s] = static_cast<std::byte>(4 * i + s);
    for (int j = 4; j < 36; ++j)
      block[j] = static_cast<std::byte>(16 * (j % 16) + (j + 5) % 16);
  }
  const std::vector<float> want = decoded(source);
  for (IsaLevel level : levels_here()) {
    CpuContext context = make_context(level, ActivationMode::kAuto);
    std::vector<float> got(want.size());
    pack_cpu_linear(std::span(&source, 1), context)->decode_rows(0, 1, got.data());
    ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size() * 4), 0);
  }
}

TEST_P(CpuLinearFormat, AgreesWithTheDecoderInDouble) {
  const Format& format = GetParam();
  for (ActivationMode mode : {ActivationMode::kAuto, ActivationMode::kInt8, ActivationMode::kBf16,
                              ActivationMode::kF32}) {
    for (IsaLevel level : levels_here()) {
      CpuContext context = make_context(level, mode);
      for (const auto& [n, blocks] :
           {std::pair<int64_t, int64_t>{1, 1}, {16, 2}, {33, 9}, {79, 3}}) {
        const int64_t k = blocks * format.k_step();
        const LinearSource source = make_source(format, n, k, static_cast<uint64_t>(n));
        const auto weight = pack_cpu_linear(std::span(&source, 1), context);
        const std::vector<float> w = decoded(source);
        // Few rows go through gemv, eight, four and fewer at a time; many through tiles of six.
        for (int64_t m : {1, 2, 3, 4, 13, 44, 47}) {
          if (n == 79 && m != 4 && m != 47) continue;
          const std::vector<float> x = make_x(m, k, 5);
          const std::string form = mode == ActivationMode::kBf16 ? "(bf16)" : weight->kernel;
          const std::vector<float> x_rounded = rounded(x, k, form, act_order_columns(source));
          ASSERT_EQ(mismatch(run(*weight, x, m, context), w, x_rounded, m, n, k), "")
              << weight->kernel << " n " << n << " k " << k << " m " << m;
        }
      }
    }
  }
}

TEST_P(CpuLinearFormat, OneRowIsTheSameBitsInAnyBatchOnAnyTeam) {
  const Format& format = GetParam();
  const int64_t n = 70, m = 61, k = format.k_step() * (format.k_step() >= 128 ? 3 : 11);
  const LinearSource source = make_source(format, n, k, 11);
  const std::vector<float> x = make_x(m, k, 12);
  for (ActivationMode mode : {ActivationMode::kAuto, ActivationMode::kF32}) {
    for (IsaLevel level : levels_here()) {
      CpuContext one = make_context(level, mode, 1), two = make_context(level, mode, 2);
      const auto weight = pack_cpu_linear(std::span(&source, 1), one);
      const std::vector<float> all = run(*weight, x, m, one);
      ASSERT_EQ(run(*weight, x, m, two), all) << weight->kernel;
      for (int64_t rows : {1, 2, 3, 5, 8, 43}) {
        for (int64_t t = 0; t + rows <= m; t += rows) {
          const std::vector<float> part(x.begin() + t * k, x.begin() + (t + rows) * k);
          const std::vector<float> want(all.begin() + t * n, all.begin() + (t + rows) * n);
          ASSERT_EQ(run(*weight, part, rows, t % 8 != 0 ? one : two), want)
              << weight->kernel << " rows " << rows;
        }
      }
    }
  }
}

TEST_P(CpuLinearFormat, ComparatorRejectsOneWrongCode) {
  const Format& format = GetParam();
  const int64_t n = 17, k = format.k_step() * 4;
  const LinearSource source = make_source(format, n, k, 21);
  CpuContext context = make_context(kernels::detect_isa().level, ActivationMode::kAuto);
  const auto weight = pack_cpu_linear(std::span(&source, 1), context);
  const std::vector<float> x = make_x(1, k, 22), y = run(*weight, x, 1, context);
  std::vector<float> w = decoded(source);
  std::vector<float> x_rounded = rounded(x, k, weight->kernel, act_order_columns(source));
  ASSERT_EQ(mismatch(y, w, x_rounded, 1, n, k), "");
  // One activation one step off, where it counts.
  size_t most = 0;
  float product = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    const float here = std::fabs(x_rounded[i % static_cast<size_t>(k)] * w[i]);
    if (here > product) most = i % static_cast<size_t>(k), product = here;
  }
  const float right = x_rounded[most];
  x_rounded[most] *= 1.0F + 1.0F / 127;
  EXPECT_NE(mismatch(y, w, x_rounded, 1, n, k), "");
  x_rounded[most] = right;
  // One lane with its neighbour's weights: the lane that matters most.
  const auto lane = std::max_element(y.begin() + 1, y.end(),
                                     [](float a, float b) { return std::fabs(a) < std::fabs(b); }) -
                    y.begin();
  std::copy_n(w.begin() + (lane - 1) * k, k, w.begin() + lane * k);
  EXPECT_NE(mismatch(y, w, x_rounded, 1, n, k), "");
}

TEST(CpuLinear, EveryRegistryRowIsExercised) {
  std::set<std::string> used;
  for (IsaLevel level : levels_here()) {
    for (ActivationMode mode : {ActivationMode::kAuto, ActivationMode::kF32}) {
      CpuContext context = make_context(level, mode);
      for (const Format& format : all_formats()) {
        const LinearSource source = make_source(format, 3, format.k_step(), 1);
        used.insert(pack_cpu_linear(std::span(&source, 1), context)->kernel);
      }
    }
  }
  for (const kernels::LinearKernel* kernel : kernels::linear_kernels(kernels::detect_isa())) {
    SCOPED_TRACE(kernels::name_of(*kernel));
    EXPECT_EQ(used.count(kernels::name_of(*kernel)), 1U);
    EXPECT_EQ(kernel->gemv_rows > 0, kernel->gemv != nullptr);
    EXPECT_LE(kernel->gemv_rows, kernel->few_rows) << "rows that a gemv is never given";
  }
}

TEST(CpuLinear, PackedSizesAreThoseOfTheDocumentation) {
  // Bits per weight of whole units, docs/formats.md.
  const std::map<std::string, double> packed_bits = {
      {"q1_0", 1.125}, {"q2_0", 2.25},    {"q4_0", 4.5},     {"q4_1", 5},      {"q5_0", 5.5},
      {"q5_1", 6},     {"q8_0", 8.5},     {"q8_1", 8.5},     {"q2_k", 2.625},  {"q3_k", 3.625},
      {"q4_k", 4.625}, {"q5_k", 5.625},   {"q6_k", 6.625},   {"q8_k", 8.125},  {"iq1_s", 2.25},
      {"iq1_m", 2.5},  {"iq2_xxs", 3.25}, {"iq2_xs", 3.375}, {"iq2_s", 3.375}, {"iq3_xxs", 4.25},
      {"iq3_s", 4.25}, {"iq4_nl", 4.5},   {"iq4_xs", 4.375}, {"tq1_0", 2.125}, {"tq2_0", 2.125},
      {"mxfp4", 4.25}, {"nvfp4", 4.5}};
  CpuContext context = make_context(kernels::detect_isa().level, ActivationMode::kAuto);
  for (DType type : all_block_types()) {
    const std::string name(name_of(type));
    const LinearSource source = make_source({name, type}, 64, 1024, 1);
    const auto weight = pack_cpu_linear(std::span(&source, 1), context);
    ASSERT_EQ(packed_bits.count(name), 1U) << name;
    EXPECT_EQ(8.0 * static_cast<double>(weight->resident_bytes) / (64 * 1024), packed_bits.at(name))
        << name;
    EXPECT_EQ(weight->resident_bytes, kernels::plan_pack(source).bytes()) << name;
  }
  for (const Format& format : all_formats()) {  // of fewer bits, headers weigh more
    if (format.dtype || format.bits < 4) continue;
    const LinearSource source = make_source(format, 64, format.k_step() == 40 ? 1280 : 1024, 1);
    const auto weight = pack_cpu_linear(std::span(&source, 1), context);
    EXPECT_LE(static_cast<double>(weight->resident_bytes),
              1.1 * static_cast<double>(source.published_bytes()))
        << format.name;
  }
}

TEST(CpuLinear, StacksPartsOfDifferentFormatsWithBiasAndAccumulates) {
  const int64_t k = 512;
  std::vector<LinearSource> parts;
  for (const Format& format : all_formats()) {
    if (512 % format.k_step() == 0)
      parts.push_back(make_source(format, 5 + static_cast<int64_t>(parts.size()), k, parts.size()));
  }
  for (IsaLevel level : levels_here()) {
    CpuContext context = make_context(level, ActivationMode::kAuto, 2);
    const auto stacked = pack_cpu_linear(parts, context);
    std::vector<float> bias(static_cast<size_t>(stacked->n));
    for (size_t i = 0; i < bias.size(); ++i)
      bias[i] = static_cast<float>(i) - 20.0F;
    for (int64_t m : {1, 4, 9, 50}) {
      const std::vector<float> x = make_x(m, k, 9);
      std::vector<float> y = run(*stacked, x, m, context, bias.data());
      int64_t row = 0;
      for (const LinearSource& part : parts) {
        const std::vector<float> alone =
            run(*pack_cpu_linear(std::span(&part, 1), context), x, m, context);
        for (int64_t t = 0; t < m; ++t) {
          for (int64_t i = 0; i < part.n; ++i) {
            ASSERT_EQ(
                y[static_cast<size_t>(t * stacked->n + row + i)],
                alone[static_cast<size_t>(t * part.n + i)] + bias[static_cast<size_t>(row + i)])
                << part.name;
          }
        }
        row += part.n;
      }
      const std::vector<float> before = y, plain = run(*stacked, x, m, context);
      run_cpu_linear(*stacked, {x.data(), k, m, y.data(), stacked->n, nullptr, true}, context);
      for (size_t i = 0; i < y.size(); ++i)
        ASSERT_EQ(y[i], before[i] + plain[i]);
      // Rows that lie apart: what is between them stays.
      const int64_t ldy = stacked->n + 7;
      std::vector<float> apart(static_cast<size_t>(m * ldy), -3.0F);
      run_cpu_linear(*stacked, {x.data(), k, m, apart.data(), ldy}, context);
      for (int64_t t = 0; t < m; ++t) {
        for (int64_t i = 0; i < ldy; ++i) {
          ASSERT_EQ(apart[static_cast<size_t>(t * ldy + i)],
                    i < stacked->n ? plain[static_cast<size_t>(t * stacked->n + i)] : -3.0F);
        }
      }
    }
  }
}

TEST(CpuLinear, ProductsDoneTogetherAreThoseDoneAlone) {
  const int64_t k = 512;
  const std::vector<int64_t> rows = {3, 0, 50, 1, 67, 9};
  std::vector<std::unique_ptr<CpuLinear>> weights;
  CpuContext alone = make_context(kernels::detect_isa().level, ActivationMode::kAuto, 1);
  for (size_t i = 0; i < rows.size(); ++i) {
    std::vector<LinearSource> parts;  // forms that take turns, in another order each
    const std::vector<Format> formats = all_formats();
    for (size_t f = i % 3; f < formats.size(); f += 2) {
      if (k % formats[f].k_step() == 0) parts.push_back(make_source(formats[f], 21, k, 10 * i + f));
    }
    std::rotate(parts.begin(), parts.begin() + static_cast<std::ptrdiff_t>(i), parts.end());
    weights.push_back(pack_cpu_linear(parts, alone));
  }
  for (int n_threads : {1, 2}) {
    CpuContext context =
        make_context(kernels::detect_isa().level, ActivationMode::kAuto, n_threads);
    std::vector<std::vector<float>> x, y;
    std::vector<CpuLinearProduct> products;
    for (size_t i = 0; i < rows.size(); ++i) {
      x.push_back(make_x(rows[i], k, i));
      y.emplace_back(static_cast<size_t>(rows[i] * weights[i]->n), -7.0F);
    }
    for (size_t i = 0; i < rows.size(); ++i)
      products.push_back({weights[i].get(), {x[i].data(), k, rows[i], y[i].data(), weights[i]->n}});
    run_cpu_linears(products, context);
    for (size_t i = 0; i < rows.size(); ++i)
      ASSERT_EQ(y[i], run(*weights[i], x[i], rows[i], alone)) << "product " << i;
  }
}

TEST(CpuLinear, OddSizesOfPlainTypes) {
  for (DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int64_t k : {1, 2, 31, 33, 257, 300}) {
      for (int64_t n : {1, 2, 17, 65}) {
        const LinearSource source = make_source({"plain", type}, n, k, static_cast<uint64_t>(k));
        for (IsaLevel level : levels_here()) {
          CpuContext context = make_context(level, ActivationMode::kAuto);
          const auto weight = pack_cpu_linear(std::span(&source, 1), context);
          for (int64_t m : {1, 3, 7, 10}) {
            const std::vector<float> x = make_x(m, k, 2);
            ASSERT_EQ(mismatch(run(*weight, x, m, context), decoded(source),
                               rounded(x, k, weight->kernel, {}), m, n, k),
                      "")
                << weight->kernel << " n " << n << " k " << k << " m " << m;
          }
        }
      }
    }
  }
}

TEST(CpuLinear, ExtremeCodesAreExact) {
  // Largest codes against largest activations: where 16-bit sums of products would saturate.
  for (const Format& format : all_formats()) {
    if (format.dtype && !is_block(*format.dtype)) continue;
    const int64_t k = format.k_step() * 2, n = 16;
    LinearSource source = make_source(format, n, k, 4);
    if (format.dtype && is_grid_type(*format.dtype)) {
      // Random codes hold the largest next to each other somewhere.
    } else if (format.dtype) {
      std::vector<float> row(static_cast<size_t>(k));
      std::byte* bytes = block_bytes(source);
      for (int64_t r = 0; r < n; ++r) {
        // An encoder gives the largest value the lowest code; where a larger one of the other sign
        // takes that, all others get the highest.
        for (size_t i = 0; i < row.size(); ++i) {
          const float other = r % 2 == 0 ? 1.0F : -1.0F;
          row[i] = r % 3 == 0 ? other : i % (r % 3 == 1 ? 2 : 16) != 0 ? other : -1.05F * other;
        }
        encode_row(*format.dtype, row.data(), k,
                   bytes + r * std::get<BlockRows>(source.data).row_bytes);
      }
    } else {
      auto groups = std::make_shared<RandomGroups>(
          static_cast<const RandomGroups&>(*std::get<2>(source.data)));
      for (size_t i = 0; i < groups->codes_.size(); ++i)
        groups->codes_[i] = static_cast<uint8_t>(i % 5 == 0 ? 0 : (1 << format.bits) - 1);
      source.data = std::shared_ptr<const GroupAffine>(groups);
    }
    for (float value : {1.0F, -1.0F}) {
      for (const int64_t m : {1, 8, 48}) {  // one row, several, and tiles
        const std::vector<float> x(static_cast<size_t>(m * k), value);
        for (IsaLevel level : levels_here()) {
          CpuContext context = make_context(level, ActivationMode::kAuto);
          const auto weight = pack_cpu_linear(std::span(&source, 1), context);
          ASSERT_EQ(mismatch(run(*weight, x, m, context), decoded(source), x, m, n, k), "")
              << weight->kernel << ", " << m << " rows";
        }
      }
    }
  }
}

TEST(CpuLinear, NonFiniteInputReachesTheOutput) {
  for (const Format& format : all_formats()) {
    const int64_t k = format.k_step() * 2, n = 20;
    const LinearSource source = make_source(format, n, k, 4);
    for (IsaLevel level : levels_here()) {
      CpuContext context = make_context(level, ActivationMode::kAuto);
      const auto weight = pack_cpu_linear(std::span(&source, 1), context);
      for (float bad :
           {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        for (int64_t m : {1, 7}) {
          std::vector<float> x(static_cast<size_t>(m * k), 1.0F);
          x[static_cast<size_t>(k - 1)] = bad;
          const std::vector<float> y = run(*weight, x, m, context);
          ASSERT_TRUE(std::any_of(y.begin(), y.begin() + n, [](float v) {
            return !std::isfinite(v);
          })) << weight->kernel;
          ASSERT_TRUE(std::all_of(y.begin() + n, y.end(), [](float v) { return std::isfinite(v); }))
              << weight->kernel;
        }
      }
    }
  }
}

TEST(CpuLinear, ScalesThatAreNotFiniteAreRefusedByName) {
  CpuContext context = make_context(kernels::detect_isa().level, ActivationMode::kAuto, 2);
  for (DType type :
       {DType::kQ4_0, DType::kQ8_0, DType::kQ4_K, DType::kQ6_K, DType::kIQ4_XS, DType::kTQ2_0}) {
    const LinearSource source = make_source({"bad", type}, 40, 512, 1);
    const auto& rows = std::get<BlockRows>(source.data);
    // The f16 scale is first in Q4_0, Q8_0, Q4_K and IQ4_XS, last in Q6_K and TQ2_0.
    const bool last = type == DType::kQ6_K || type == DType::kTQ2_0;
    std::byte* scale =
        const_cast<std::byte*>(rows.data) + 33 * rows.row_bytes + (last ? rows.row_bytes - 2 : 0);
    for (uint16_t bits : {uint16_t{0x7C00}, uint16_t{0xFE01}}) {
      std::memcpy(scale, &bits, 2);
      try {
        pack_cpu_linear(std::span(&source, 1), context);
        FAIL() << name_of(type);
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kCorrupt);
        EXPECT_THAT(error.message(), testing::HasSubstr("test.bad"));
      }
    }
  }
}

void expect_refused(const LinearSource& source, CpuContext& context) {
  try {
    pack_cpu_linear(std::span(&source, 1), context);
    FAIL() << source.format_name();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCorrupt);
    EXPECT_THAT(error.message(), testing::HasSubstr(source.name));
  }
}

TEST(CpuLinear, ScalesOfRowsThatStayAsPublishedAreCheckedToo) {
  CpuContext context = make_context(kernels::detect_isa().level, ActivationMode::kAuto, 2);
  const float inf = std::numeric_limits<float>::infinity();
  for (const float bad : {inf, std::nanf(""), 3e38F}) {  // 3e38: times a code it is infinite
    for (const bool in_zero : {false, true}) {
      Random random{1};
      auto groups = std::make_shared<RandomGroups>(random, 40, 80, 4, 40,
                                                   GroupAffine::Form::kZeroPoint, false);
      LinearSource source{.name = "test.bad", .n = 40, .k = 80, .data = groups, .owner = {}};
      ASSERT_EQ(kernels::plan_pack(source).layout, kernels::LinearLayout::kRows);
      EXPECT_NO_THROW(pack_cpu_linear(std::span(&source, 1), context));
      (in_zero ? groups->zeros_ : groups->scales_)[2 * 33] = bad;
      expect_refused(source, context);
      expect_refused(source.slice_rows(33, 34), context);
    }
  }
}

TEST(CpuLinear, ScalesInUnusualPlacesAreChecked) {
  CpuContext context = make_context(kernels::detect_isa().level, ActivationMode::kAuto, 2);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf(""), 3e38F}) {
    const LinearSource q8_k = make_source({"q8_k", DType::kQ8_K}, 40, 512, 1);
    EXPECT_NO_THROW(pack_cpu_linear(std::span(&q8_k, 1), context));
    std::memcpy(block_bytes(q8_k) + 67 * 292, &bad, 4);
    expect_refused(q8_k, context);
  }
  const LinearSource iq1_m = empty_blocks(DType::kIQ1_M, 40, 512);
  set_block_scale(DType::kIQ1_M, 0x3C01, block_bytes(iq1_m) + 67 * 56);
  EXPECT_NO_THROW(pack_cpu_linear(std::span(&iq1_m, 1), context));
  set_block_scale(DType::kIQ1_M, 0x7C01, block_bytes(iq1_m) + 67 * 56);
  expect_refused(iq1_m, context);
  // No bits of an NVFP4 block are refused: 0x7F is 0.
  const LinearSource nvfp4 = empty_blocks(DType::kNVFP4, 40, 512);
  std::memset(block_bytes(nvfp4), 0xFF, 40 * 8 * 36);
  EXPECT_NO_THROW(pack_cpu_linear(std::span(&nvfp4, 1), context));
}

}  // namespace
}  // namespace qw
