#include "quant/affine_matrix.h"

#include <algorithm>
#include <utility>

#include "base/half.h"

namespace qw {

void AffineMatrix::codes(int64_t row, int64_t n_rows, uint8_t* out) const {
  std::copy_n(code_values.begin() + row * k, n_rows * k, out);
}

void AffineMatrix::scales(int64_t row, int64_t n_rows, float* out) const {
  std::copy_n(scale_values.begin() + row * n_groups, n_rows * n_groups, out);
}

void AffineMatrix::zeros(int64_t row, int64_t n_rows, float* out) const {
  std::copy_n(zero_values.begin() + row * n_groups, n_rows * n_groups, out);
}

std::shared_ptr<const AffineMatrix> with_f16_scales(const AffineMatrix& matrix) {
  auto out = std::make_shared<AffineMatrix>(matrix);
  for (float& scale : out->scale_values)
    scale = f16_to_f32(f32_to_f16(scale));
  return out;
}

std::shared_ptr<const AffineMatrix> with_f16_offsets(const AffineMatrix& matrix) {
  auto out = std::make_shared<AffineMatrix>(matrix);
  out->form = GroupAffine::Form::kOffset;
  for (size_t i = 0; i < out->zero_values.size(); ++i) {
    float& value = out->zero_values[i];
    value = f16_to_f32(f32_to_f16(-(out->scale_values[i] * value)));
  }
  return out;
}

LinearSource source_of(std::string name, std::shared_ptr<const GroupAffine> matrix) {
  LinearSource out;
  out.name = std::move(name);
  out.n = matrix->n;
  out.k = matrix->k;
  out.data = std::move(matrix);
  return out;
}

}  // namespace qw
