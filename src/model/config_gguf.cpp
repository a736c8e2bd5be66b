// ModelConfig from the metadata of a GGUF file.
//
// Level 5 (model). Keys: the GGUF specification and llama.cpp's llama-arch.cpp (qwen2, qwen2moe).
#include <cmath>

#include "base/checked.h"
#include "base/error.h"
#include "model/config.h"
#include "model/tensor_names.h"

namespace qw {

namespace {

/// Keys below "qwen2." or "qwen2moe.".
class Keys {
 public:
  Keys(const GgufMetadata& metadata, std::string architecture)
      : metadata_(metadata), prefix_(std::move(architecture) + ".") {}

  bool has(std::string_view key) const { return metadata_.find(full(key)) != nullptr; }
  int64_t integer(std::string_view key) const { return metadata_.integer(full(key)); }
  int int32(std::string_view key) const {
    return checked_cast<int>(integer(key), full(key), metadata_.file);
  }
  double real(std::string_view key) const { return metadata_.real(full(key)); }
  int64_t integer_or(std::string_view key, int64_t otherwise) const {
    return metadata_.integer_or(full(key), otherwise);
  }
  double real_or(std::string_view key, double otherwise) const {
    return metadata_.real_or(full(key), otherwise);
  }
  std::string string_or(std::string_view key, std::string otherwise) const {
    return metadata_.string_or(full(key), std::move(otherwise));
  }
  bool boolean_or(std::string_view key, bool otherwise) const {
    return metadata_.boolean_or(full(key), otherwise);
  }

 private:
  std::string full(std::string_view key) const { return prefix_ + std::string(key); }
  const GgufMetadata& metadata_;
  std::string prefix_;
};

void read_rope(const Keys& keys, const std::string& file, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.theta = keys.real("rope.freq_base");
  const std::string type = keys.string_or("rope.scaling.type", "");
  if (type.empty() && keys.has("rope.scale_linear")) {  // before rope.scaling.* existed
    rope.scaling = RopeScaling::kLinear;
    rope.factor = keys.real("rope.scale_linear");
  } else if (type == "linear" || type == "yarn") {
    rope.scaling = type == "linear" ? RopeScaling::kLinear : RopeScaling::kYarn;
    rope.factor = keys.real("rope.scaling.factor");
  } else if (!type.empty() && type != "none") {
    fail(ErrorKind::kUnsupported, "config",
         "rope scaling: expected none, linear or yarn, got {} ({})", printable(type),
         printable(file));
  }
  if (rope.scaling != RopeScaling::kYarn) return;
  rope.original_max_positions =
      keys.integer_or("rope.scaling.original_context_length", config.max_positions);
  rope.beta_fast = keys.real_or("rope.scaling.yarn_beta_fast", rope.beta_fast);
  rope.beta_slow = keys.real_or("rope.scaling.yarn_beta_slow", rope.beta_slow);
  // Here the key is a factor on top of YaRN's own 0.1 ln(s) + 1, unlike Transformers' field.
  if (keys.has("rope.scaling.attn_factor")) {
    const double own = rope.factor > 1 ? 0.1 * std::log(rope.factor) + 1 : 1;
    rope.attention_factor = keys.real("rope.scaling.attn_factor") * own;
  }
}

/// Rows of the first matrix of this slot in any layer, for what old files do not say.
std::optional<int64_t> rows_of_first(const Checkpoint& checkpoint, Slot slot, int n_layers) {
  for (int layer = 0; layer < n_layers; ++layer) {
    const RawTensor* tensor =
        checkpoint.tensors.find(gguf_name({.slot = slot, .layer = layer}) + ".weight");
    if (tensor != nullptr && tensor->shape.rank() >= 2)
      return tensor->shape[tensor->shape.rank() - 2];
  }
  return std::nullopt;
}

void read_moe(const Keys& keys, const Checkpoint& checkpoint, ModelConfig& config) {
  MoeConfig& moe = config.moe.emplace();
  moe.n_experts = keys.int32("expert_count");
  moe.top_k = keys.int32("expert_used_count");
  const auto size_of = [&](std::string_view key, Slot slot) -> int64_t {
    if (keys.has(key)) return keys.integer(key);
    return rows_of_first(checkpoint, slot, config.n_layers).value_or(0);
  };
  moe.expert_intermediate = size_of("expert_feed_forward_length", Slot::kExpertGate);
  moe.shared_intermediate = size_of("expert_shared_feed_forward_length", Slot::kSharedGate);
  // Qwen1.5-MoE does not renormalise, and llama.cpp has it fixed so for this architecture.
  moe.norm_topk_prob = keys.boolean_or("expert_weights_norm", false);
  // GGUF has no key for the step or the dense layers: a layer is sparse when it has a router.
  moe.decoder_sparse_step = 1;
  for (int layer = 0; layer < config.n_layers; ++layer) {
    const std::string router = gguf_name({.slot = Slot::kRouter, .layer = layer}) + ".weight";
    const std::string dense = gguf_name({.slot = Slot::kGate, .layer = layer}) + ".weight";
    if (checkpoint.tensors.find(router) == nullptr && checkpoint.tensors.find(dense) != nullptr)
      moe.mlp_only_layers.push_back(layer);
  }
}

int64_t vocabulary_size(const Checkpoint& checkpoint, const std::string& file) {
  const RawTensor* table =
      checkpoint.tensors.find(gguf_name({.slot = Slot::kEmbedding}) + ".weight");
  const auto* tokens = checkpoint.gguf->strings("tokenizer.ggml.tokens");
  const int64_t n_tokens = tokens != nullptr ? static_cast<int64_t>(tokens->size()) : 0;
  const int64_t n_rows = table != nullptr && table->shape.rank() == 2 ? table->shape[0] : 0;
  if (n_tokens == 0 && n_rows == 0) {
    fail(ErrorKind::kCorrupt, "config",
         "vocabulary: expected tokenizer.ggml.tokens or token_embd.weight, got neither ({})",
         printable(file));
  }
  // The embedding decides; a list of tokens that is longer could name rows that are not there.
  if (n_tokens > n_rows && n_rows > 0) {
    fail(ErrorKind::kCorrupt, "config",
         "vocabulary: expected at most {} tokens (rows of token_embd.weight), got {} ({})", n_rows,
         n_tokens, printable(file));
  }
  return n_rows > 0 ? n_rows : n_tokens;
}

}  // namespace

ModelConfig ModelConfig::from_gguf(const Checkpoint& checkpoint) {
  QW_CHECK(checkpoint.gguf != nullptr);
  const GgufMetadata& metadata = *checkpoint.gguf;
  const std::string file = metadata.file;
  const std::string architecture = metadata.string("general.architecture");
  if (architecture != "qwen2" && architecture != "qwen2moe") {
    fail(ErrorKind::kUnsupported, "config", "architecture: expected qwen2 or qwen2moe, got {} ({})",
         printable(architecture), printable(file));
  }
  if (metadata.string_or("general.type", "model") == "adapter") {
    fail(ErrorKind::kUnsupported, "config",
         "general.type: expected a model, got an adapter: give it with --adapter ({})",
         printable(file));
  }
  const Keys keys(metadata, architecture);
  ModelConfig config;
  config.architecture = architecture == "qwen2" ? "Qwen2ForCausalLM" : "Qwen2MoeForCausalLM";
  config.hidden = keys.integer("embedding_length");
  config.n_layers = keys.int32("block_count");
  config.n_heads = keys.int32("attention.head_count");
  config.n_kv_heads = checked_cast<int>(keys.integer_or("attention.head_count_kv", config.n_heads),
                                        "attention.head_count_kv", file);
  if (keys.has("attention.key_length")) {
    config.head_dim = keys.int32("attention.key_length");
    if (keys.integer_or("attention.value_length", config.head_dim) != config.head_dim) {
      fail(ErrorKind::kUnsupported, "config",
           "attention.value_length: expected {} (the key length), got {} ({})", config.head_dim,
           keys.integer("attention.value_length"), printable(file));
    }
  } else {
    if (config.n_heads < 1 || config.hidden % config.n_heads != 0) {
      fail(ErrorKind::kCorrupt, "config",
           "embedding_length: expected a multiple of {} heads, got {} ({})", config.n_heads,
           config.hidden, printable(file));
    }
    config.head_dim = checked_cast<int>(config.hidden / config.n_heads, "head size", file);
  }
  config.rms_norm_eps = keys.real("attention.layer_norm_rms_epsilon");
  config.max_positions = keys.integer("context_length");
  config.vocab = vocabulary_size(checkpoint, file);
  config.tied_embeddings =
      checkpoint.tensors.find(gguf_name({.slot = Slot::kLmHead}) + ".weight") == nullptr;
  if (config.n_layers < 1 || config.n_layers > ModelConfig::kMaxLayers) {
    fail(ErrorKind::kCorrupt, "config", "block_count: expected 1 to {}, got {} ({})",
         ModelConfig::kMaxLayers, config.n_layers, printable(file));
  }
  read_rope(keys, file, config);
  if (architecture == "qwen2moe") read_moe(keys, checkpoint, config);
  // Mixtures of experts without dense layers may leave this out.
  config.intermediate = config.moe && !keys.has("feed_forward_length")
                            ? config.moe->expert_intermediate
                            : keys.integer("feed_forward_length");
  const auto id_of = [&](std::string_view key) -> std::optional<int32_t> {
    if (metadata.find(key) == nullptr) return std::nullopt;
    return checked_cast<int32_t>(metadata.integer(key), key, file);
  };
  if (const auto eos = id_of("tokenizer.ggml.eos_token_id")) config.eos_ids.push_back(*eos);
  config.bos_id = id_of("tokenizer.ggml.bos_token_id");
  config.pad_id = id_of("tokenizer.ggml.padding_token_id");
  config.check(file);
  return config;
}

}  // namespace qw
