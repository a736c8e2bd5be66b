// Linear kernels: 8-bit activations in AVX-512 with vpdpbusd.
//
// Level 3 (kernels). The code is kernels/cpu/linear_*.h; only the vector type is chosen here.
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avx512vnni {

LinearKernelTable linear_int8_kernels() noexcept {
  return table_of(Int8Rows<SimdAvx512<true, false>, IsaLevel::kAvx512Vnni>::rows);
}

}  // namespace qw::kernels::avx512vnni
