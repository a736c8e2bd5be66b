// Hugging Face directories: config.json and one safetensors file, plain or with GPTQ or AWQ
// modules.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/half.h"
#include "base/progress.h"
#include "checkpoint/safetensors.h"
#include "make_model/makers.h"
#include "make_model/random_values.h"
#include "quant/ggml_blocks.h"

namespace qw::make_model {

namespace {

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

}  // namespace

bool is_directory_format(const std::string& format) {
  return format == "bf16" || format == "f16" || format == "f32" || format == "gptq-int4" ||
         format == "gptq-int8" || format == "awq";
}

void make_directory(const Options& options, const ModelShape& shape) {
  DirectoryMaker(options, shape).make();
}

}  // namespace qw::make_model
