#include "kernels/cpu/neon/elementwise_vec.h"
#include "kernels/cpu/scale_search_body.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::neon {

const ScaleSearchOps kScaleSearchOps = ScaleSearchBody<Vec>::table();

}  // namespace qw::kernels::neon
