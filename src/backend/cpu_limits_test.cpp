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
