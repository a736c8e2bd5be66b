#include "kernels/cpu/elementwise_body.h"
#include "kernels/cpu/generic/elementwise_vec.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::generic {

const ElementwiseOps kElementwiseOps = ElementwiseBody<Vec>::table();

}  // namespace qw::kernels::generic
