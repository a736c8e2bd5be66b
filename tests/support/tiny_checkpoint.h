// A checkpoint small enough to be made anew by every test, and changed before it is written.
//
// Part of the tests; header only, so that a folder's unit tests need no other library.
#pragma once

#include <cmath>
#include <cstdint>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "backend/batch_plan.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/test_support.h"
#include "model/model.h"

namespace qw::test {

struct TinyTensor {
  Shape shape;
  std::vector<float> values;
};

/// Sizes of a network; the rest of its config can be changed afterwards.
struct TinyShape {
  bool tied = false;
  int64_t hidden = 16, intermediate = 24, vocab = 32;
  int n_layers = 2, n_heads = 4, n_kv_heads = 2;
  int n_experts = 0;  // 0: dense layers; else two experts per token and a shared one
  int64_t expert_intermediate = 12, shared_intermediate = 20;
};

/// Matrices are uniform with variance 1 / columns, norms around 1, biases around 0; always the
/// same.
class TinyCheckpoint {
 public:
  explicit TinyCheckpoint(bool tied = false) : TinyCheckpoint(TinyShape{.tied = tied}) {}
  explicit TinyCheckpoint(const TinyShape& shape) {
    config = {{"architectures", {"Qwen2ForCausalLM"}},
              {"model_type", "qwen2"},
              {"hidden_act", "silu"},
              {"hidden_size", shape.hidden},
              {"intermediate_size", shape.intermediate},
              {"vocab_size", shape.vocab},
              {"num_hidden_layers", shape.n_layers},
              {"num_attention_heads", shape.n_heads},
              {"num_key_value_heads", shape.n_kv_heads},
              {"rms_norm_eps", 1e-6},
              {"rope_theta", 1e4},
              {"tie_word_embeddings", shape.tied},
              {"max_position_embeddings", 64},
              {"eos_token_id", shape.vocab - 1}};
    if (shape.n_experts > 0) {
      config["architectures"] = {"Qwen2MoeForCausalLM"};
      config["model_type"] = "qwen2_moe";
      config["num_experts"] = shape.n_experts;
      config["num_experts_per_tok"] = 2;
      config["moe_intermediate_size"] = shape.expert_intermediate;
      config["shared_expert_intermediate_size"] = shape.shared_intermediate;
      config["norm_topk_prob"] = true;
      config["decoder_sparse_step"] = 1;
    }
    add("model.embed_tokens.weight", {shape.vocab, shape.hidden});
    if (!shape.tied) add("lm_head.weight", {shape.vocab, shape.hidden});
    add("model.norm.weight", {shape.hidden});
    for (int layer = 0; layer < shape.n_layers; ++layer)
      add_layer(shape, "model.layers." + std::to_string(layer) + ".");
  }

  void add(const std::string& name, const std::vector<int64_t>& shape) {
    TinyTensor& tensor = tensors[name];
    tensor.shape = Shape(shape, name);
    const bool is_bias = name.ends_with(".bias"), is_matrix = shape.size() > 1;
    const float scale =
        is_matrix ? std::sqrt(12.0f / static_cast<float>(tensor.shape.cols())) : 1.0f;
    const float middle = is_matrix || is_bias ? 0.0f : 1.0f;
    for (int64_t i = 0; i < tensor.shape.n_elems(); ++i)
      tensor.values.push_back(middle + scale * next());
  }

  /// Writes the directory (again); it goes with this object.
  std::string write() const {
    directory_.write("config.json", config.dump());
    std::vector<SafetensorsEntry> entries;
    for (const auto& [name, tensor] : tensors)
      entries.push_back({name, DType::kF32, tensor.shape});
    SafetensorsWriter out(directory_ / "model.safetensors", entries);
    for (const auto& [name, tensor] : tensors)
      out.write(std::as_bytes(std::span(tensor.values)));
    out.finish();
    return directory_.path();
  }

  std::shared_ptr<const Checkpoint> open() const { return Checkpoint::open(write()); }

  std::string path() const { return directory_.path(); }  // once written

  nlohmann::json config;
  std::map<std::string, TinyTensor> tensors;

 private:
  void add_layer(const TinyShape& s, const std::string& prefix) {
    const int64_t kv = s.hidden / s.n_heads * s.n_kv_heads;
    add(prefix + "input_layernorm.weight", {s.hidden});
    add(prefix + "post_attention_layernorm.weight", {s.hidden});
    add(prefix + "self_attn.q_proj.weight", {s.hidden, s.hidden});
    add(prefix + "self_attn.k_proj.weight", {kv, s.hidden});
    add(prefix + "self_attn.v_proj.weight", {kv, s.hidden});
    add(prefix + "self_attn.q_proj.bias", {s.hidden});
    add(prefix + "self_attn.k_proj.bias", {kv});
    add(prefix + "self_attn.v_proj.bias", {kv});
    add(prefix + "self_attn.o_proj.weight", {s.hidden, s.hidden});
    if (s.n_experts == 0) return add_ffn(prefix + "mlp.", s.intermediate, s.hidden);
    add(prefix + "mlp.gate.weight", {s.n_experts, s.hidden});
    add(prefix + "mlp.shared_expert_gate.weight", {1, s.hidden});
    add_ffn(prefix + "mlp.shared_expert.", s.shared_intermediate, s.hidden);
    for (int e = 0; e < s.n_experts; ++e)
      add_ffn(prefix + "mlp.experts." + std::to_string(e) + ".", s.expert_intermediate, s.hidden);
  }
  void add_ffn(const std::string& prefix, int64_t intermediate, int64_t hidden) {
    add(prefix + "gate_proj.weight", {intermediate, hidden});
    add(prefix + "up_proj.weight", {intermediate, hidden});
    add(prefix + "down_proj.weight", {hidden, intermediate});
  }
  /// Uniform in [-1/2, 1/2).
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(state_ >> 40) / static_cast<float>(1 << 24) - 0.5f;
  }

  uint64_t state_ = 1;
  TempDir directory_;
};

/// A model with its backend and what was warned of while loading it.
struct Loaded {
  std::unique_ptr<Backend> backend = make_reference_backend({});
  std::vector<std::string> warnings;
  std::unique_ptr<Model> model;
};

inline Loaded load(const TinyCheckpoint& tiny, const CancelFlag* cancel = nullptr) {
  Loaded out;
  LoadOptions options;
  options.quiet = true;
  options.cancel = cancel;
  options.on_warning = [&](const std::string& text) { out.warnings.push_back(text); };
  out.model = Model::load(tiny.open(), *out.backend, options);
  return out;
}

/// One sequence in page 0, logits of its last token.
inline BatchPlan plan_of(const std::vector<int32_t>& tokens, int32_t adapter = -1) {
  BatchPlan plan;
  plan.tokens = tokens;
  for (int32_t i = 0; i < static_cast<int32_t>(tokens.size()); ++i) {
    plan.positions.push_back(i);
    plan.slots.push_back(i);
  }
  const auto n = static_cast<int32_t>(tokens.size());
  plan.seq_begin = {0, n};
  plan.seq_context = {n};
  plan.seq_rope_length = {n};
  plan.adapters = {adapter};
  plan.page_begin = {0, 1};
  plan.pages = {0};
  plan.logit_rows = {n - 1};
  return plan;
}

/// Appends a sequence to the plan, in a page of its own (pages of `page_tokens`).
inline void append_sequence(BatchPlan& plan, const std::vector<int32_t>& tokens, int32_t adapter,
                            int page_tokens) {
  const auto page = static_cast<int32_t>(plan.pages.size());
  const auto n = static_cast<int32_t>(tokens.size());
  for (int32_t i = 0; i < n; ++i) {
    plan.tokens.push_back(tokens[static_cast<size_t>(i)]);
    plan.positions.push_back(i);
    plan.slots.push_back(page * page_tokens + i);
  }
  plan.seq_begin.push_back(plan.seq_begin.back() + n);
  plan.seq_context.push_back(n);
  plan.seq_rope_length.push_back(n);
  plan.adapters.push_back(adapter);
  plan.pages.push_back(page);
  plan.page_begin.push_back(page + 1);
  plan.logit_rows.push_back(plan.seq_begin.back() - 1);
}

/// Logits of the plan, with an f32 cache of its own.
inline std::vector<float> run(Loaded& loaded, const BatchPlan& plan) {
  const auto kv = loaded.model->make_kv(static_cast<int64_t>(plan.pages.size()), DType::kF32);
  std::vector<float> logits(plan.logit_rows.size() *
                            static_cast<size_t>(loaded.model->config().vocab));
  loaded.model->forward(plan, *kv, logits.data());
  return logits;
}

}  // namespace qw::test
