#include "kernels/cpu/avx512/elementwise_vec.h"
#include "kernels/cpu/scale_search_body.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avx512 {

const ScaleSearchOps kScaleSearchOps = ScaleSearchBody<Vec>::table();

}  // namespace qw::kernels::avx512
