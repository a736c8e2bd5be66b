// make_model: a checkpoint of an exact Qwen1.5 shape with random weights, in any published format.
//
//   make_model --size 0.5B --format q4_k_m --output /tmp/m.gguf
//   make_model --size 1.8B --format gptq-int4 --output /tmp/m
//
// Real weights cannot be had everywhere, but speed, memory and loading depend on shapes and formats
// only. Rows are drawn from a small pool of random rows, so a 7B file takes about as long as the
// disk needs. Values are scaled so that activations stay finite through every layer.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "base/mapped_file.h"
#include "base/progress.h"
#include "base/rng.h"
#include "checkpoint/gguf.h"
#include "checkpoint/safetensors.h"
#include "quant/ggml_blocks.h"

namespace {

using namespace qw;

struct ModelShape {
  std::string name;
  int64_t hidden, intermediate;
  int n_layers, n_heads, n_kv_heads;
  int64_t vocab;
  bool tied;
  double rope_theta;
  int n_experts = 0, top_k = 0;
  int64_t expert_intermediate = 0, shared_intermediate = 0;
};

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

struct Options {
  std::string size = "0.5B", format = "q4_k_m", output;
  int layers = 0;  // 0: the shape's own
  int64_t vocab = 0;
  uint64_t seed = 1;
  int64_t group_size = 128;
};

// ---- random bytes -------------------------------------------------------------------------------

constexpr int kPoolRows = 61;  // prime, so that neighbouring rows of a tensor differ

/// Encoded rows of N(0, std) values, a pool per (type, columns, std).
class RowPool {
 public:
  explicit RowPool(uint64_t seed) : seed_(seed) {}

  std::span<const std::byte> row(DType dtype, int64_t cols, double std, int64_t index) {
    auto& pool = pools_[{dtype, cols, std}];
    const int64_t bytes = row_bytes(dtype, cols, "row");
    if (pool.empty()) fill(pool, dtype, cols, std, bytes);
    const int64_t slot = index % kPoolRows;
    return std::span(pool).subspan(static_cast<size_t>(slot * bytes), static_cast<size_t>(bytes));
  }

 private:
  void fill(std::vector<std::byte>& pool, DType dtype, int64_t cols, double std, int64_t bytes) {
    pool.resize(static_cast<size_t>(bytes * kPoolRows));
    std::vector<float> values(static_cast<size_t>(cols));
    for (int64_t r = 0; r < kPoolRows; ++r) {
      ++stream_;
      std::byte* out = pool.data() + r * bytes;
      if (can_encode(dtype)) {
        for (size_t i = 0; i < values.size(); ++i)
          values[i] = static_cast<float>(std * random_normal(seed_, stream_, i));
        encode_row(dtype, values.data(), cols, out);
      } else {
        random_blocks(dtype, cols, std, out, bytes);
      }
    }
  }

  /// Types without an encoder: random codes under a scale found by decoding once with d = 1.
  void random_blocks(DType dtype, int64_t cols, double std, std::byte* out, int64_t bytes) {
    for (int64_t i = 0; i < bytes; ++i)
      out[i] = static_cast<std::byte>(random_bits(seed_, stream_, static_cast<uint64_t>(i)));
    set_scale(dtype, cols, 1.0f, out);
    std::vector<float> values(static_cast<size_t>(cols));
    decode_row(dtype, out, cols, values.data());
    double squares = 0;
    for (const float value : values)
      squares += static_cast<double>(value) * static_cast<double>(value);
    set_scale(dtype, cols, static_cast<float>(std / std::sqrt(squares / static_cast<double>(cols))),
              out);
  }

  static void set_scale(DType dtype, int64_t cols, float scale, std::byte* out) {
    const uint16_t d = f32_to_f16(scale);
    const DTypeInfo& type = info(dtype);
    for (int64_t block = 0; block < cols / type.block_elems; ++block) {
      std::byte* at = out + block * type.block_bytes;
      if (dtype == DType::kIQ1_M) {
        // The f16 scale is spread over the top nibbles of the last four 16-bit words.
        for (int word = 0; word < 4; ++word) {
          uint16_t bits;
          std::memcpy(&bits, at + 48 + 2 * word, 2);
          bits = static_cast<uint16_t>((bits & 0x0FFF) | (((d >> (4 * word)) & 0xF) << 12));
          std::memcpy(at + 48 + 2 * word, &bits, 2);
        }
      } else {
        std::memcpy(at, &d, 2);  // the other IQ types begin with d
      }
    }
  }

  uint64_t seed_, stream_ = 0;
  std::map<std::tuple<DType, int64_t, double>, std::vector<std::byte>> pools_;
};

/// Random 32-bit words for packed codes, from a block that is reused at shifting places.
class WordPool {
 public:
  explicit WordPool(uint64_t seed) : words_(1 << 18) {
    for (size_t i = 0; i < words_.size(); i += 2) {
      const uint64_t bits = random_bits(seed, 0xC0DE, i);
      words_[i] = static_cast<uint32_t>(bits);
      words_[i + 1] = static_cast<uint32_t>(bits >> 32);
    }
  }
  template <typename Sink>
  void emit(int64_t n_words, Sink sink) {
    while (n_words > 0) {
      const size_t start = (offset_ += 7919) % (words_.size() / 2);
      const size_t n = std::min<size_t>(static_cast<size_t>(n_words), words_.size() / 2);
      sink(std::as_bytes(std::span(words_).subspan(start, n)));
      n_words -= static_cast<int64_t>(n);
    }
  }

 private:
  std::vector<uint32_t> words_;
  size_t offset_ = 0;
};

// ---- the tensors of a model ---------------------------------------------------------------------

enum class Role { kEmbedding, kOutput, kNorm, kBias, kRouter, kLinear, kV, kDown };

struct Tensor {
  std::string name;  // without ".weight" / ".bias"
  std::string suffix;
  Shape shape;
  Role role;
  int layer = -1;
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

/// Standard deviation that keeps a layer's output near its input's size.
double std_of(const Tensor& tensor) {
  if (tensor.role == Role::kEmbedding || tensor.role == Role::kOutput) return 0.02;
  return 1.0 / std::sqrt(static_cast<double>(tensor.shape.cols()));
}

std::vector<float> vector_values(const Tensor& tensor, uint64_t seed, uint64_t stream) {
  std::vector<float> values(static_cast<size_t>(tensor.shape.n_elems()));
  const bool norm = tensor.role == Role::kNorm;
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>((norm ? 1.0 : 0.0) + 0.05 * random_normal(seed, stream, i));
  }
  return values;
}

// ---- GGUF ---------------------------------------------------------------------------------------

/// The type that llama-quantize falls back to when a row is not a multiple of 256.
DType fallback(DType dtype, int64_t cols) {
  if (cols % info(dtype).block_elems == 0) return dtype;
  DType other = DType::kIQ4_NL;
  switch (dtype) {
    case DType::kQ2_K:
    case DType::kQ3_K:
    case DType::kTQ1_0:
    case DType::kTQ2_0:
    case DType::kQ2_0:
      other = DType::kQ4_0;
      break;
    case DType::kQ4_K:
      other = DType::kQ5_0;
      break;
    case DType::kQ5_K:
      other = DType::kQ5_1;
      break;
    case DType::kQ6_K:
      other = DType::kQ8_0;
      break;
    default:
      break;
  }
  return cols % info(other).block_elems == 0 ? other : DType::kF16;
}

/// Layers whose sensitive matrices get more bits in the _M mixes: the first and last eighth and
/// every third between.
bool use_more_bits(int layer, int n_layers) {
  return layer < n_layers / 8 || layer >= 7 * n_layers / 8 || (layer - n_layers / 8) % 3 == 2;
}

struct Mix {
  DType base;
  bool medium;  // an _M mix
};

Mix parse_mix(const std::string& format) {
  if (format == "q4_k_m") return {DType::kQ4_K, true};
  if (format == "q5_k_m") return {DType::kQ5_K, true};
  if (format == "q4_k_s") return {DType::kQ4_K, false};
  if (format == "q5_k_s") return {DType::kQ5_K, false};
  const auto dtype = dtype_from_name(format);
  if (!dtype || info(*dtype).ggml_id < 0) {
    fail(ErrorKind::kInvalidArgument, "make_model",
         "format: expected bf16, f16 or f32 (directory), gptq-int4, gptq-int8, awq, or a GGUF type "
         "or mix (gguf-f16, gguf-bf16, q4_0, q4_k_m, ...), got '{}'",
         printable(format));
  }
  return {*dtype, false};
}

DType gguf_type(const Tensor& tensor, const ModelShape& shape, const Mix& mix) {
  if (!is_matrix(tensor.role)) return DType::kF32;
  DType dtype = mix.base;
  const bool plain = is_float(dtype);
  const bool is_output =
      tensor.role == Role::kOutput || (tensor.role == Role::kEmbedding && shape.tied);
  if (is_output && !plain && dtype != DType::kQ8_0) dtype = DType::kQ6_K;
  if (mix.medium && (tensor.role == Role::kV || tensor.role == Role::kDown) &&
      use_more_bits(tensor.layer, shape.n_layers)) {
    dtype = DType::kQ6_K;
  }
  return fallback(dtype, tensor.shape.cols());
}

GgufValue text_value(std::string text) {
  return {GgufType::kString, GgufType::kU32, std::move(text)};
}
GgufValue u32_value(int64_t value) {
  return {GgufType::kU32, GgufType::kU32, value};
}
GgufValue f32_value(double value) {
  return {GgufType::kF32, GgufType::kU32, value};
}

/// A vocabulary of the right length that other programs accept: the 256 bytes, one merge, then
/// numbered words; special tokens at the published places when there is room.
void add_vocabulary(GgufWriter& writer, int64_t vocab) {
  std::vector<std::string> tokens;
  std::vector<int64_t> types;
  for (int byte = 0, next = 256; byte < 256; ++byte) {
    const bool printable_byte =
        (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const int code_point = printable_byte ? byte : next++;
    std::string text;
    if (code_point < 0x80) {
      text.push_back(static_cast<char>(code_point));
    } else {
      text.push_back(static_cast<char>(0xC0 | (code_point >> 6)));
      text.push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
    }
    tokens.push_back(text);
    types.push_back(1);
  }
  tokens.push_back("th");
  types.push_back(1);
  const int64_t special = vocab > 151646 ? 151643 : vocab - 3;
  while (static_cast<int64_t>(tokens.size()) < vocab) {
    const auto id = static_cast<int64_t>(tokens.size());
    static constexpr std::array<const char*, 3> kSpecial = {"<|endoftext|>", "<|im_start|>",
                                                            "<|im_end|>"};
    if (id >= special && id < special + 3) {
      tokens.emplace_back(kSpecial[static_cast<size_t>(id - special)]);
      types.push_back(3);
    } else {
      tokens.push_back((id > special ? "[PAD" : "w") + std::to_string(id) +
                       (id > special ? "]" : ""));
      types.push_back(id > special ? 5 : 1);
    }
  }
  auto& entries = writer.entries;
  entries.emplace_back("tokenizer.ggml.model", text_value("gpt2"));
  entries.emplace_back("tokenizer.ggml.pre", text_value("qwen2"));
  entries.emplace_back("tokenizer.ggml.tokens",
                       GgufValue{GgufType::kArray, GgufType::kString, std::move(tokens)});
  entries.emplace_back("tokenizer.ggml.token_type",
                       GgufValue{GgufType::kArray, GgufType::kI32, std::move(types)});
  entries.emplace_back("tokenizer.ggml.merges", GgufValue{GgufType::kArray, GgufType::kString,
                                                          std::vector<std::string>{"t h"}});
  entries.emplace_back("tokenizer.ggml.eos_token_id", u32_value(special + 2));
  entries.emplace_back("tokenizer.ggml.padding_token_id", u32_value(special));
  entries.emplace_back("tokenizer.ggml.bos_token_id", u32_value(special));
  entries.emplace_back("tokenizer.ggml.add_bos_token",
                       GgufValue{GgufType::kBool, GgufType::kU32, false});
}

void add_metadata(GgufWriter& writer, const ModelShape& s) {
  const std::string arch = s.n_experts > 0 ? "qwen2moe" : "qwen2";
  auto& entries = writer.entries;
  entries.emplace_back("general.architecture", text_value(arch));
  entries.emplace_back("general.name", text_value("random Qwen1.5-" + s.name));
  const auto u32 = [&](const char* key, int64_t value) {
    entries.emplace_back(arch + key, u32_value(value));
  };
  u32(".block_count", s.n_layers);
  u32(".context_length", 32768);
  u32(".embedding_length", s.hidden);
  u32(".feed_forward_length", s.intermediate);
  u32(".attention.head_count", s.n_heads);
  u32(".attention.head_count_kv", s.n_kv_heads);
  entries.emplace_back(arch + ".rope.freq_base", f32_value(s.rope_theta));
  entries.emplace_back(arch + ".attention.layer_norm_rms_epsilon",
                       f32_value(static_cast<double>(1e-6f)));
  if (s.n_experts > 0) {
    u32(".expert_count", s.n_experts);
    u32(".expert_used_count", s.top_k);
    u32(".expert_feed_forward_length", s.expert_intermediate);
    u32(".expert_shared_feed_forward_length", s.shared_intermediate);
  }
  add_vocabulary(writer, s.vocab);
}

int64_t total_bytes(const std::vector<GgufWriter::Tensor>& tensors) {
  int64_t total = 0;
  for (const auto& tensor : tensors)
    total += tensor.shape.rows() * row_bytes(tensor.dtype, tensor.shape.cols(), tensor.name);
  return total;
}

void make_gguf(const Options& options, const ModelShape& shape) {
  const Mix mix =
      parse_mix(options.format.starts_with("gguf-") ? options.format.substr(5) : options.format);
  const std::vector<Tensor> tensors = tensors_of(shape, true);
  GgufWriter writer;
  add_metadata(writer, shape);
  for (const Tensor& tensor : tensors) {
    writer.tensors.push_back(
        {tensor.name + tensor.suffix, gguf_type(tensor, shape, mix), tensor.shape});
  }
  RowPool pool(options.seed);
  Progress progress("writing " + options.output, total_bytes(writer.tensors),
                    Progress::Unit::kBytes);
  write_gguf(options.output, writer, [&](size_t i, GgufSink sink) {
    const Tensor& tensor = tensors[i];
    if (tensor.role == Role::kNorm || tensor.role == Role::kBias) {
      const auto values = vector_values(tensor, options.seed, 0x10000 + i);
      sink(std::as_bytes(std::span(values)));
      return;
    }
    for (int64_t row = 0; row < tensor.shape.rows(); ++row) {
      const auto bytes = pool.row(writer.tensors[i].dtype, tensor.shape.cols(), std_of(tensor),
                                  row * 7 + static_cast<int64_t>(i) * 13);
      sink(bytes);
      progress.add(static_cast<int64_t>(bytes.size()));
    }
  });
}

// ---- Hugging Face directories -------------------------------------------------------------------

nlohmann::ordered_json config_json(const Options& options, const ModelShape& s) {
  const bool moe = s.n_experts > 0;
  nlohmann::ordered_json config = {
      {"architectures", {moe ? "Qwen2MoeForCausalLM" : "Qwen2ForCausalLM"}},
      {"attention_dropout", 0.0},
      {"bos_token_id", std::min<int64_t>(151643, s.vocab - 3)},
      {"eos_token_id", std::min<int64_t>(151645, s.vocab - 1)},
      {"hidden_act", "silu"},
      {"hidden_size", s.hidden},
      {"initializer_range", 0.02},
      {"intermediate_size", s.intermediate},
      {"max_position_embeddings", 32768},
      {"max_window_layers", 21},
      {"model_type", moe ? "qwen2_moe" : "qwen2"},
      {"num_attention_heads", s.n_heads},
      {"num_hidden_layers", s.n_layers},
      {"num_key_value_heads", s.n_kv_heads},
      {"rms_norm_eps", 1e-6},
      {"rope_theta", s.rope_theta},
      {"sliding_window", 32768},
      {"tie_word_embeddings", s.tied},
      {"torch_dtype", options.format == "bf16"  ? "bfloat16"
                      : options.format == "f32" ? "float32"
                                                : "float16"},
      {"transformers_version", "4.37.0"},
      {"use_cache", true},
      {"use_sliding_window", false},
      {"vocab_size", s.vocab}};
  if (moe) {
    config.update({{"decoder_sparse_step", 1},
                   {"moe_intermediate_size", s.expert_intermediate},
                   {"norm_topk_prob", false},
                   {"num_experts", s.n_experts},
                   {"num_experts_per_tok", s.top_k},
                   {"output_router_logits", false},
                   {"router_aux_loss_coef", 0.001},
                   {"shared_expert_intermediate_size", s.shared_intermediate}});
  }
  if (options.format.starts_with("gptq")) {
    config["quantization_config"] = {{"bits", options.format == "gptq-int8" ? 8 : 4},
                                     {"group_size", options.group_size},
                                     {"damp_percent", 0.01},
                                     {"desc_act", false},
                                     {"static_groups", false},
                                     {"sym", true},
                                     {"true_sequential", true},
                                     {"model_name_or_path", nullptr},
                                     {"model_file_base_name", "model"},
                                     {"quant_method", "gptq"}};
  } else if (options.format == "awq") {
    config["quantization_config"] = {{"bits", 4},
                                     {"group_size", options.group_size},
                                     {"modules_to_not_convert", nullptr},
                                     {"quant_method", "awq"},
                                     {"version", "gemm"},
                                     {"zero_point", true}};
  }
  return config;
}

/// One file entry and how to make its bytes.
struct Entry {
  SafetensorsEntry file;
  std::function<void(SafetensorsWriter&)> write;
};

class DirectoryMaker {
 public:
  DirectoryMaker(const Options& options, const ModelShape& shape)
      : options_(options),
        shape_(shape),
        pool_(options.seed),
        words_(options.seed),
        bits_(options.format == "gptq-int8" ? 8 : 4),
        gptq_(options.format.starts_with("gptq")),
        awq_(options.format == "awq") {}

  void make() {
    namespace fs = std::filesystem;
    fs::create_directories(options_.output);
    write_text("config.json", config_json(options_, shape_).dump(2) + "\n");
    std::vector<Entry> entries;
    uint64_t stream = 0x10000;
    for (const Tensor& tensor : tensors_of(shape_, false))
      add(entries, tensor, ++stream);
    std::vector<SafetensorsEntry> files;
    int64_t total = 0;
    for (const Entry& entry : entries) {
      files.push_back(entry.file);
      total += entry.file.shape.rows() *
               row_bytes(entry.file.dtype, entry.file.shape.cols(), entry.file.name);
    }
    Progress progress("writing " + options_.output, total, Progress::Unit::kBytes);
    SafetensorsWriter out(options_.output + "/model.safetensors", files, {{"format", "pt"}});
    for (const Entry& entry : entries) {
      entry.write(out);
      progress.add(entry.file.shape.rows() *
                   row_bytes(entry.file.dtype, entry.file.shape.cols(), entry.file.name));
    }
    out.finish();
  }

 private:
  void write_text(const std::string& name, const std::string& text) const {
    write_file_atomically(options_.output + "/" + name, std::as_bytes(std::span(text)));
  }

  DType plain_type() const {
    if (gptq_ || awq_) return DType::kF16;
    return *dtype_from_name(options_.format);
  }

  void add(std::vector<Entry>& entries, const Tensor& tensor, uint64_t stream) {
    const bool quantised =
        (gptq_ || awq_) &&
        (tensor.role == Role::kLinear || tensor.role == Role::kV || tensor.role == Role::kDown);
    if (quantised) return add_quantised(entries, tensor);
    const DType dtype = plain_type();
    entries.push_back({{tensor.name + tensor.suffix, dtype, tensor.shape},
                       [this, tensor, dtype, stream](SafetensorsWriter& out) {
                         if (!is_matrix(tensor.role) && tensor.role != Role::kRouter) {
                           const auto values = vector_values(tensor, options_.seed, stream);
                           std::vector<std::byte> bytes(static_cast<size_t>(
                               row_bytes(dtype, tensor.shape.n_elems(), "vector")));
                           encode_row(dtype, values.data(), tensor.shape.n_elems(), bytes.data());
                           out.write(bytes);
                           return;
                         }
                         for (int64_t row = 0; row < tensor.shape.rows(); ++row) {
                           out.write(pool_.row(dtype, tensor.shape.cols(), std_of(tensor),
                                               row * 7 + static_cast<int64_t>(stream)));
                         }
                       }});
  }

  void add_quantised(std::vector<Entry>& entries, const Tensor& tensor) {
    const int64_t n = tensor.shape[0], k = tensor.shape[1];
    if (k % options_.group_size != 0 || n % 8 != 0) {
      fail(ErrorKind::kInvalidArgument, "make_model",
           "group size of {}: expected a divisor of {}, got {}", tensor.name, k,
           options_.group_size);
    }
    const int64_t groups = k / options_.group_size;
    const auto part = [&](std::string_view suffix, DType dtype, const Shape& shape, auto write) {
      Entry& entry = entries.emplace_back();
      entry.file = {fmt::format("{}.{}", tensor.name, suffix), dtype, shape};
      entry.write = write;
    };
    // Uniform codes have a standard deviation of 2^bits / sqrt(12).
    const double scale = std_of(tensor) / (std::ldexp(1.0, bits_) / std::sqrt(12.0));
    const Shape qweight = gptq_ ? Shape{k * bits_ / 32, n} : Shape{k, n / 8};
    part("qweight", DType::kI32, qweight, [this, qweight](SafetensorsWriter& out) {
      words_.emit(qweight.n_elems(), [&](auto bytes) { out.write(bytes); });
    });
    const Shape qzeros{groups, n * bits_ / 32};
    // v1 zeros hold zero - 1; AWQ's hold the zero itself.
    const uint32_t zero = gptq_ ? (bits_ == 8 ? 0x7F7F7F7Fu : 0x77777777u) : 0x88888888u;
    part("qzeros", DType::kI32, qzeros, [qzeros, zero](SafetensorsWriter& out) {
      const std::vector<uint32_t> values(static_cast<size_t>(qzeros.n_elems()), zero);
      out.write(std::as_bytes(std::span(values)));
    });
    part("scales", DType::kF16, Shape{groups, n}, [groups, n, scale](SafetensorsWriter& out) {
      std::vector<uint16_t> values(static_cast<size_t>(groups * n));
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = f32_to_f16(static_cast<float>(
            scale * (0.75 + 0.5 * static_cast<double>((i * 2654435761u) % 1024) / 1024)));
      }
      out.write(std::as_bytes(std::span(values)));
    });
    if (!gptq_) return;
    part("g_idx", DType::kI32, Shape{k}, [this, k](SafetensorsWriter& out) {
      std::vector<int32_t> values(static_cast<size_t>(k));
      for (size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<int32_t>(static_cast<int64_t>(i) / options_.group_size);
      out.write(std::as_bytes(std::span(values)));
    });
  }

  const Options& options_;
  const ModelShape& shape_;
  RowPool pool_;
  WordPool words_;
  int bits_;
  bool gptq_, awq_;
};

void run(const Options& options) {
  const auto found = std::find_if(kShapes.begin(), kShapes.end(),
                                  [&](const ModelShape& s) { return s.name == options.size; });
  if (found == kShapes.end()) {
    std::string names;
    for (const ModelShape& s : kShapes)
      names += (names.empty() ? "" : ", ") + s.name;
    fail(ErrorKind::kInvalidArgument, "make_model", "size: expected one of {}, got '{}'", names,
         printable(options.size));
  }
  ModelShape shape = *found;
  if (options.layers > 0) shape.n_layers = options.layers;
  if (options.vocab > 0) shape.vocab = options.vocab;
  const bool directory = options.format == "bf16" || options.format == "f16" ||
                         options.format == "f32" || options.format.starts_with("gptq-int") ||
                         options.format == "awq";
  directory ? DirectoryMaker(options, shape).make() : make_gguf(options, shape);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Makes a checkpoint of an exact Qwen1.5 shape with random weights");
  Options options;
  app.add_option("--size", options.size,
                 "0.5B, 1.8B, 4B, 7B, 14B, 32B, 72B, 110B, MoE-A2.7B or tiny")
      ->capture_default_str();
  app.add_option("--format", options.format,
                 "bf16, f16, f32, gptq-int4, gptq-int8, awq (directory); q4_0, q8_0, q6_k, q4_k_m, "
                 "gguf-f16, ... (file)")
      ->capture_default_str();
  app.add_option("--output", options.output, "Directory, or .gguf file")->required();
  app.add_option("--layers", options.layers, "Number of layers (default: the shape's)");
  app.add_option("--vocab", options.vocab, "Vocabulary size (default: the shape's)");
  app.add_option("--seed", options.seed, "Seed")->capture_default_str();
  app.add_option("--group-size", options.group_size, "Columns per group for GPTQ and AWQ")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
  } catch (const qw::Error& error) {
    std::fprintf(stderr, "make_model: error: %s\n", error.message().c_str());
    return qw::exit_code(error.kind());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "make_model: error: %s\n", error.what());
    return 1;
  }
}
