// H = sum of x x^T over the inputs of a linear layer: what second-order quantisation minimises the
// output error by.
//
// Level 6 (quantize). ||X (W - Q)^T||^2 = trace((W - Q) X^T X (W - Q)^T). Source: Frantar et al.
// 2022, "GPTQ".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "quantize/blocked_matrix.h"

namespace qw::quantize {

/// X^T X for inputs of k features. Memory: 4 k^2 bytes and packed copies of 256 tokens.
///
/// Sums of 256 tokens are accumulated in f32 and added to the total in order, so the result is the
/// same bits for any number of threads. The diagonal is kept in double as well: it orders the
/// columns (desc_act), where neighbours may differ by 1e-5 of themselves.
/// Error of an element: |H' - H| <= eps * (256 + n_tokens / 256) * sum |x_i x_j|.
class Hessian {
 public:
  /// `name` is the layer's, for messages. Errors: invalid_argument (k), out_of_memory.
  Hessian(std::string name, int64_t k, const MatrixTeam& team);

  /// += X^T X for one sample X [n_tokens, k], token t at x + t * stride. A sample of no tokens
  /// counts as none. Errors: invalid_argument when X is not finite or its squares exceed f32; the
  /// sums are ruined then.
  void add(const float* x, int64_t n_tokens, int64_t stride);

  const std::string& name() const noexcept { return name_; }
  int64_t k() const noexcept { return k_; }
  int64_t n_samples() const noexcept { return n_samples_; }
  int64_t n_tokens() const noexcept { return n_tokens_; }

  /// AutoGPTQ's H is 2 / samples * X^T X, where a sequence counts once. 0 without samples.
  double scale() const noexcept {
    return n_samples_ == 0 ? 0.0 : 2.0 / static_cast<double>(n_samples_);
  }
  /// (X^T X)[i, j] for j <= i, unscaled, row-major [k, k]; undefined above the diagonal.
  const float* lower() const noexcept { return lower_.data(); }
  /// (X^T X)[i, j] for any i, j.
  float at(int64_t i, int64_t j) const noexcept {
    return lower_[static_cast<size_t>(i < j ? j * k_ + i : i * k_ + j)];
  }
  /// Its diagonal, in double.
  const std::vector<double>& diagonal() const noexcept { return diagonal_; }

 private:
  std::string name_;
  int64_t k_ = 0, n_samples_ = 0, n_tokens_ = 0;
  MatrixTeam team_;
  std::vector<float> lower_;
  std::vector<double> diagonal_;
  PackedPair scratch_;
};

}  // namespace qw::quantize
