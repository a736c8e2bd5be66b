// GGUF files: which type each tensor gets, metadata, a vocabulary of the right length.
#include <array>
#include <utility>

#include "base/error.h"
#include "base/progress.h"
#include "checkpoint/gguf.h"
#include "make_model/makers.h"
#include "make_model/random_values.h"
#include "quantize/gguf_recipe.h"

namespace qw::make_model {

namespace {

/// The types of a file: a recipe's, or one for all matrices.
class Types {
 public:
  Types(const std::string& format, const ModelShape& shape) : recipe_(find_gguf_recipe(format)) {
    model_ = {.n_layers = shape.n_layers,
              .n_heads = shape.n_heads,
              .n_kv_heads = shape.n_kv_heads,
              .n_experts = shape.n_experts,
              .tied = shape.tied};
    if (recipe_ != nullptr) return;
    const auto dtype = dtype_from_name(format);
    if (!dtype || info(*dtype).ggml_id < 0) {
      fail(ErrorKind::kInvalidArgument, "make_model",
           "format: expected bf16, f16 or f32 (directory), gptq-int4, gptq-int8, awq, or a GGUF "
           "type or recipe (gguf-f16, gguf-bf16, q4_0, q4_k_m, ...), got '{}'",
           printable(format));
    }
    type_ = *dtype;
  }

  DType of(const Tensor& tensor) const {
    if (!is_matrix(tensor.role)) return DType::kF32;
    const int64_t cols = tensor.shape.cols();
    if (recipe_ != nullptr) return recipe_type(*recipe_, model_, {id_of(tensor), cols}, true);
    if (cols % info(type_).block_elems == 0) return type_;
    return fallback_type(type_, cols).value_or(DType::kF16);
  }

 private:
  static ModuleId id_of(const Tensor& tensor) {
    const std::optional<ModuleId> id = parse_gguf_name(tensor.name);
    QW_CHECK(id.has_value(), "{} is a module's name", tensor.name);
    return *id;
  }

  const GgufRecipe* recipe_;
  RecipeModel model_;
  DType type_ = DType::kF32;
};

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
  const auto u32 = [&](const char* key, int64_t value) {
    entries.emplace_back(key, GgufValue::u32(static_cast<uint32_t>(value)));
  };
  entries.emplace_back("tokenizer.ggml.model", GgufValue::string("gpt2"));
  entries.emplace_back("tokenizer.ggml.pre", GgufValue::string("qwen2"));
  entries.emplace_back("tokenizer.ggml.tokens", GgufValue::strings(std::move(tokens)));
  entries.emplace_back("tokenizer.ggml.token_type", GgufValue::i32s(std::move(types)));
  entries.emplace_back("tokenizer.ggml.merges", GgufValue::strings({"t h"}));
  u32("tokenizer.ggml.eos_token_id", special + 2);
  u32("tokenizer.ggml.padding_token_id", special);
  u32("tokenizer.ggml.bos_token_id", special);
  entries.emplace_back("tokenizer.ggml.add_bos_token", GgufValue::boolean(false));
}

void add_metadata(GgufWriter& writer, const ModelShape& s) {
  const std::string arch = s.n_experts > 0 ? "qwen2moe" : "qwen2";
  auto& entries = writer.entries;
  entries.emplace_back("general.architecture", GgufValue::string(arch));
  entries.emplace_back("general.name", GgufValue::string("random Qwen1.5-" + s.name));
  const auto u32 = [&](const char* key, int64_t value) {
    entries.emplace_back(arch + key, GgufValue::u32(static_cast<uint32_t>(value)));
  };
  u32(".block_count", s.n_layers);
  u32(".context_length", 32768);
  u32(".embedding_length", s.hidden);
  u32(".feed_forward_length", s.intermediate);
  u32(".attention.head_count", s.n_heads);
  u32(".attention.head_count_kv", s.n_kv_heads);
  entries.emplace_back(arch + ".rope.freq_base", GgufValue::f32(static_cast<float>(s.rope_theta)));
  entries.emplace_back(arch + ".attention.layer_norm_rms_epsilon", GgufValue::f32(1e-6f));
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

}  // namespace

void make_gguf(const Options& options, const ModelShape& shape) {
  const Types types(options.format.starts_with("gguf-") ? options.format.substr(5) : options.format,
                    shape);
  const std::vector<Tensor> tensors = tensors_of(shape, true);
  GgufWriter writer;
  add_metadata(writer, shape);
  for (const Tensor& tensor : tensors) {
    writer.tensors.push_back({tensor.name + tensor.suffix, types.of(tensor), tensor.shape});
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

}  // namespace qw::make_model
