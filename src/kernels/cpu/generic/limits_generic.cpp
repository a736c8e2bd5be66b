// Probes of what this CPU can do at most: plain C++.
//
// Level 3 (kernels). The code is kernels/cpu/limit_probes.h; only the vector type is chosen here.
#include "kernels/cpu/limit_probes.h"
#include "kernels/cpu/simd_generic.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::generic {

LimitProbes limit_probes() noexcept {
  return probes_of<SimdGeneric>();
}

}  // namespace qw::kernels::generic
