#include "kernels/attention.h"

#include "kernels/isa.h"

namespace qw::kernels {

const AttentionOps& attention_ops(const Isa& isa) noexcept {
  if (isa.avx512) return avx512::kAttentionOps;
  if (isa.avx2) return avx2::kAttentionOps;
  return generic::kAttentionOps;
}

}  // namespace qw::kernels
