#include "kernels/cpu/matrix_body.h"
#include "kernels/cpu/neon/elementwise_vec.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::neon {

const MatrixOps kMatrixOps = MatrixBody<Vec>::table();

}  // namespace qw::kernels::neon
