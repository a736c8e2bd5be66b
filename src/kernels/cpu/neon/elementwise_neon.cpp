#include "kernels/cpu/elementwise_body.h"
#include "kernels/cpu/neon/elementwise_vec.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::neon {

const ElementwiseOps kElementwiseOps = ElementwiseBody<Vec>::table();

}  // namespace qw::kernels::neon
