#include "kernels/cpu/avx512/elementwise_vec.h"
#include "kernels/cpu/matrix_body.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::avx512 {

const MatrixOps kMatrixOps = MatrixBody<Vec>::table();

}  // namespace qw::kernels::avx512
