// The gated product against the two products and the activation one after the other.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "backend/cpu_linear_test_support.h"
#include "kernels/elementwise.h"

namespace qw {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace): one test program

struct CpuGatedFormat : testing::TestWithParam<Format> {};
INSTANTIATE_TEST_SUITE_P(All, CpuGatedFormat, testing::ValuesIn(all_formats()),
                         [](const auto& test) { return test.param.name; });

TEST_P(CpuGatedFormat, IsTheTwoProductsAndTheActivationOneAfterTheOther) {
  const Format& format = GetParam();
  const int64_t inter = 53, m = 67, k = format.k_step() * 3;
  const std::vector<LinearSource> halves = {make_source(format, inter, k, 31),
                                            make_source(format, inter, k, 32)};
  std::vector<float> x = make_x(m, k, 33);
  for (IsaLevel level : levels_here()) {
    CpuContext one = make_context(level, ActivationMode::kAuto, 1);
    const auto weight = pack_cpu_linear(halves, one);
    if (!can_run_gated(*weight, m)) continue;
    const auto silu_mul = kernels::elementwise_ops(one.isa).silu_mul;
    const std::vector<float> products = run(*weight, x, m, one);
    for (int n_threads : {1, 2}) {
      CpuContext context = make_context(level, ActivationMode::kAuto, n_threads);
      std::vector<float> y(static_cast<size_t>(m * inter), -7.0F);
      const CpuLinearProduct product{weight.get(), {x.data(), k, m, y.data(), inter}};
      ASSERT_FALSE(run_cpu_gated({&product, 1}, silu_mul, context));
      for (int64_t r = 0; r < m; ++r) {
        std::vector<float> gate(products.begin() + r * 2 * inter,
                                products.begin() + (r * 2 + 1) * inter);
        silu_mul(gate.data(), products.data() + (r * 2 + 1) * inter, inter);
        ASSERT_EQ(std::memcmp(y.data() + r * inter, gate.data(), gate.size() * sizeof(float)), 0)
            << weight->kernel << " row " << r;
      }
      std::vector<float> broken = x;
      for (int64_t r : {60, 13})
        broken[static_cast<size_t>(r * k)] = std::numeric_limits<float>::infinity();
      std::vector<float> y2 = y;
      const CpuLinearProduct two[] = {product,
                                      {weight.get(), {broken.data(), k, m, y2.data(), inter}}};
      const auto bad = run_cpu_gated(two, silu_mul, context);
      ASSERT_TRUE(bad);
      EXPECT_EQ(bad->product, 1);
      EXPECT_EQ(bad->row, 13);
    }
  }
}

TEST(CpuGated, NeedsTwoMatricesOfOneLayoutAndManyRows) {
  CpuContext context = make_context(kernels::detect_isa().level, ActivationMode::kAuto);
  const Format q4{"q4_0", DType::kQ4_0}, q8{"q8_0", DType::kQ8_0};
  const auto pack = [&](std::vector<LinearSource> parts) {
    return pack_cpu_linear(parts, context);
  };
  const auto equal = pack({make_source(q4, 32, 64, 1), make_source(q4, 32, 64, 2)});
  EXPECT_FALSE(can_run_gated(*equal, 1));
  const kernels::LinearKernel* kernel = kernels::find_linear_kernel(
      context.isa, kernels::LinearLayout::kQ4_0, kernels::ActivationForm::kInt8);
  EXPECT_EQ(can_run_gated(*equal, 512), kernel->tile_panels > 1);
  EXPECT_FALSE(can_run_gated(*pack({make_source(q4, 32, 64, 1)}), 512));
  EXPECT_FALSE(can_run_gated(*pack({make_source(q4, 32, 64, 1), make_source(q8, 32, 64, 2)}), 512));
  EXPECT_FALSE(can_run_gated(*pack({make_source(q4, 32, 64, 1), make_source(q4, 48, 64, 2)}), 512));
}

}  // namespace
}  // namespace qw
