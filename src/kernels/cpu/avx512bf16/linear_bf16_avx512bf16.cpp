// Linear kernels: bf16 weights and activations with vdpbf16ps.
//
// Level 3 (kernels). The code is kernels/cpu/linear_float.h; only the vector type is chosen here.
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avx512bf16 {

namespace {
constexpr LinearKernel kRows[] = {bf16_row<SimdAvx512<true, true>>(IsaLevel::kAvx512Bf16)};
}

LinearKernelTable linear_bf16_kernels() noexcept {
  return table_of(kRows);
}

}  // namespace qw::kernels::avx512bf16
