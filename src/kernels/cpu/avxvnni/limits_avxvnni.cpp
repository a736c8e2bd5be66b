// Probes of what this CPU can do at most: AVX-VNNI.
//
// Level 3 (kernels). The code is kernels/cpu/limit_probes.h; only the vector type is chosen here.
#include "kernels/cpu/limit_probes.h"
#include "kernels/cpu/simd_avx2.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avxvnni {

LimitProbes limit_probes() noexcept {
  return probes_of<SimdAvx2<true>>();
}

}  // namespace qw::kernels::avxvnni
