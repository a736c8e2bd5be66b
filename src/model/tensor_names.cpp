#include "model/tensor_names.h"

#include <charconv>

#include "base/error.h"

namespace qw {

namespace {

struct Names {
  Slot slot;
  std::string_view hf, gguf;  // # stands for the layer, @ for the expert
};

// Sources: Transformers' modeling_qwen2.py and modeling_qwen2_moe.py; llama.cpp's llama-arch.cpp.
constexpr Names kNames[] = {
    {Slot::kEmbedding, "model.embed_tokens", "token_embd"},
    {Slot::kFinalNorm, "model.norm", "output_norm"},
    {Slot::kLmHead, "lm_head", "output"},
    {Slot::kInputNorm, "model.layers.#.input_layernorm", "blk.#.attn_norm"},
    {Slot::kQ, "model.layers.#.self_attn.q_proj", "blk.#.attn_q"},
    {Slot::kK, "model.layers.#.self_attn.k_proj", "blk.#.attn_k"},
    {Slot::kV, "model.layers.#.self_attn.v_proj", "blk.#.attn_v"},
    {Slot::kO, "model.layers.#.self_attn.o_proj", "blk.#.attn_output"},
    {Slot::kPostNorm, "model.layers.#.post_attention_layernorm", "blk.#.ffn_norm"},
    {Slot::kGate, "model.layers.#.mlp.gate_proj", "blk.#.ffn_gate"},
    {Slot::kUp, "model.layers.#.mlp.up_proj", "blk.#.ffn_up"},
    {Slot::kDown, "model.layers.#.mlp.down_proj", "blk.#.ffn_down"},
    {Slot::kRouter, "model.layers.#.mlp.gate", "blk.#.ffn_gate_inp"},
    {Slot::kExpertGate, "model.layers.#.mlp.experts.@.gate_proj", "blk.#.ffn_gate_exps"},
    {Slot::kExpertUp, "model.layers.#.mlp.experts.@.up_proj", "blk.#.ffn_up_exps"},
    {Slot::kExpertDown, "model.layers.#.mlp.experts.@.down_proj", "blk.#.ffn_down_exps"},
    {Slot::kSharedGate, "model.layers.#.mlp.shared_expert.gate_proj", "blk.#.ffn_gate_shexp"},
    {Slot::kSharedUp, "model.layers.#.mlp.shared_expert.up_proj", "blk.#.ffn_up_shexp"},
    {Slot::kSharedDown, "model.layers.#.mlp.shared_expert.down_proj", "blk.#.ffn_down_shexp"},
    {Slot::kSharedExpertGate, "model.layers.#.mlp.shared_expert_gate", "blk.#.ffn_gate_inp_shexp"},
};

std::string fill_in(std::string_view pattern, const ModuleId& id) {
  std::string out;
  for (const char c : pattern) {
    if (c == '#') {
      out += std::to_string(id.layer);
    } else if (c == '@') {
      out += std::to_string(id.expert);
    } else {
      out += c;
    }
  }
  return out;
}

/// Reads a number without sign or leading zeros from the front of `text`.
std::optional<int> take_number(std::string_view& text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const auto length = static_cast<size_t>(end - text.data());
  if (error != std::errc{} || value < 0 || (length > 1 && text.front() == '0')) return std::nullopt;
  text.remove_prefix(length);
  return value;
}

std::optional<ModuleId> match(std::string_view pattern, Slot slot, std::string_view name) {
  ModuleId id{.slot = slot};
  for (const char c : pattern) {
    if (c == '#' || c == '@') {
      const auto number = take_number(name);
      if (!number) return std::nullopt;
      (c == '#' ? id.layer : id.expert) = *number;
    } else {
      if (name.empty() || name.front() != c) return std::nullopt;
      name.remove_prefix(1);
    }
  }
  return name.empty() ? std::optional(id) : std::nullopt;
}

const Names& names_of(Slot slot) {
  for (const Names& names : kNames) {
    if (names.slot == slot) return names;
  }
  QW_CHECK(false, "slot without a name");
  return kNames[0];
}

std::optional<ModuleId> parse(std::string_view Names::*column, std::string_view name) {
  for (const Names& names : kNames) {
    if (const auto id = match(names.*column, names.slot, name)) return id;
  }
  return std::nullopt;
}

}  // namespace

std::string hf_name(const ModuleId& id) {
  return fill_in(names_of(id.slot).hf, id);
}
std::string gguf_name(const ModuleId& id) {
  return fill_in(names_of(id.slot).gguf, id);
}
std::optional<ModuleId> parse_hf_name(std::string_view name) {
  return parse(&Names::hf, name);
}
std::optional<ModuleId> parse_gguf_name(std::string_view name) {
  return parse(&Names::gguf, name);
}

bool is_ignorable_tensor(std::string_view name) {
  return name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".attn.masked_bias") ||
         name.ends_with(".rotary_emb.cos_cached") || name.ends_with(".rotary_emb.sin_cached");
}

}  // namespace qw
