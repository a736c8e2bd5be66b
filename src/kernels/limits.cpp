#include "kernels/limits.h"

#include "kernels/isa.h"

namespace qw::kernels {

LimitProbes limit_probes(const Isa& isa) noexcept {
#if defined(__x86_64__)
  if (isa.avx512bf16) return avx512bf16::limit_probes();
  if (isa.avx512vnni) return avx512vnni::limit_probes();
  if (isa.avx512) return avx512::limit_probes();
  if (isa.avxvnni) return avxvnni::limit_probes();
  if (isa.avx2) return avx2::limit_probes();
#endif
  return generic::limit_probes();
}

}  // namespace qw::kernels
