// qianwen inspect: what is in a checkpoint, without loading it.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>

#include "app/command.h"
#include "app/open.h"
#include "base/error.h"
#include "base/progress.h"
#include "base/sha256.h"
#include "checkpoint/hf_config.h"
#include "model/config.h"
#include "model/sources.h"
#include "quant/ggml_blocks.h"
#include "text/tokenizer.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

struct Options : CommonOptions {
  bool hash = false;
};

/// sha256 of rows decoded to f32, [out, in] row-major, little-endian.
template <typename DecodeRow>
std::string hash_rows(int64_t rows, int64_t cols, DecodeRow decode) {
  Sha256 hash;
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    interrupted().check("inspect --hash");
    decode(r, row.data());
    hash.update(std::as_bytes(std::span(row)));
  }
  return to_hex(hash.finish());
}

std::string hash_tensor(const RawTensor& tensor) {
  const int64_t cols = tensor.shape.cols();
  const int64_t stride = row_bytes(tensor.dtype, cols, tensor.name, tensor.file);
  return hash_rows(tensor.shape.rows(), cols, [&](int64_t row, float* out) {
    decode_row(tensor.dtype, tensor.bytes.data() + row * stride, cols, out);
  });
}

class Inspection {
 public:
  Inspection(const Options& options) : options_(options), files_(open_for_reading(options, false)) {
    checkpoint_ = files_.checkpoint;
    if (!checkpoint_->config_json && !checkpoint_->gguf && !files_.tokenizer &&
        checkpoint_->tensors.all().empty()) {
      fail(ErrorKind::kNotFound, "checkpoint",
           "model: expected config.json, a tokenizer or weights, got none of them ({})",
           printable(model_path(options), 4096));
    }
    if (checkpoint_->config_json || checkpoint_->gguf)
      config_ = ModelConfig::from_checkpoint(*checkpoint_);
  }

  ordered_json json() {
    ordered_json out = {
        {"path", checkpoint_->path},
        {"kind", checkpoint_->kind == Checkpoint::Kind::kGguf ? "gguf" : "directory"}};
    out["config"] = config_json();
    out["quantization"] = quantization_json();
    out["tokenizer"] = tokenizer_json();
    out["generation"] = files_.generation.applied();
    out["tensors"] = tensors_json();
    out["totals"] = totals_json();
    return out;
  }

  std::string text() {
    const ordered_json all = json();
    std::string out = fmt::format("{}  ({})\n", checkpoint_->path, all["kind"].get<std::string>());
    for (const char* section : {"config", "quantization", "tokenizer", "totals"}) {
      out += fmt::format("\n{}\n", section);
      if (!all[section].is_object()) {
        out += "  none\n";
        continue;
      }
      for (const auto& [key, value] : all[section].items())
        out += fmt::format("  {:<28} {}\n", key, printable(value.dump(), 200));
    }
    out += "\ntensors\n";
    for (const auto& tensor : all["tensors"]) {
      out += fmt::format("  {:<56} {:<10} {:<18} {:>12}", tensor["name"].get<std::string>(),
                         tensor["type"].get<std::string>(), tensor["shape"].dump(),
                         tensor["bytes"].get<int64_t>());
      if (tensor.contains("sha256")) out += "  " + tensor["sha256"].get<std::string>();
      out += "\n";
    }
    return out;
  }

 private:
  ordered_json config_json() const {
    if (checkpoint_->config_json)
      return parse_json_object(*checkpoint_->config_json, "config.json");
    if (!config_) return nullptr;
    // GGUF: the same facts under Hugging Face's names, then the file's own metadata.
    ordered_json out = {{"architectures", {config_->architecture}},
                        {"hidden_size", config_->hidden},
                        {"intermediate_size", config_->intermediate},
                        {"num_hidden_layers", config_->n_layers},
                        {"num_attention_heads", config_->n_heads},
                        {"num_key_value_heads", config_->n_kv_heads},
                        {"head_dim", config_->head_dim},
                        {"vocab_size", config_->vocab},
                        {"max_position_embeddings", config_->max_positions},
                        {"rms_norm_eps", config_->rms_norm_eps},
                        {"rope_theta", config_->rope.theta},
                        {"tie_word_embeddings", config_->tied_embeddings},
                        {"eos_token_id", config_->eos_ids}};
    if (config_->moe) {
      out["num_experts"] = config_->moe->n_experts;
      out["num_experts_per_tok"] = config_->moe->top_k;
      out["moe_intermediate_size"] = config_->moe->expert_intermediate;
      out["shared_expert_intermediate_size"] = config_->moe->shared_intermediate;
    }
    out["gguf"] = metadata_json();
    return out;
  }

  ordered_json metadata_json() const {
    ordered_json out = {{"version", checkpoint_->gguf->version},
                        {"big_endian", checkpoint_->gguf->big_endian},
                        {"alignment", checkpoint_->gguf->alignment}};
    for (const auto& [key, value] : checkpoint_->gguf->entries) {
      std::visit(
          [&, &key = key](const auto& held) {
            using T = std::decay_t<decltype(held)>;
            if constexpr (std::is_same_v<T, std::string>) {
              out[key] = printable(held, 400);
            } else if constexpr (std::is_arithmetic_v<T>) {
              out[key] = held;
            } else {
              out[key] = fmt::format("array of {}", held.size());
            }
          },
          value.value);
    }
    return out;
  }

  ordered_json quantization_json() const {
    if (!config_ || config_->quantization.method.empty()) return nullptr;
    const QuantizationConfig& q = config_->quantization;
    ordered_json out = {{"method", q.method}, {"bits", q.bits}};
    if (q.group_size != 0) out["group_size"] = q.group_size;
    if (q.method == "gptq") {
      out["desc_act"] = q.desc_act;
      out["sym"] = q.sym;
      out["zeros"] = q.v2_zeros ? "v2" : "v1";
      for (const ModuleRule& rule : q.rules) {
        ordered_json own = ordered_json::object();
        if (rule.bits) own["bits"] = *rule.bits;
        if (rule.group_size) own["group_size"] = *rule.group_size;
        if (rule.desc_act) own["desc_act"] = *rule.desc_act;
        if (rule.sym) own["sym"] = *rule.sym;
        out["dynamic"][(rule.is_quantised ? "+:" : "-:") + rule.names.text()] = std::move(own);
      }
    } else if (q.method == "bitsandbytes") {
      out["type"] = q.bnb_type;
      out["double_quant"] = q.bnb_double;
    } else {
      out["version"] = q.awq_version;
      out["zero_point"] = q.zero_point;
    }
    if (!q.modules_to_not_convert.empty()) out["modules_to_not_convert"] = q.modules_to_not_convert;
    return out;
  }

  ordered_json tokenizer_json() const {
    if (!files_.tokenizer) return nullptr;
    const Tokenizer& tokenizer = *files_.tokenizer;
    ordered_json out = {{"source", tokenizer.source()}, {"size", tokenizer.size()}};
    const auto put = [&](const char* name, std::optional<int32_t> id) {
      if (id)
        out[name] = ordered_json{{"id", *id}, {"token", std::string(tokenizer.token_text(*id))}};
    };
    put("bos", tokenizer.bos_id());
    put("eos", tokenizer.eos_id());
    put("pad", tokenizer.pad_id());
    out["chat_template"] = files_.chat_template_origin;
    return out;
  }

  ordered_json tensors_json() {
    ordered_json list = ordered_json::array();
    Progress progress("hashing", options_.hash ? checkpoint_->tensor_bytes() : 0,
                      Progress::Unit::kBytes, !options_.hash);
    for (const RawTensor& tensor : checkpoint_->tensors.all()) {
      const auto bytes = static_cast<int64_t>(tensor.bytes.size());
      ordered_json item = {{"name", tensor.name},
                           {"type", std::string(name_of(tensor.dtype))},
                           {"shape", tensor.shape.sizes()},
                           {"bytes", bytes}};
      if (options_.hash && (is_float(tensor.dtype) || is_block(tensor.dtype)))
        item["sha256"] = hash_tensor(tensor);
      list.push_back(std::move(item));
      by_type_[std::string(name_of(tensor.dtype))] += bytes;
      progress.add(bytes);
    }
    add_modules(list);
    checkpoint_->check_readable();
    return list;
  }

  /// Quantised linears as the matrices they stand for, beside their parts.
  void add_modules(ordered_json& list) {
    if (!config_ || config_->quantization.method.empty()) return;
    for (const RawTensor& tensor : checkpoint_->tensors.all()) {
      const std::string module = module_of_codes(checkpoint_->tensors, tensor.name);
      if (module.empty()) continue;
      std::string warning;
      const LinearSource source =
          open_quantised_module(checkpoint_->tensors, config_->quantization, module, &warning);
      ordered_json item = {{"name", module + ".weight"},
                           {"module", module},
                           {"type", source.format_name()},
                           {"shape", {source.n, source.k}},
                           {"bytes", source.published_bytes()}};
      if (options_.hash) {
        item["sha256"] = hash_rows(
            source.n, source.k, [&](int64_t row, float* out) { source.decode_rows(row, 1, out); });
      }
      if (!warning.empty()) item["warning"] = warning;
      list.push_back(std::move(item));
    }
  }

  ordered_json totals_json() const {
    ordered_json out = {{"n_tensors", checkpoint_->tensors.all().size()},
                        {"tensor_bytes", checkpoint_->tensor_bytes()},
                        {"file_bytes", checkpoint_->file_bytes()},
                        {"files", checkpoint_->weight_files}};
    if (config_) {
      out["n_parameters"] = config_->n_parameters();
      out["n_parameters_active"] = config_->n_parameters_active();
    }
    out["bytes_by_type"] = by_type_;
    return out;
  }

  const Options& options_;
  ModelFiles files_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::optional<ModelConfig> config_;
  std::map<std::string, int64_t> by_type_;
};

}  // namespace

Command register_inspect(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("inspect", "Config, tokenizer and tensors of a checkpoint");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options, ComputeFlags::kWithoutEffect);
  app->add_flag("--hash", options->hash,
                "sha256 of every tensor decoded to f32, [out, in], little-endian");
  return {app, [options] {
            Inspection inspection(*options);
            options->json ? print_json(inspection.json()) : print_result(inspection.text());
          }};
}

}  // namespace qw::app
