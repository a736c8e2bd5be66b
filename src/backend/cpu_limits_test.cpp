#include "backend/cpu_limits.h"

#include <gtest/gtest.h>

#include "kernels/limits.h"

namespace qw {
namespace {

TEST(CpuLimits, AreOfThisWorld) {
  ThreadPool pool(1);
  const kernels::Isa isa = kernels::detect_isa();
  const HostLimits limits = measure_limits(isa, pool);
  EXPECT_GT(limits.read_gb_per_second, 0.1);
  EXPECT_LT(limits.read_gb_per_second, 1000);
  EXPECT_GT(limits.f32_gflop_per_second, 0.01);
  EXPECT_LT(limits.f32_gflop_per_second, 1000);
  EXPECT_GT(limits.int8_gop_per_second, 0.01);
  EXPECT_EQ(limits.bf16_gflop_per_second > 0, has(isa, kernels::IsaLevel::kAvx512Bf16));
}

TEST(CpuLimits, AreMeasuredAgain) {
  ThreadPool pool(2);
  const kernels::Isa isa = kernels::detect_isa();
  LimitProbe probe(isa, pool);
  const HostLimits start = probe.at_start();
  const std::array<ComputeUnit, 1> int8 = {ComputeUnit::kInt8};
  const HostLimits now = probe.now(int8);
  EXPECT_NE(now.read_gb_per_second, start.read_gb_per_second);
  EXPECT_NE(now.int8_gop_per_second, start.int8_gop_per_second);
  EXPECT_EQ(now.f32_gflop_per_second, start.f32_gflop_per_second) << "nobody asked for it";
  EXPECT_EQ(probe.at_start().read_gb_per_second, start.read_gb_per_second);
  // Other processes may take their part between the two, but a probe of the caches would be ten
  // times as fast.
  EXPECT_LT(now.read_gb_per_second, 6 * start.read_gb_per_second);
  EXPECT_LT(now.int8_gop_per_second, 6 * start.int8_gop_per_second);
  const HostLimits all = probe.now(kComputeUnits);
  EXPECT_NE(all.f32_gflop_per_second, start.f32_gflop_per_second);
  EXPECT_EQ(all.bf16_gflop_per_second > 0, start.bf16_gflop_per_second > 0);
}

TEST(CpuLimits, AMeasurementEndsWhenItIsCancelled) {
  ThreadPool pool(1);
  CancelFlag cancel;
  LimitProbe probe(kernels::detect_isa(), pool, &cancel);
  cancel.cancel();
  EXPECT_THROW(probe.now({}), Error);
}

TEST(CpuLimits, TheReadProbeSeesEveryByte) {
  std::vector<uint8_t> bytes(4096, 0);
  const kernels::LimitProbes probes = kernels::limit_probes(kernels::detect_isa());
  const uint64_t zero = probes.read(bytes.data(), 4096);
  for (size_t i = 0; i < bytes.size(); i += 37) {
    bytes[i] = 1;
    EXPECT_NE(probes.read(bytes.data(), 4096), zero) << i;
    bytes[i] = 0;
  }
}

}  // namespace
}  // namespace qw
