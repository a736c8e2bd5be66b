// Arithmetic of low-rank changes to weights, in f64: what adapters make of a matrix.
//
// Level 5 (model). Sources: Hu et al. 2021 (LoRA), Liu et al. 2024 (DoRA), peft's layers.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "model/adapter_file.h"
#include "quant/linear_source.h"

namespace qw {

/// Errors: corrupt, naming the module and the adapter's file, when `got` is not [n, k].
void check_adapter_shape(const std::string& module, const LinearSource& got, int64_t n, int64_t k,
                         const std::string& path);

/// Rows of s B A, with A [r, k] held in f32.
class DeltaRows {
 public:
  /// `delta` must outlive it. scale: s, the file's scaling included.
  DeltaRows(const LowRankDelta& delta, double scale);
  /// out[k] = s B[row] A. Thread safe.
  void row(int64_t row, std::span<double> out) const;
  /// What a plain row of W and the delta come to: (f - 1) W + f s B A, with f = 1 for LoRA and
  /// f = m / ||W + s B A|| for DoRA; `delta` holds s B A and is replaced.
  void finish(int64_t row, std::span<const float> w, std::span<double> delta) const;
  /// m / ||W + s B A|| of a row (DoRA).
  double factor(int64_t row, std::span<const float> w, std::span<const double> delta) const;

 private:
  const LowRankDelta& delta_;
  double scale_;
  std::vector<float> a_;
};

/// The factors of all rows of W, one at a time (DoRA).
std::vector<float> dora_row_factors(const LinearSource& w, const LowRankDelta& delta, double scale);

/// table[t] += scale * B A[:, t] for every token t; table is [vocab, hidden].
void add_embedding_delta(std::vector<float>& table, int64_t vocab, int64_t hidden,
                         const EmbeddingDelta& delta, double scale);

}  // namespace qw
