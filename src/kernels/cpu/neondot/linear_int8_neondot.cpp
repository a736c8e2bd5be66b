// Linear kernels: 8-bit activations in NEON with SDOT.
//
// Level 3 (kernels). The code is kernels/cpu/linear_*.h; only the vector type is chosen here.
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/simd_neon.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::neondot {

LinearKernelTable linear_int8_kernels() noexcept {
  return table_of(Int8Rows<SimdNeon<true>, IsaLevel::kNeonDot>::rows);
}

}  // namespace qw::kernels::neondot
