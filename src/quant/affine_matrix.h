// A matrix on groups of scales and zero points, held in memory one code to a byte: what quantisers
// make and writers pack.
//
// Level 2 (quant).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "quant/linear_source.h"

namespace qw {

/// W[o, i] = scale[o, g(i)] * (q[o, i] - zero[o, g(i)]). Fill the fields of GroupAffine (n, k,
/// bits, group_size, n_groups, group_of) and these, then share it as const.
class AffineMatrix final : public GroupAffine {
 public:
  std::vector<uint8_t> code_values;  // [n, k]
  std::vector<float> scale_values;   // [n, n_groups]
  std::vector<float> zero_values;    // [n, n_groups]: integers, or of kOffset offsets

  void codes(int64_t row, int64_t n_rows, uint8_t* out) const override;
  void scales(int64_t row, int64_t n_rows, float* out) const override;
  void zeros(int64_t row, int64_t n_rows, float* out) const override;
};

/// The same with scales as f16 holds them, which is how they are published.
std::shared_ptr<const AffineMatrix> with_f16_scales(const AffineMatrix& matrix);

/// The same with offsets -(scale * zero), rounded to f16, in the place of zero points
/// (GroupAffine::Form::kOffset): scales must be f16 values.
std::shared_ptr<const AffineMatrix> with_f16_offsets(const AffineMatrix& matrix);

/// A source over such a matrix.
LinearSource source_of(std::string name, std::shared_ptr<const GroupAffine> matrix);

}  // namespace qw
