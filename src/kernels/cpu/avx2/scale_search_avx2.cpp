#include "kernels/cpu/avx2/elementwise_vec.h"
#include "kernels/cpu/scale_search_body.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avx2 {

const ScaleSearchOps kScaleSearchOps = ScaleSearchBody<Vec>::table();

}  // namespace qw::kernels::avx2
