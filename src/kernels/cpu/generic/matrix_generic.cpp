#include "kernels/cpu/generic/elementwise_vec.h"
#include "kernels/cpu/matrix_body.h"
#include "kernels/isa_exports.h"

namespace qw::kernels::generic {

const MatrixOps kMatrixOps = MatrixBody<Vec>::table();

}  // namespace qw::kernels::generic
