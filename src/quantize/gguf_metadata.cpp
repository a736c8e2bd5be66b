#include "quantize/gguf_metadata.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace qw {

namespace {

using nlohmann::json;

/// The version of ggml's block formats.
constexpr uint32_t kQuantizationVersion = 2;

/// Token types of GGUF.
enum TokenType : int64_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

GgufValue u32_of(int64_t value) {
  return GgufValue::u32(static_cast<uint32_t>(value));
}
GgufValue f32_of(double value) {
  return GgufValue::f32(static_cast<float>(value));
}

[[noreturn]] void cannot_say(std::string_view what, std::string_view got) {
  fail(ErrorKind::kUnsupported, "convert", "{}: expected what GGUF can say, got {}", what, got);
}

void add_sampling(const Checkpoint& checkpoint, GgufEntries& out) {
  if (!checkpoint.generation_config_json) return;
  const json config = json::parse(*checkpoint.generation_config_json, nullptr, false);
  if (!config.is_object()) return;
  const auto number = [&](const char* key) -> std::optional<double> {
    const auto found = config.find(key);
    if (found == config.end() || !found->is_number()) return std::nullopt;
    return found->get<double>();
  };
  if (const auto top_k = number("top_k")) {
    out.emplace_back("general.sampling.top_k", GgufValue::i32(static_cast<int32_t>(*top_k)));
  }
  if (const auto top_p = number("top_p"))
    out.emplace_back("general.sampling.top_p", f32_of(*top_p));
  if (const auto temperature = number("temperature"))
    out.emplace_back("general.sampling.temp", f32_of(*temperature));
}

void add_rope_scaling(const RopeConfig& rope, const std::string& prefix, GgufEntries& out) {
  const auto add = [&](const char* key, GgufValue value) {
    out.emplace_back(prefix + "rope.scaling." + key, std::move(value));
  };
  switch (rope.scaling) {
    case RopeScaling::kNone:
      return;
    case RopeScaling::kDynamic:
      cannot_say("rope_scaling", "dynamic scaling");
    case RopeScaling::kLinear:
      add("type", GgufValue::string("linear"));
      add("factor", f32_of(rope.factor));
      return;
    case RopeScaling::kYarn:
      add("type", GgufValue::string("yarn"));
      add("factor", f32_of(rope.factor));
      add("original_context_length", u32_of(rope.original_max_positions));
      if (rope.beta_fast != RopeConfig().beta_fast) add("yarn_beta_fast", f32_of(rope.beta_fast));
      if (rope.beta_slow != RopeConfig().beta_slow) add("yarn_beta_slow", f32_of(rope.beta_slow));
      if (rope.attention_factor) {
        // The key is a factor on top of YaRN's own.
        const double own = rope.factor > 1 ? 0.1 * std::log(rope.factor) + 1 : 1;
        if (*rope.attention_factor != own) add("attn_factor", f32_of(*rope.attention_factor / own));
      }
      return;
  }
}

void check_layers(const ModelConfig& config) {
  for (int layer = 0; layer < config.n_layers; ++layer) {
    if (config.window_of_layer(layer) != 0)
      cannot_say("sliding_window", fmt::format("a window in layer {}", layer));
  }
  if (config.moe && config.moe->norm_topk_prob)
    cannot_say("norm_topk_prob", "true, where llama.cpp has it fixed at false");
}

void add_network(const ModelConfig& config, const std::string& prefix, GgufEntries& out) {
  const auto add = [&](const char* key, GgufValue value) {
    out.emplace_back(prefix + key, std::move(value));
  };
  add("block_count", u32_of(config.n_layers));
  add("context_length", u32_of(config.max_positions));
  add("embedding_length", u32_of(config.hidden));
  add("feed_forward_length", u32_of(config.intermediate));
  add("attention.head_count", u32_of(config.n_heads));
  add("attention.head_count_kv", u32_of(config.n_kv_heads));
  add_rope_scaling(config.rope, prefix, out);
  add("rope.freq_base", f32_of(config.rope.theta));
  add("attention.layer_norm_rms_epsilon", f32_of(config.rms_norm_eps));
  if (int64_t{config.head_dim} * config.n_heads != config.hidden) {
    add("attention.key_length", u32_of(config.head_dim));
    add("attention.value_length", u32_of(config.head_dim));
  }
  if (config.moe) {
    add("expert_count", u32_of(config.moe->n_experts));
    add("expert_used_count", u32_of(config.moe->top_k));
  }
}

std::string pre_tokenizer(SplitPattern split) {
  switch (split) {
    case SplitPattern::kQwen2:
      return "qwen2";
    case SplitPattern::kCl100k:
      return "llama-bpe";
    case SplitPattern::kGpt2:
      return "gpt-2";
    case SplitPattern::kNone:
      break;
  }
  cannot_say("the tokenizer's pattern", "none");
}

/// Texts and types by id, padding rows up to `vocab` included.
void add_tokens(const TokenizerSpec& spec, int64_t vocab, GgufEntries& out) {
  std::map<int32_t, const AddedToken*> added;
  for (const AddedToken& token : spec.added_tokens)
    added[token.id] = &token;
  std::vector<std::string> texts;
  std::vector<int64_t> types;
  for (int32_t id = 0; id < vocab; ++id) {
    const auto found = added.find(id);
    if (found != added.end()) {
      texts.push_back(found->second->content);
      types.push_back(found->second->special ? kControl : kUserDefined);
    } else if (id < std::ssize(spec.tokens) && !spec.tokens[static_cast<size_t>(id)].empty()) {
      texts.push_back(spec.tokens[static_cast<size_t>(id)]);
      types.push_back(kNormal);
    } else {
      texts.push_back(fmt::format("[PAD{}]", id));
      types.push_back(kUnused);
    }
  }
  out.emplace_back("tokenizer.ggml.tokens", GgufValue::strings(std::move(texts)));
  out.emplace_back("tokenizer.ggml.token_type", GgufValue::i32s(std::move(types)));
}

/// The id of a special token: the tokenizer's, else that of config.json.
void add_special_ids(const TokenizerSpec& spec, const ModelConfig& config, GgufEntries& out) {
  const auto id_of = [&](const std::optional<std::string>& text,
                         std::optional<int32_t> otherwise) -> std::optional<int32_t> {
    for (const AddedToken& token : spec.added_tokens) {
      if (text && token.content == *text) return token.id;
    }
    return otherwise;
  };
  const auto add = [&](const char* key, std::optional<int32_t> id) {
    if (id) out.emplace_back(key, u32_of(*id));
  };
  const std::optional<int32_t> eos =
      config.eos_ids.empty() ? std::nullopt : std::optional(config.eos_ids.front());
  add("tokenizer.ggml.eos_token_id", id_of(spec.config.eos_token, eos));
  add("tokenizer.ggml.padding_token_id", id_of(spec.config.pad_token, config.pad_id));
  add("tokenizer.ggml.bos_token_id", id_of(spec.config.bos_token, config.bos_id));
}

void add_tokenizer(const TokenizerSpec& spec, const ModelConfig& config, GgufEntries& out) {
  if (spec.alphabet != TokenAlphabet::kByteLevel)
    cannot_say("the tokenizer", "one with byte fallback, which Qwen's are not");
  if (std::ssize(spec.tokens) > config.vocab) {
    fail(ErrorKind::kCorrupt, "convert",
         "tokenizer: expected at most {} tokens (rows of the embedding), got {} ({})", config.vocab,
         spec.tokens.size(), spec.source);
  }
  out.emplace_back("tokenizer.ggml.model", GgufValue::string("gpt2"));
  out.emplace_back("tokenizer.ggml.pre", GgufValue::string(pre_tokenizer(spec.split)));
  add_tokens(spec, config.vocab, out);
  std::vector<std::string> merges;
  merges.reserve(spec.merges.size());
  for (const MergeText& merge : spec.merges)
    merges.push_back(merge.left + " " + merge.right);
  out.emplace_back("tokenizer.ggml.merges", GgufValue::strings(std::move(merges)));
  add_special_ids(spec, config, out);
  for (const auto& [name, source] : spec.config.chat_templates) {
    out.emplace_back(
        name == "default" ? "tokenizer.chat_template" : "tokenizer.chat_template." + name,
        GgufValue::string(source));
  }
}

/// Two digits at least: "132K", "1.8B".
std::string rounded(int64_t count) {
  static constexpr std::pair<double, char> kUnits[] = {{1e12, 'T'}, {1e9, 'B'}, {1e6, 'M'}};
  double scale = 1e3;
  char unit = 'K';
  for (const auto& [size, letter] : kUnits) {
    if (static_cast<double>(count) <= size) continue;
    scale = size;
    unit = letter;
    break;
  }
  const double scaled = static_cast<double>(count) / scale;
  const double whole = std::nearbyint(scaled);
  const int digits = whole < 1 ? 2 : whole < 10 ? 1 : 0;  // behind the point
  return fmt::format("{:.{}f}{}", scaled, digits, unit);
}

}  // namespace

std::string size_label(const ParameterCount& count) {
  if (count.n_experts == 0) return rounded(count.shared);
  return fmt::format("{}x{}", count.n_experts, rounded(count.shared + count.per_expert));
}

GgufEntries gguf_entries(const Checkpoint& checkpoint, const ModelConfig& config,
                         const TokenizerSpec* tokenizer, const ParameterCount& count,
                         const std::string& name, uint32_t file_type) {
  check_layers(config);
  const std::string architecture = config.moe ? "qwen2moe" : "qwen2";
  const std::string prefix = architecture + ".";
  GgufEntries out;
  out.emplace_back("general.architecture", GgufValue::string(architecture));
  out.emplace_back("general.type", GgufValue::string("model"));
  add_sampling(checkpoint, out);
  out.emplace_back("general.name", GgufValue::string(name));
  out.emplace_back("general.size_label", GgufValue::string(size_label(count)));
  add_network(config, prefix, out);
  out.emplace_back("general.file_type", GgufValue::u32(file_type));
  if (config.moe) {
    out.emplace_back(prefix + "expert_feed_forward_length",
                     u32_of(config.moe->expert_intermediate));
    out.emplace_back(prefix + "expert_shared_feed_forward_length",
                     u32_of(config.moe->shared_intermediate));
  }
  out.emplace_back("general.quantization_version", GgufValue::u32(kQuantizationVersion));
  if (tokenizer != nullptr) add_tokenizer(*tokenizer, config, out);
  return out;
}

}  // namespace qw
