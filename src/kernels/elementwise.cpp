#include "kernels/elementwise.h"

#include "kernels/isa.h"

namespace qw::kernels {

const ElementwiseOps& elementwise_ops(const Isa& isa) noexcept {
  if (isa.avx512) return avx512::kElementwiseOps;
  if (isa.avx2) return avx2::kElementwiseOps;
  return generic::kElementwiseOps;
}

}  // namespace qw::kernels
