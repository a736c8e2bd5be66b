#include "kernels/cpu/avx2/elementwise_vec.h"
#include "kernels/cpu/elementwise_body.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avx2 {

const ElementwiseOps kElementwiseOps = ElementwiseBody<Vec>::table();

}  // namespace qw::kernels::avx2
