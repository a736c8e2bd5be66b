// Linear kernels: f32 activations in NEON.
//
// Level 3 (kernels). The code is kernels/cpu/linear_*.h; only the vector type is chosen here.
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/simd_neon.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::neon {

LinearKernelTable linear_float_kernels() noexcept {
  return table_of(FloatRows<SimdNeon<false>, IsaLevel::kNeon>::rows);
}

}  // namespace qw::kernels::neon
