#include "kernels/cpu/avx512/elementwise_vec.h"
#include "kernels/cpu/elementwise_body.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avx512 {

const ElementwiseOps kElementwiseOps = ElementwiseBody<Vec>::table();

}  // namespace qw::kernels::avx512
