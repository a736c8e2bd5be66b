// Linear kernels: f32 activations in plain C++.
//
// Level 3 (kernels). The code is kernels/cpu/linear_*.h; only the vector type is chosen here.
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/simd_generic.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::generic {

LinearKernelTable linear_float_kernels() noexcept {
  return table_of(FloatRows<SimdGeneric, IsaLevel::kGeneric>::rows);
}

}  // namespace qw::kernels::generic
