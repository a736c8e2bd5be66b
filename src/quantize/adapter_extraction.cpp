#include "quantize/adapter_extraction.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/atomic_directory.h"
#include "base/atomic_file.h"
#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "quant/ggml_blocks.h"
#include "quantize/low_rank_approximation.h"

namespace qw {

namespace {

constexpr const char* kPrefix = "base_model.model.";

/// A tensor of the adapter's file.
struct Tensor {
  std::string name;
  Shape shape;
  std::vector<float> values;
};

void check_same(std::string_view field, int64_t base, int64_t tuned) {
  if (base == tuned) return;
  fail(ErrorKind::kInvalidArgument, "extract",
       "{}: expected the same in both checkpoints, got {} in the base and {} in the other", field,
       base, tuned);
}

void check_configs(const ModelConfig& base, const ModelConfig& tuned) {
  check_same("hidden_size", base.hidden, tuned.hidden);
  check_same("intermediate_size", base.intermediate, tuned.intermediate);
  check_same("num_hidden_layers", base.n_layers, tuned.n_layers);
  check_same("num_attention_heads", base.n_heads, tuned.n_heads);
  check_same("num_key_value_heads", base.n_kv_heads, tuned.n_kv_heads);
  check_same("vocab_size", base.vocab, tuned.vocab);
  check_same("num_experts", base.moe ? base.moe->n_experts : 0,
             tuned.moe ? tuned.moe->n_experts : 0);
}

std::vector<float> decoded(const LinearSource& source, ThreadPool& pool) {
  std::vector<float> values(static_cast<size_t>(source.n * source.k));
  pool.parallel_for(source.n, 8, [&](int64_t begin, int64_t end, int) {
    source.decode_rows(begin, end - begin, values.data() + begin * source.k);
  });
  return values;
}

double squares(std::span<const float> values) {
  double sum = 0;
  for (const float value : values)
    sum += static_cast<double>(value) * static_cast<double>(value);
  return sum;
}

std::string leaf_of(const std::string& module) {
  return module.substr(module.rfind('.') + 1);
}

class Extractor {
 public:
  Extractor(const ExtractionOptions& options, ThreadPool& pool,
            const std::function<void(int64_t)>& done, const CancelFlag* cancel)
      : options_(options), pool_(pool), done_(done), cancel_(cancel) {}

  void take(const LinearParts& base, const LinearParts& tuned) {
    for (size_t i = 0; i < base.parts.size(); ++i)
      take(base.modules[i], base.parts[i], tuned.parts[i]);
    // GPTQ files may have biases of zeros that others leave out.
    const auto is_zero = [](float value) { return value == 0; };
    const bool differ =
        base.bias.size() == tuned.bias.size()
            ? base.bias != tuned.bias
            : !std::ranges::all_of(base.bias, is_zero) || !std::ranges::all_of(tuned.bias, is_zero);
    if (differ) ++n_biases_;
  }
  void take(const ModuleId& norm, const std::vector<float>& base, const std::vector<float>& tuned) {
    if (base == tuned) return;
    add_whole(norm, Shape{std::ssize(tuned)}, tuned);
  }

  Extraction finish(const std::string& path) {
    out_.kept = total_ > 0 ? 1 - lost_ / total_ : 1;
    if (tensors_.empty()) {
      fail(ErrorKind::kInvalidArgument, "extract",
           "checkpoints: expected two that differ in something that an adapter can hold, got "
           "the same{}",
           n_left_out_ > 0 ? " but for embedding or output matrix (--embeddings)" : "");
    }
    warn();
    write(path);
    return std::move(out_);
  }

 private:
  void take(const ModuleId& id, const LinearSource& base, const LinearSource& tuned) {
    if (cancel_ != nullptr) cancel_->check("extracting an adapter");
    const std::string name = hf_name(id);
    check_same("rows of " + name, base.n, tuned.n);
    check_same("columns of " + name, base.k, tuned.k);
    std::vector<float> difference = decoded(tuned, pool_);
    const bool is_table = id.slot == Slot::kEmbedding || id.slot == Slot::kLmHead;
    const std::vector<float> before = decoded(base, pool_);
    if (difference == before) {
      if (!is_table) ++out_.n_unchanged;
    } else if (is_table) {
      if (options_.embeddings) {
        add_whole(id, Shape{tuned.n, tuned.k}, std::move(difference));
      } else {
        ++n_left_out_;
      }
    } else {
      for (size_t i = 0; i < before.size(); ++i)
        difference[i] -= before[i];
      add_factors(name, difference, before, base.n, base.k);
    }
    leaves_[leaf_of(name)] += is_table ? 0 : 1;
    done_(base.n * base.k);
  }

  void add_factors(const std::string& name, const std::vector<float>& difference,
                   const std::vector<float>& before, int64_t n, int64_t k) {
    const double size = squares(difference);
    if (!std::isfinite(size)) {
      fail(ErrorKind::kCorrupt, "extract", "{}: expected finite weights, got others",
           printable(name));
    }
    LowRankFactors factors = approximate_low_rank(difference, n, k, options_.rank, pool_);
    // Every module of the file has the rank that adapter_config.json says.
    factors.a.resize(static_cast<size_t>(options_.rank * k));
    std::vector<float> b(static_cast<size_t>(n * options_.rank));
    for (int64_t row = 0; row < n; ++row) {
      std::copy_n(factors.b.begin() + row * factors.rank, factors.rank,
                  b.begin() + row * options_.rank);
    }
    tensors_.push_back(
        {kPrefix + name + ".lora_A.weight", Shape{options_.rank, k}, std::move(factors.a)});
    tensors_.push_back({kPrefix + name + ".lora_B.weight", Shape{n, options_.rank}, std::move(b)});
    const double base_size = squares(before);
    out_.modules.push_back(
        {name, base_size > 0 ? std::sqrt(size / base_size) : 0, 1 - factors.lost});
    total_ += size;
    lost_ += factors.lost * size;
  }
  void add_whole(const ModuleId& id, const Shape& shape, std::vector<float> values) {
    tensors_.push_back({kPrefix + hf_name(id) + ".weight", shape, std::move(values)});
    whole_.push_back(hf_name(id));
    ++out_.n_whole;
  }

  void warn() {
    if (n_left_out_ > 0) {
      out_.warnings.push_back(
          "embedding or output matrix differ and are left out; --embeddings takes them along "
          "whole");
    }
    if (n_biases_ > 0) {
      out_.warnings.push_back(fmt::format(
          "biases of {} layers differ, which a LoRA adapter cannot hold: they are left out",
          n_biases_));
    }
  }

  /// Last parts of names where all modules of that kind are changed, else whole names.
  nlohmann::ordered_json targets() const {
    std::map<std::string, int64_t> changed;
    for (const ExtractedModule& module : out_.modules)
      ++changed[leaf_of(module.name)];
    std::set<std::string> names;
    for (const ExtractedModule& module : out_.modules) {
      const std::string leaf = leaf_of(module.name);
      names.insert(changed[leaf] == leaves_.at(leaf) ? leaf : module.name);
    }
    return names;
  }
  std::string config() const {
    nlohmann::ordered_json json = {{"peft_type", "LORA"},
                                   {"task_type", "CAUSAL_LM"},
                                   {"base_model_name_or_path", options_.base_name},
                                   {"r", options_.rank},
                                   {"lora_alpha", options_.rank},
                                   {"lora_dropout", 0.0},
                                   {"bias", "none"},
                                   {"fan_in_fan_out", false},
                                   {"inference_mode", true},
                                   {"use_dora", false},
                                   {"use_rslora", false},
                                   {"target_modules", targets()}};
    if (!whole_.empty()) json["modules_to_save"] = whole_;
    return json.dump(2) + "\n";
  }
  void write(const std::string& path) const {
    AtomicDirectory directory(path);
    const std::string text = config();
    write_file_atomically(directory.file("adapter_config.json"), std::as_bytes(std::span(text)));
    std::vector<SafetensorsEntry> entries;
    for (const Tensor& tensor : tensors_)
      entries.push_back({tensor.name, options_.dtype, tensor.shape});
    SafetensorsWriter out(directory.file("adapter_model.safetensors"), entries, {{"format", "pt"}});
    for (const Tensor& tensor : tensors_) {
      const int64_t n = std::ssize(tensor.values);
      std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(options_.dtype, n, tensor.name)));
      encode_row(options_.dtype, tensor.values.data(), n, bytes.data());
      out.write(bytes);
    }
    out.finish();
    directory.commit();
  }

  const ExtractionOptions& options_;
  ThreadPool& pool_;
  const std::function<void(int64_t)>& done_;
  const CancelFlag* cancel_;
  Extraction out_;
  std::vector<Tensor> tensors_;
  std::vector<std::string> whole_;
  std::map<std::string, int64_t> leaves_;  // modules of each kind
  double total_ = 0, lost_ = 0;            // squares of differences, and of what is left out
  int64_t n_biases_ = 0, n_left_out_ = 0;
};

}  // namespace

Extraction extract_adapter(const ModelConfig& base_config, const NetworkSources& base,
                           const ModelConfig& tuned_config, const NetworkSources& tuned,
                           const ExtractionOptions& options, const std::string& path,
                           ThreadPool& pool, const std::function<void(int64_t)>& done,
                           const CancelFlag* cancel) {
  check_configs(base_config, tuned_config);
  Extractor extractor(options, pool, done, cancel);
  std::map<std::string, const LinearParts*> by_name;
  tuned.for_each([&](const LinearParts& linear) { by_name[linear.name] = &linear; });
  base.for_each([&](const LinearParts& linear) {
    const auto other = by_name.find(linear.name);
    // One of them is tied: its output matrix is its embedding.
    const LinearParts& parts = other != by_name.end() ? *other->second : tuned.lm_head;
    extractor.take(linear, parts);
  });
  if (base.tied && !tuned.tied) extractor.take(base.lm_head, tuned.lm_head);
  for (int layer = 0; layer < base_config.n_layers; ++layer) {
    const LayerSources& before = base.layers[static_cast<size_t>(layer)];
    const LayerSources& after = tuned.layers[static_cast<size_t>(layer)];
    extractor.take({Slot::kInputNorm, layer}, before.input_norm, after.input_norm);
    extractor.take({Slot::kPostNorm, layer}, before.post_norm, after.post_norm);
  }
  extractor.take({Slot::kFinalNorm}, base.final_norm, tuned.final_norm);
  return extractor.finish(path);
}

}  // namespace qw
