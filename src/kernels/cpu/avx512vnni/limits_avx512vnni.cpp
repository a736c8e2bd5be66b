// Probes of what this CPU can do at most: AVX-512 with VNNI.
//
// Level 3 (kernels). The code is kernels/cpu/limit_probes.h; only the vector type is chosen here.
#include "kernels/cpu/limit_probes.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avx512vnni {

LimitProbes limit_probes() noexcept {
  return probes_of<SimdAvx512<true, false>>();
}

}  // namespace qw::kernels::avx512vnni
