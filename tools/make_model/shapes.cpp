#include "make_model/shapes.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace qw::make_model {

namespace {

// The published configurations (config.json of each checkpoint).
const std::vector<ModelShape> kShapes = {
    {"0.5B", 1024, 2816, 24, 16, 16, 151936, true, 1e6},
    {"1.8B", 2048, 5504, 24, 16, 16, 151936, false, 1e6},
    {"4B", 2560, 6912, 40, 20, 20, 151936, false, 5e6},
    {"7B", 4096, 11008, 32, 32, 32, 151936, false, 1e6},
    {"14B", 5120, 13696, 40, 40, 40, 152064, false, 1e6},
    {"32B", 5120, 27392, 64, 40, 8, 152064, false, 1e6},
    {"72B", 8192, 24576, 80, 64, 64, 152064, false, 1e6},
    {"110B", 8192, 49152, 80, 64, 8, 152064, false, 1e6},
    {"MoE-A2.7B", 2048, 5632, 24, 16, 16, 151936, false, 1e6, 60, 4, 1408, 5632},
    {"tiny", 256, 768, 4, 4, 2, 1024, true, 1e6},
};

/// Names differ between Hugging Face and GGUF; everything else is shared.
struct Names {
  bool gguf;
  std::string pick(const char* hf, const char* gg) const { return gguf ? gg : hf; }
};

void add_ffn(std::vector<Tensor>& list, const ModelShape& s, const std::string& prefix,
             const Names& names, int layer) {
  const auto linear = [&](const std::string& name, int64_t n, int64_t k, Role role) {
    list.push_back({prefix + name, ".weight", Shape{n, k}, role, layer});
  };
  if (s.n_experts == 0) {
    linear(names.pick("mlp.gate_proj", "ffn_gate"), s.intermediate, s.hidden, Role::kLinear);
    linear(names.pick("mlp.up_proj", "ffn_up"), s.intermediate, s.hidden, Role::kLinear);
    linear(names.pick("mlp.down_proj", "ffn_down"), s.hidden, s.intermediate, Role::kDown);
    return;
  }
  list.push_back({prefix + names.pick("mlp.gate", "ffn_gate_inp"), ".weight",
                  Shape{s.n_experts, s.hidden}, Role::kRouter, layer});
  list.push_back({prefix + names.pick("mlp.shared_expert_gate", "ffn_gate_inp_shexp"), ".weight",
                  Shape{1, s.hidden}, Role::kRouter, layer});
  linear(names.pick("mlp.shared_expert.gate_proj", "ffn_gate_shexp"), s.shared_intermediate,
         s.hidden, Role::kLinear);
  linear(names.pick("mlp.shared_expert.up_proj", "ffn_up_shexp"), s.shared_intermediate, s.hidden,
         Role::kLinear);
  linear(names.pick("mlp.shared_expert.down_proj", "ffn_down_shexp"), s.hidden,
         s.shared_intermediate, Role::kDown);
  if (names.gguf) {
    list.push_back({prefix + "ffn_gate_exps", ".weight",
                    Shape{s.n_experts, s.expert_intermediate, s.hidden}, Role::kLinear, layer});
    list.push_back({prefix + "ffn_up_exps", ".weight",
                    Shape{s.n_experts, s.expert_intermediate, s.hidden}, Role::kLinear, layer});
    list.push_back({prefix + "ffn_down_exps", ".weight",
                    Shape{s.n_experts, s.hidden, s.expert_intermediate}, Role::kDown, layer});
    return;
  }
  for (int expert = 0; expert < s.n_experts; ++expert) {
    const std::string e = "mlp.experts." + std::to_string(expert) + ".";
    linear(e + "gate_proj", s.expert_intermediate, s.hidden, Role::kLinear);
    linear(e + "up_proj", s.expert_intermediate, s.hidden, Role::kLinear);
    linear(e + "down_proj", s.hidden, s.expert_intermediate, Role::kDown);
  }
}

}  // namespace

ModelShape shape_of(std::string_view size) {
  const auto found = std::ranges::find(kShapes, size, &ModelShape::name);
  if (found != kShapes.end()) return *found;
  std::string names;
  for (const ModelShape& shape : kShapes)
    names += (names.empty() ? "" : ", ") + shape.name;
  fail(ErrorKind::kInvalidArgument, "make_model", "size: expected one of {}, got '{}'", names,
       printable(size));
}

std::vector<Tensor> tensors_of(const ModelShape& s, bool gguf) {
  const Names names{gguf};
  std::vector<Tensor> list;
  const int64_t kv = s.hidden / s.n_heads * s.n_kv_heads;
  list.push_back({names.pick("model.embed_tokens", "token_embd"), ".weight",
                  Shape{s.vocab, s.hidden}, Role::kEmbedding});
  for (int layer = 0; layer < s.n_layers; ++layer) {
    const std::string prefix = names.pick("model.layers.", "blk.") + std::to_string(layer) + ".";
    const auto add = [&](const char* hf, const char* gg, const char* suffix, Shape shape,
                         Role role) {
      list.push_back({prefix + names.pick(hf, gg), suffix, shape, role, layer});
    };
    add("input_layernorm", "attn_norm", ".weight", Shape{s.hidden}, Role::kNorm);
    add("self_attn.q_proj", "attn_q", ".weight", Shape{s.hidden, s.hidden}, Role::kLinear);
    add("self_attn.q_proj", "attn_q", ".bias", Shape{s.hidden}, Role::kBias);
    add("self_attn.k_proj", "attn_k", ".weight", Shape{kv, s.hidden}, Role::kLinear);
    add("self_attn.k_proj", "attn_k", ".bias", Shape{kv}, Role::kBias);
    add("self_attn.v_proj", "attn_v", ".weight", Shape{kv, s.hidden}, Role::kV);
    add("self_attn.v_proj", "attn_v", ".bias", Shape{kv}, Role::kBias);
    add("self_attn.o_proj", "attn_output", ".weight", Shape{s.hidden, s.hidden}, Role::kLinear);
    add("post_attention_layernorm", "ffn_norm", ".weight", Shape{s.hidden}, Role::kNorm);
    add_ffn(list, s, prefix, names, layer);
  }
  list.push_back(
      {names.pick("model.norm", "output_norm"), ".weight", Shape{s.hidden}, Role::kNorm});
  if (!s.tied)
    list.push_back(
        {names.pick("lm_head", "output"), ".weight", Shape{s.vocab, s.hidden}, Role::kOutput});
  return list;
}

bool is_matrix(Role role) {
  return role != Role::kNorm && role != Role::kBias && role != Role::kRouter;
}

double std_of(const Tensor& tensor) {
  if (tensor.role == Role::kEmbedding || tensor.role == Role::kOutput) return 0.02;
  return 1.0 / std::sqrt(static_cast<double>(tensor.shape.cols()));
}

}  // namespace qw::make_model
