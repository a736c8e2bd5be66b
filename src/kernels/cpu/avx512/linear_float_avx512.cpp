// Linear kernels: f32 activations in AVX-512.
//
// Level 3 (kernels). The code is kernels/cpu/linear_*.h; only the vector type is chosen here.
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avx512 {

LinearKernelTable linear_float_kernels() noexcept {
  return table_of(FloatRows<SimdAvx512<false, false>, IsaLevel::kAvx512>::rows);
}

}  // namespace qw::kernels::avx512
