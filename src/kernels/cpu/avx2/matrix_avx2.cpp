#include "kernels/cpu/avx2/elementwise_vec.h"
#include "kernels/cpu/matrix_body.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avx2 {

const MatrixOps kMatrixOps = MatrixBody<Vec>::table();

}  // namespace qw::kernels::avx2
