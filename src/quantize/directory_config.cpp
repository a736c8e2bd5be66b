#include "quantize/directory_config.h"

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace qw {

namespace {

using nlohmann::ordered_json;

/// As config.json calls it.
std::string torch_name(DType dtype) {
  return dtype == DType::kF16 ? "float16" : dtype == DType::kBF16 ? "bfloat16" : "float32";
}

/// GGUF holds f32: the shortest number that is the same f32 is the one that was meant.
double shortest(double value) {
  return std::strtod(fmt::format("{}", static_cast<float>(value)).c_str(), nullptr);
}

ordered_json rope_scaling(const RopeConfig& rope) {
  ordered_json json;
  switch (rope.scaling) {
    case RopeScaling::kNone:
      return nullptr;
    case RopeScaling::kLinear:
      json["rope_type"] = "linear";
      break;
    case RopeScaling::kDynamic:
      json["rope_type"] = "dynamic";
      break;
    case RopeScaling::kYarn:
      json["rope_type"] = "yarn";
      json["beta_fast"] = shortest(rope.beta_fast);
      json["beta_slow"] = shortest(rope.beta_slow);
      if (rope.attention_factor) json["attention_factor"] = *rope.attention_factor;
      break;
  }
  json["factor"] = shortest(rope.factor);
  if (rope.original_max_positions > 0)
    json["original_max_position_embeddings"] = rope.original_max_positions;
  return json;
}

void add_moe(const ModelConfig& config, ordered_json& json) {
  const MoeConfig& moe = *config.moe;
  json.update({{"decoder_sparse_step", moe.decoder_sparse_step},
               {"mlp_only_layers", moe.mlp_only_layers},
               {"moe_intermediate_size", moe.expert_intermediate},
               {"norm_topk_prob", moe.norm_topk_prob},
               {"num_experts", moe.n_experts},
               {"num_experts_per_tok", moe.top_k},
               {"shared_expert_intermediate_size", moe.shared_intermediate}});
}

ordered_json ids_json(const std::vector<int32_t>& ids) {
  if (ids.empty()) return nullptr;
  return ids.size() == 1 ? ordered_json(ids.front()) : ordered_json(ids);
}

ordered_json config_of_gguf(const ModelConfig& config) {
  if (config.sliding_window != 0) {
    fail(ErrorKind::kUnsupported, "convert",
         "sliding window: expected a GGUF file without one, got {}", config.sliding_window);
  }
  const bool is_moe = config.moe.has_value();
  ordered_json json = {{"architectures", {config.architecture}},
                       {"attention_dropout", 0.0},
                       {"hidden_act", "silu"},
                       {"hidden_size", config.hidden},
                       {"initializer_range", 0.02},
                       {"intermediate_size", config.intermediate},
                       {"max_position_embeddings", config.max_positions},
                       {"model_type", is_moe ? "qwen2_moe" : "qwen2"},
                       {"num_attention_heads", config.n_heads},
                       {"num_hidden_layers", config.n_layers},
                       {"num_key_value_heads", config.n_kv_heads},
                       {"rms_norm_eps", shortest(config.rms_norm_eps)},
                       {"rope_theta", shortest(config.rope.theta)},
                       {"use_cache", true},
                       {"use_sliding_window", false},
                       {"vocab_size", config.vocab}};
  if (int64_t{config.head_dim} * config.n_heads != config.hidden)
    json["head_dim"] = config.head_dim;
  if (ordered_json scaling = rope_scaling(config.rope); !scaling.is_null())
    json["rope_scaling"] = std::move(scaling);
  if (is_moe) add_moe(config, json);
  if (config.bos_id) json["bos_token_id"] = *config.bos_id;
  json["eos_token_id"] = ids_json(config.eos_ids);
  if (config.pad_id) json["pad_token_id"] = *config.pad_id;
  return json;
}

}  // namespace

std::string directory_config(const Checkpoint& checkpoint, const ModelConfig& config, DType dtype,
                             bool tied) {
  ordered_json json = checkpoint.config_json ? ordered_json::parse(*checkpoint.config_json)
                                             : config_of_gguf(config);
  json.erase("quantization_config");
  // Newer files say "dtype".
  const bool is_new = json.contains("dtype") && !json.contains("torch_dtype");
  json[is_new ? "dtype" : "torch_dtype"] = torch_name(dtype);
  // A classifier's file says nothing of lm_head, which it has not.
  if (json.contains("tie_word_embeddings") || !checkpoint.config_json)
    json["tie_word_embeddings"] = tied;
  return json.dump(2) + "\n";
}

std::string directory_generation_config(const Checkpoint& checkpoint, const ModelConfig& config,
                                        const std::vector<int32_t>& eos_ids) {
  ordered_json json = ordered_json::object();
  if (config.bos_id) json["bos_token_id"] = *config.bos_id;
  const std::vector<int32_t>& ends = eos_ids.empty() ? config.eos_ids : eos_ids;
  if (!ends.empty()) json["eos_token_id"] = ids_json(ends);
  if (config.pad_id) json["pad_token_id"] = *config.pad_id;
  const GgufMetadata& metadata = *checkpoint.gguf;
  bool samples = false;
  const auto add = [&](const char* key, const char* name) {
    if (metadata.find(key) == nullptr) return;
    const double value = shortest(metadata.real(key));
    json[name] = value == std::floor(value) && std::string_view(name) == "top_k"
                     ? ordered_json(static_cast<int64_t>(value))
                     : ordered_json(value);
    samples = true;
  };
  add("general.sampling.top_k", "top_k");
  add("general.sampling.top_p", "top_p");
  add("general.sampling.temp", "temperature");
  if (samples) json["do_sample"] = true;
  return json.dump(2) + "\n";
}

}  // namespace qw
