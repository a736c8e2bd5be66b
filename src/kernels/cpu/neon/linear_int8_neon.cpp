// Linear kernels: 8-bit activations in NEON, by multiplications that widen.
//
// Level 3 (kernels). The code is kernels/cpu/linear_*.h; only the vector type is chosen here.
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/simd_neon.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::neon {

LinearKernelTable linear_int8_kernels() noexcept {
  return table_of(Int8Rows<SimdNeon<false>, IsaLevel::kNeon>::rows);
}

}  // namespace qw::kernels::neon
