// Rotary position embedding: inverse frequencies and the tables of one step.
//
// Level 5 (model). Source: transformers' modeling_rope_utils.py, followed to the f32 rounding,
// so that long contexts agree: a wrong last bit of a frequency is a wrong angle at 32768.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/batch_plan.h"
#include "model/config.h"

namespace qw {

class Rope {
 public:
  explicit Rope(const ModelConfig& config);

  /// [head_dim / 2] inverse frequencies for a sequence of this length; the length matters for
  /// dynamic NTK scaling only:
  ///   none     theta^(-2i/d)
  ///   linear   theta^(-2i/d) / factor
  ///   dynamic  base^(-2i/d), base = theta * (factor * L / M - (factor - 1))^(d / (d - 2)),
  ///            L = max(length, M), M = max_position_embeddings
  ///   YaRN     blend of theta^(-2i/d) and the same / factor over the correction range
  std::vector<float> inverse_frequencies(int64_t sequence_length) const;

  /// What cos and sin are multiplied by: YaRN's attention factor, else 1.
  float attention_scaling() const { return attention_scaling_; }

  /// cos, sin [T, head_dim / 2] of every token of the plan: cos(position * inv_freq) * scaling.
  void fill_tables(const BatchPlan& plan, std::vector<float>& cos, std::vector<float>& sin) const;

 private:
  RopeConfig config_;
  int head_dim_;
  int64_t max_positions_;
  float attention_scaling_ = 1.0f;
  std::vector<float> fixed_;  // for every length, unless dynamic
};

}  // namespace qw
