// Linear kernels: f32 activations in AVX2 with FMA.
//
// Level 3 (kernels). The code is kernels/cpu/linear_*.h; only the vector type is chosen here.
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/simd_avx2.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avx2 {

LinearKernelTable linear_float_kernels() noexcept {
  return table_of(FloatRows<SimdAvx2<false>, IsaLevel::kAvx2>::rows);
}

}  // namespace qw::kernels::avx2
