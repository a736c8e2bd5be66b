// What AWQ needs: what the inputs of a matrix are like, by how much each is divided before weights
// are rounded (and its weights multiplied), and AutoAWQ's own grids, clipping and rounding.
//
// Level 6 (quantize). Source: Lin et al. 2023, "AWQ"; AutoAWQ 0.2.7, quantizer.py.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "quant/affine_matrix.h"
#include "quant/awq.h"
#include "quantize/hessian.h"

namespace qw::quantize {

struct AwqOptions {
  enum class Mode {
    kBetter,     // lower output error in the same format (docs/quantising-awq.md says by what)
    kReference,  // AutoAWQ's behaviour
  };
  Mode mode = Mode::kBetter;
  int64_t group_size = 128;  // -1: one group of all inputs
  AwqVersion version = AwqVersion::kGemm;
  double damp = 0.01;  // kBetter: as GptqOptions::damp
};

/// Scales of a group that AutoAWQ tries: ratio i / kAwqRatios.
inline constexpr int kAwqRatios = 20;

/// The inputs of a matrix, from one pass over them: second moments, mean sizes and some of the
/// tokens themselves.
class AwqInputs {
 public:
  /// Of n_tokens that will come, every max(1, n_tokens / n_kept)-th is kept; 0: none.
  AwqInputs(std::string name, int64_t k, const MatrixTeam& team, int64_t n_tokens = 0,
            int64_t n_kept = 0);

  /// One sample, as Hessian::add.
  void add(const float* x, int64_t n_tokens);

  const Hessian& moments() const noexcept { return moments_; }
  std::vector<float> mean_sizes() const;  // of |x|, [k]
  const std::vector<float>& kept() const noexcept { return kept_; }  // [tokens, k]

 private:
  Hessian moments_;
  std::vector<double> sizes_;
  std::vector<float> kept_;
  int64_t step_ = 0;
};

/// The mean over the rows of all parts of |w| / (largest |w| of its group + 1e-6), [k].
std::vector<float> awq_weight_sizes(std::span<const LinearSource> parts, int64_t group_size,
                                    const MatrixTeam& team);

/// s = max(x^r / (w^(1 - r) + 1e-4), 1e-4) / sqrt(max s * min s), where that is finite; else 1.
std::vector<float> awq_scales(std::span<const float> x_sizes, std::span<const float> w_sizes,
                              double ratio);

/// Rows [row, row + n_rows) of W diag(scales), each divided by divisors[row + r]; empty: 1.
std::vector<float> scaled_rows(const LinearSource& w, int64_t row, int64_t n_rows,
                               std::span<const float> scales, std::span<const float> divisors = {});
/// All of them, as a source of that name.
LinearSource scaled_source(const LinearSource& w, std::span<const float> scales,
                           std::span<const float> divisors = {});

/// Rounds n rows of k weights to AutoAWQ's grids of each group, in f32:
///   scale = max(max w - min w, 1e-5) / 15;  zero = clamp(-round(min w / scale), 0, 15)
///   w' = (clamp(round(w / scale) + zero, 0, 15) - zero) * scale, ties to even
void awq_round(float* w, int64_t n, int64_t k, int64_t group_size);

/// sum over rows d of D [n, k] of d M d^T, M the second moments: n * (k^2 + k) multiplications in
/// f32, sums of 384 columns in f64. Of D = W' - W it is the sum of squares of what changes in the
/// outputs, over all tokens.
double output_error(const MatrixTeam& team, const Hessian& moments, const float* d, int64_t n);

/// AutoAWQ's clipping: for each row and group the bound c, of ten from the largest |w| down to 0.55
/// of it, whose clamp(w, -c, c), rounded, changes the group's share of the output least, over the
/// tokens x [n_tokens, k]. Returns [n, groups].
std::vector<float> awq_clip(const MatrixTeam& team, const float* w, int64_t n, int64_t k,
                            int64_t group_size, const std::vector<float>& x);
/// w = clamp(w, -bound, bound) of its row and group.
void apply_clip(float* w, int64_t n, int64_t k, int64_t group_size,
                const std::vector<float>& bounds);

/// AutoAWQ's last step: weights, grids and codes in f16 arithmetic.
std::shared_ptr<const AffineMatrix> awq_publish_rounding(const float* w, int64_t n, int64_t k,
                                                         int64_t group_size);

}  // namespace qw::quantize
