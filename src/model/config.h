// What a Qwen2-family network is made of, read from config.json or GGUF metadata.
//
// Level 5 (model). No silent default for anything that changes numbers (eps, rope_theta, eos,
// tied embeddings): a missing field is an error that names it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/quantised_modules.h"

namespace qw {

enum class RopeScaling { kNone, kLinear, kDynamic, kYarn };

struct RopeConfig {
  double theta = 0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1;
  int64_t original_max_positions = 0;  // YaRN's correction range
  double beta_fast = 32, beta_slow = 1;
  std::optional<double> attention_factor;  // YaRN; default 0.1 ln(factor) + 1
};

struct MoeConfig {
  int n_experts = 0, top_k = 0;
  int64_t expert_intermediate = 0, shared_intermediate = 0;  // 0: no shared expert
  bool norm_topk_prob = false;
  int decoder_sparse_step = 1;
  std::vector<int> mlp_only_layers;
};

struct ModelConfig {
  static constexpr int kMaxLayers = 4096;  // far above any published model

  std::string architecture;  // "Qwen2ForCausalLM", "Qwen2MoeForCausalLM"
  int64_t hidden = 0, intermediate = 0, vocab = 0;
  int n_layers = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
  double rms_norm_eps = 0;
  bool tied_embeddings = false;
  int64_t max_positions = 0;  // max_position_embeddings
  RopeConfig rope;
  int64_t sliding_window = 0;  // 0: none
  int max_window_layers = 0;   // layers with index >= this are windowed, unless
  std::vector<bool>
      layer_is_windowed;  // says so for each layer (`layer_types`); empty: it does not
  std::optional<MoeConfig> moe;
  QuantizationConfig quantization;
  std::vector<int32_t> eos_ids;  // config.json / GGUF; generation_config may say more
  std::optional<int32_t> bos_id, pad_id;

  bool layer_is_sparse(int layer) const;
  int64_t window_of_layer(int layer) const;  // 0: full attention
  int64_t n_parameters() const;              // all of them
  int64_t n_parameters_active() const;  // those one token uses, both vocabulary matrices excluded

  /// Errors: corrupt (missing field, wrong type, impossible sizes), unsupported (architecture,
  /// activation, rope type, quantisation method; says what is supported).
  static ModelConfig from_checkpoint(const Checkpoint& checkpoint);

 private:
  static ModelConfig from_hf(const Checkpoint& checkpoint);
  static ModelConfig from_gguf(const Checkpoint& checkpoint);
  /// Impossible sizes and combinations: Error{kCorrupt}, naming the field.
  void check(const std::string& file) const;
};

}  // namespace qw
