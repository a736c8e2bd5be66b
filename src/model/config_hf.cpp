// ModelConfig from config.json as Transformers, AutoGPTQ and AutoAWQ write it.
//
// Level 5 (model). Fields and their meaning: transformers' configuration_qwen2.py,
// configuration_qwen2_moe.py and modeling_rope_utils.py.
#include <nlohmann/json.hpp>

#include "base/checked.h"
#include "base/error.h"
#include "checkpoint/hf_config.h"
#include "checkpoint/quantised_modules.h"
#include "model/config.h"

namespace qw {

namespace {

using nlohmann::ordered_json;

constexpr std::string_view kFile = "config.json";

constexpr std::string_view kClassifier = "Qwen2ForSequenceClassification";

int required_int32(const ordered_json& json, std::string_view key, std::string_view file = kFile) {
  return checked_cast<int>(required_int(json, key, file), key, file);
}

void check_architecture(const ordered_json& json, ModelConfig& config) {
  std::string name;
  if (const ordered_json* list = find_member(json, "architectures", kFile)) {
    if (!list->is_array() || list->empty() || !list->front().is_string()) {
      fail(ErrorKind::kCorrupt, "config", "architectures: expected a list of names, got {} ({})",
           describe_json(*list), kFile);
    }
    name = list->front().get<std::string>();
  } else {
    const std::string type = required_string(json, "model_type", kFile);
    name = type == "qwen2"       ? "Qwen2ForCausalLM"
           : type == "qwen2_moe" ? "Qwen2MoeForCausalLM"
                                 : type;
  }
  if (name != "Qwen2ForCausalLM" && name != "Qwen2MoeForCausalLM" && name != kClassifier) {
    fail(ErrorKind::kUnsupported, "config",
         "architecture: expected Qwen2ForCausalLM, Qwen2MoeForCausalLM or {}, got {} ({})",
         kClassifier, printable(name), kFile);
  }
  config.architecture = name;
}

/// rope_theta and rope_scaling, or both in the newer rope_parameters.
void read_rope(const ordered_json& json, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  const ordered_json* scaling = find_member(json, "rope_scaling", kFile);
  if (const ordered_json* parameters = find_member(json, "rope_parameters", kFile)) {
    if (!parameters->is_object()) {
      fail(ErrorKind::kCorrupt, "config", "rope_parameters: expected an object, got {} ({})",
           describe_json(*parameters), kFile);
    }
    if (scaling == nullptr) scaling = parameters;
    const auto theta = optional_real(*parameters, "rope_theta", kFile);
    rope.theta = theta ? *theta : required_real(json, "rope_theta", kFile);
  } else {
    rope.theta = required_real(json, "rope_theta", kFile);
  }
  if (scaling == nullptr) return;
  if (!scaling->is_object()) {
    fail(ErrorKind::kCorrupt, "config", "rope_scaling: expected an object, got {} ({})",
         describe_json(*scaling), kFile);
  }
  auto type = optional_string(*scaling, "rope_type", kFile);
  if (!type) type = optional_string(*scaling, "type", kFile);
  if (!type) {
    fail(ErrorKind::kCorrupt, "config", "rope_scaling: expected a rope_type, got {} ({})",
         describe_json(*scaling), kFile);
  }
  if (*type == "default") return;
  if (*type == "linear") {
    rope.scaling = RopeScaling::kLinear;
  } else if (*type == "dynamic") {
    rope.scaling = RopeScaling::kDynamic;
  } else if (*type == "yarn") {
    rope.scaling = RopeScaling::kYarn;
  } else {
    fail(ErrorKind::kUnsupported, "config",
         "rope scaling: expected default, linear, dynamic or yarn, got {} ({})", printable(*type),
         kFile);
  }
  rope.factor = required_real(*scaling, "factor", kFile);
  rope.original_max_positions = optional_int(*scaling, "original_max_position_embeddings", kFile)
                                    .value_or(config.max_positions);
  rope.beta_fast = optional_real(*scaling, "beta_fast", kFile).value_or(rope.beta_fast);
  rope.beta_slow = optional_real(*scaling, "beta_slow", kFile).value_or(rope.beta_slow);
  rope.attention_factor = optional_real(*scaling, "attention_factor", kFile);
  const bool other_mscale = find_member(*scaling, "mscale", kFile) != nullptr ||
                            find_member(*scaling, "mscale_all_dim", kFile) != nullptr;
  if (other_mscale || !optional_bool(*scaling, "truncate", kFile).value_or(true)) {
    fail(ErrorKind::kUnsupported, "config",
         "rope scaling: expected YaRN without mscale and with a truncated range, got {} ({})",
         describe_json(*scaling), kFile);
  }
}

/// sliding_window counts only when use_sliding_window is true; files of Qwen1.5 carry an idle one.
void read_window(const ordered_json& json, ModelConfig& config) {
  if (!optional_bool(json, "use_sliding_window", kFile).value_or(false)) return;
  config.sliding_window = optional_int(json, "sliding_window", kFile).value_or(0);
  if (config.sliding_window == 0) return;
  if (const ordered_json* types = find_member(json, "layer_types", kFile)) {
    if (!types->is_array() || static_cast<int64_t>(types->size()) != config.n_layers) {
      fail(ErrorKind::kCorrupt, "config", "layer_types: expected {} names, got {} ({})",
           config.n_layers, describe_json(*types), kFile);
    }
    for (const ordered_json& type : *types) {
      if (type != "sliding_attention" && type != "full_attention") {
        fail(ErrorKind::kUnsupported, "config",
             "layer_types: expected full_attention or sliding_attention, got {} ({})",
             describe_json(type), kFile);
      }
      config.layer_is_windowed.push_back(type == "sliding_attention");
    }
    return;
  }
  config.max_window_layers = required_int32(json, "max_window_layers");
}

void read_moe(const ordered_json& json, ModelConfig& config) {
  MoeConfig& moe = config.moe.emplace();
  moe.n_experts = required_int32(json, "num_experts");
  moe.top_k = required_int32(json, "num_experts_per_tok");
  moe.expert_intermediate = required_int(json, "moe_intermediate_size", kFile);
  moe.shared_intermediate = required_int(json, "shared_expert_intermediate_size", kFile);
  moe.norm_topk_prob = required_bool(json, "norm_topk_prob", kFile);
  moe.decoder_sparse_step = required_int32(json, "decoder_sparse_step");
  const ordered_json* dense = find_member(json, "mlp_only_layers", kFile);
  if (dense == nullptr) return;  // first releases of qwen2_moe had no such field
  if (!dense->is_array()) {
    fail(ErrorKind::kCorrupt, "config", "mlp_only_layers: expected a list, got {} ({})",
         describe_json(*dense), kFile);
  }
  for (const ordered_json& layer : *dense) {
    if (!layer.is_number_integer()) {
      fail(ErrorKind::kCorrupt, "config", "mlp_only_layers: expected integers, got {} ({})",
           describe_json(layer), kFile);
    }
    moe.mlp_only_layers.push_back(
        checked_cast<int>(layer.get<int64_t>(), "mlp_only_layers", kFile));
  }
}

std::vector<int32_t> read_ids(const ordered_json& json, std::string_view key,
                              std::string_view file) {
  const ordered_json* value = find_member(json, key, file);
  if (value == nullptr) return {};
  std::vector<int32_t> ids;
  for (const ordered_json& id : value->is_array() ? *value : ordered_json::array({*value})) {
    if (!id.is_number_integer()) {
      fail(ErrorKind::kCorrupt, "config", "{}: expected an integer or a list of them, got {} ({})",
           key, describe_json(*value), file);
    }
    ids.push_back(checked_cast<int32_t>(id.get<int64_t>(), key, file));
  }
  return ids;
}

}  // namespace

ModelConfig ModelConfig::from_hf(const Checkpoint& checkpoint) {
  if (!checkpoint.config_json) {
    fail(ErrorKind::kNotFound, "config",
         "config.json: expected it beside the weights, got none ({})",
         printable(checkpoint.directory));
  }
  const ordered_json json = parse_json_object(*checkpoint.config_json, kFile);
  ModelConfig config;
  check_architecture(json, config);
  const std::string act = required_string(json, "hidden_act", kFile);
  if (act != "silu" && act != "swish") {
    fail(ErrorKind::kUnsupported, "config", "hidden_act: expected silu, got {} ({})",
         printable(act), kFile);
  }
  config.hidden = required_int(json, "hidden_size", kFile);
  config.intermediate = required_int(json, "intermediate_size", kFile);
  config.vocab = required_int(json, "vocab_size", kFile);
  config.n_layers = required_int32(json, "num_hidden_layers");
  config.n_heads = required_int32(json, "num_attention_heads");
  const auto kv_heads = optional_int(json, "num_key_value_heads", kFile);
  config.n_kv_heads =
      kv_heads ? checked_cast<int>(*kv_heads, "num_key_value_heads", kFile) : config.n_heads;
  if (const auto head_dim = optional_int(json, "head_dim", kFile)) {
    config.head_dim = checked_cast<int>(*head_dim, "head_dim", kFile);
  } else {
    if (config.n_heads < 1 || config.hidden % config.n_heads != 0) {
      fail(ErrorKind::kCorrupt, "config",
           "hidden_size: expected a multiple of {} heads, got {} ({})", config.n_heads,
           config.hidden, kFile);
    }
    config.head_dim = checked_cast<int>(config.hidden / config.n_heads, "head size", kFile);
  }
  config.rms_norm_eps = required_real(json, "rms_norm_eps", kFile);
  // A classifier has no lm_head; nothing asks for logits over the vocabulary.
  config.tied_embeddings =
      config.architecture == kClassifier || required_bool(json, "tie_word_embeddings", kFile);
  config.max_positions = required_int(json, "max_position_embeddings", kFile);
  read_rope(json, config);
  read_window(json, config);
  if (config.architecture == "Qwen2MoeForCausalLM") read_moe(json, config);
  config.eos_ids = read_ids(json, "eos_token_id", kFile);
  if (config.eos_ids.empty() && checkpoint.generation_config_json) {
    constexpr std::string_view kGeneration = "generation_config.json";
    config.eos_ids = read_ids(parse_json_object(*checkpoint.generation_config_json, kGeneration),
                              "eos_token_id", kGeneration);
  }
  if (const auto ids = read_ids(json, "bos_token_id", kFile); !ids.empty()) config.bos_id = ids[0];
  if (const auto ids = read_ids(json, "pad_token_id", kFile); !ids.empty()) config.pad_id = ids[0];
  if (const ordered_json* quantization = find_member(json, "quantization_config", kFile)) {
    config.quantization = read_quantization_config(*quantization, kFile);
  } else if (checkpoint.quantize_config_json) {
    constexpr std::string_view kQuantize = "quantize_config.json";
    config.quantization = read_quantization_config(
        parse_json_object(*checkpoint.quantize_config_json, kQuantize), kQuantize);
  }
  config.check(std::string(kFile));
  return config;
}

}  // namespace qw
