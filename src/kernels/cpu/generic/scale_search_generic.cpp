#include "kernels/cpu/generic/elementwise_vec.h"
#include "kernels/cpu/scale_search_body.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::generic {

const ScaleSearchOps kScaleSearchOps = ScaleSearchBody<Vec>::table();

}  // namespace qw::kernels::generic
