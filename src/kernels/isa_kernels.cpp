#include "kernels/isa_kernels.h"

#include "kernels/scale_search.h"

namespace qw::kernels {

namespace {

// In the order of IsaLevel.
constexpr IsaKernels kRows[] = {
    {IsaLevel::kGeneric, generic::linear_int8_kernels, generic::linear_float_kernels,
     generic::limit_probes, &generic::kElementwiseOps, &generic::kAttentionOps, &generic::kKvOps,
     &generic::kMatrixOps, &generic::kScaleSearchOps},
#if defined(__x86_64__)
    {IsaLevel::kAvx2, avx2::linear_int8_kernels, avx2::linear_float_kernels, avx2::limit_probes,
     &avx2::kElementwiseOps, &avx2::kAttentionOps, &avx2::kKvOps, &avx2::kMatrixOps,
     &avx2::kScaleSearchOps},
    {IsaLevel::kAvxVnni, avxvnni::linear_int8_kernels, nullptr, avxvnni::limit_probes, nullptr,
     nullptr, nullptr, nullptr, nullptr},
    {IsaLevel::kAvx512, avx512::linear_int8_kernels, avx512::linear_float_kernels,
     avx512::limit_probes, &avx512::kElementwiseOps, &avx512::kAttentionOps, &avx512::kKvOps,
     &avx512::kMatrixOps, &avx512::kScaleSearchOps},
    {IsaLevel::kAvx512Vnni, avx512vnni::linear_int8_kernels, nullptr, avx512vnni::limit_probes,
     nullptr, nullptr, nullptr, nullptr, nullptr},
    {IsaLevel::kAvx512Bf16, nullptr, avx512bf16::linear_bf16_kernels, avx512bf16::limit_probes,
     nullptr, nullptr, nullptr, nullptr, nullptr},
#elif defined(__aarch64__)
    {IsaLevel::kNeon, neon::linear_int8_kernels, neon::linear_float_kernels, neon::limit_probes,
     &neon::kElementwiseOps, &neon::kAttentionOps, &neon::kKvOps, &neon::kMatrixOps,
     &neon::kScaleSearchOps},
    {IsaLevel::kNeonDot, neondot::linear_int8_kernels, nullptr, neondot::limit_probes, nullptr,
     nullptr, nullptr, nullptr, nullptr},
#endif
};

/// The best that `isa` allows of one kind of kernels; generic has every kind.
template <class T>
T best(const Isa& isa, T IsaKernels::*kind) noexcept {
  T out = kRows[0].*kind;
  for (const IsaKernels& row : kRows) {
    if (has(isa, row.level) && row.*kind != nullptr) out = row.*kind;
  }
  return out;
}

}  // namespace

std::vector<const IsaKernels*> isa_kernels(const Isa& isa) {
  std::vector<const IsaKernels*> out;
  for (const IsaKernels& row : kRows) {
    if (has(isa, row.level)) out.push_back(&row);
  }
  return out;
}

const ElementwiseOps& elementwise_ops(const Isa& isa) noexcept {
  return *best(isa, &IsaKernels::elementwise);
}

const AttentionOps& attention_ops(const Isa& isa) noexcept {
  return *best(isa, &IsaKernels::attention);
}

const KvOps& kv_ops(const Isa& isa) noexcept {
  return *best(isa, &IsaKernels::kv);
}

const MatrixOps& matrix_ops(const Isa& isa) noexcept {
  return *best(isa, &IsaKernels::matrix);
}

const ScaleSearchOps& scale_search_ops(const Isa& isa) noexcept {
  return *best(isa, &IsaKernels::scale_search);
}

LimitProbes limit_probes(const Isa& isa) noexcept {
  return best(isa, &IsaKernels::limit_probes)();
}

}  // namespace qw::kernels
