// Applying adapters: low-rank deltas join the layers, whole tensors become overrides.
//
// Level 5 (model). Everything is staged first, so that an adapter that fails leaves no trace, and
// that staging can go on beside the forward pass: it reads what never changes once a model is
// loaded (config, sources, which layers there are), and packs with a backend of its own.
#include <algorithm>
#include <cmath>
#include <optional>

#include "base/checked.h"
#include "base/error.h"
#include "model/adapter_file.h"
#include "model/low_rank.h"
#include "model/memory_plan.h"
#include "model/qwen2_model.h"

namespace qw {

namespace {

/// The same matrix in f32. A backend may round activations to the width of a weight's own type; of
/// a delta, which was trained to the base's finest differences, nothing should be lost to that.
LinearSource widened(const LinearSource& source) {
  auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(source.n * source.k));
  source.decode_rows(0, source.n, values->data());
  return LinearSource::of_floats(source.name, source.n, source.k, std::move(values));
}

/// One combination of adapters, as it is being put together.
class Combination {
 public:
  Combination(const ModelConfig& config, const NetworkSources& sources, Network& network,
              Backend& backend)
      : config_(config), sources_(sources), network_(network), backend_(backend) {}

  /// Takes the whole tensors of a file. Those of all files go before the deltas of any, which may
  /// change them.
  void add_replacements(const AdapterFile& file) {
    for (const Replacement& replacement : file.replacements)
      replace(replacement, file.path);
    for (const NormReplacement& norm : file.norms)
      replace(norm, file.path);
  }

  void add_deltas(const AdapterFile& file, double scale) {
    for (const EmbeddingDelta& delta : file.embedding_deltas)
      add_to_embedding(delta, scale, file.path);
    for (const LowRankDelta& delta : file.deltas)
      add_delta(delta, scale, file.path);
  }

  std::unique_ptr<Qwen2Adapter> finish() {
    auto out = std::make_unique<Qwen2Adapter>();
    AdapterOverrides& own = out->overrides;
    if (embedding_) {
      own.embedding = backend_.pack_embedding(*embedding_);
      bytes_ += own.embedding->resident_bytes;
    }
    if (head_) {
      own.lm_head.name = "lm_head";
      own.lm_head.weight = pack(*head_);
    }
    own.norms = std::move(norms_);
    for (auto& [linear, delta] : deltas_) {
      // Deltas of lm_head go to the adapter's own one when it has one.
      Linear* target = linear == &network_.lm_head && head_ ? &own.lm_head : linear;
      out->deltas.push_back({target, std::move(delta)});
      ++out->n_deltas[target];
    }
    out->resident_bytes = bytes_;
    return out;
  }

 private:
  /// Notes that the file at `path` replaces the module. Errors: invalid_argument, when a file
  /// before did so already.
  void claim(const ModuleId& id, const std::string& path) {
    const auto before =
        std::ranges::find(replaced_by_, id, [](const auto& one) { return one.first; });
    if (before != replaced_by_.end()) {
      fail(ErrorKind::kInvalidArgument, "adapter",
           "module {}: expected one adapter at most to replace it (modules_to_save), got {} and {}",
           hf_name(id), printable(before->second), printable(path));
    }
    replaced_by_.emplace_back(id, path);
  }

  void replace(const Replacement& replacement, const std::string& path) {
    claim(replacement.id, path);
    check_adapter_shape(hf_name(replacement.id), replacement.weight, config_.vocab, config_.hidden,
                        path);
    (replacement.id.slot == Slot::kEmbedding ? embedding_ : head_) = replacement.weight;
  }

  void replace(const NormReplacement& norm, const std::string& path) {
    claim(norm.id, path);
    if (norm.id.layer >= config_.n_layers) {
      fail(ErrorKind::kCorrupt, "adapter", "module {}: expected a layer below {}, got {} ({})",
           hf_name(norm.id), config_.n_layers, norm.id.layer, printable(path));
    }
    if (static_cast<int64_t>(norm.weight.size()) != config_.hidden) {
      fail(ErrorKind::kCorrupt, "adapter", "module {}: expected [{}], got [{}] ({})",
           hf_name(norm.id), config_.hidden, norm.weight.size(), printable(path));
    }
    norms_.push_back({norm.id, upload(norm.weight)});
  }

  std::unique_ptr<LinearWeight> pack(const LinearSource& source) {
    std::unique_ptr<LinearWeight> weight = backend_.pack_linear({&source, 1});
    bytes_ += weight->resident_bytes;
    return weight;
  }

  std::unique_ptr<DeviceVector> upload(const std::vector<float>& values) {
    bytes_ += std::ssize(values) * int64_t{sizeof(float)};
    return backend_.upload(values);
  }

  void add_to_embedding(const EmbeddingDelta& delta, double scale, const std::string& path) {
    const int64_t rank = delta.b.k;
    check_adapter_shape("embed_tokens", delta.a, delta.a_rows_are_tokens ? config_.vocab : rank,
                        delta.a_rows_are_tokens ? rank : config_.vocab, path);
    check_adapter_shape("embed_tokens", delta.b, config_.hidden, rank, path);
    const LinearSource base = embedding_ ? *embedding_ : sources_.embedding.parts.front();
    auto table = std::make_shared<std::vector<float>>(static_cast<size_t>(base.n * base.k));
    base.decode_rows(0, base.n, table->data());
    add_embedding_delta(*table, base.n, base.k, delta, delta.scaling * scale);
    embedding_ =
        LinearSource::of_floats("embed_tokens with adapter", base.n, base.k, std::move(table));
  }

  void add_delta(const LowRankDelta& delta, double scale, const std::string& path) {
    const Network::Place place = network_.find(sources_, delta.id);
    if (place.linear == nullptr) {
      fail(ErrorKind::kCorrupt, "adapter",
           "module {}: expected a linear layer of this model, got a name it has not ({})",
           printable(delta.name), printable(path));
    }
    const LinearSource& part = place.parts->parts[place.part];
    check_adapter_shape(delta.name, delta.a, delta.a.n, part.k, path);
    check_adapter_shape(delta.name, delta.b, part.n, delta.a.n, path);
    const double total = delta.scaling * scale;
    LoraDelta out;
    out.out_begin = place.row_begin;
    out.scale = static_cast<float>(total);
    out.a = pack(widened(delta.a));
    out.b = pack(widened(delta.b));
    if (!delta.magnitude.empty()) {
      const LinearSource& w = delta.id.slot == Slot::kLmHead && head_ ? *head_ : part;
      out.row_factor = upload(dora_row_factors(w, delta, total));
    }
    deltas_.emplace_back(place.linear, std::move(out));
  }

  const ModelConfig& config_;
  const NetworkSources& sources_;
  Network& network_;
  Backend& backend_;
  std::optional<LinearSource> embedding_, head_;  // empty: the base's
  std::vector<NormOverride> norms_;
  std::vector<std::pair<ModuleId, std::string>> replaced_by_;  // path of the adapter
  std::vector<std::pair<Linear*, LoraDelta>> deltas_;
  int64_t bytes_ = 0;  // packed so far
};

/// Refuses what takes more than there is.
void check_limit(const std::vector<AdapterSpec>& adapters, int64_t bytes,
                 const StageOptions& options) {
  if (!options.limit_bytes || bytes <= *options.limit_bytes) return;
  const auto mib = [](int64_t n) { return static_cast<double>(n) / (1 << 20); };
  std::string names;
  for (const AdapterSpec& spec : adapters)
    names += (names.empty() ? "" : ", ") + printable(spec.path);
  fail(ErrorKind::kOutOfMemory, "memory",
       "adapter: expected to need at most {:.1f} MiB (what is available), got {:.1f} MiB ({})",
       mib(*options.limit_bytes), mib(bytes), names);
}

}  // namespace

std::unique_ptr<StagedAdapter> Qwen2Model::stage_adapters(const std::vector<AdapterSpec>& adapters,
                                                          const StageOptions& options) {
  const auto check_cancelled = [&options] {
    if (options.cancel != nullptr) options.cancel->check("loading an adapter");
  };
  const std::unique_ptr<Backend> packer = backend_.make_packer();
  Combination combination(config_, sources_, network_, *packer);
  std::vector<AdapterFile> files;
  int64_t bytes = 0;
  for (const AdapterSpec& spec : adapters) {
    check_cancelled();
    if (!std::isfinite(spec.scale)) {
      fail(ErrorKind::kInvalidArgument, "adapter", "scale of {}: expected a number, got {}",
           printable(spec.path), spec.scale);
    }
    files.push_back(read_adapter(spec.path));
    bytes = checked_add(bytes, qw::adapter_bytes(files.back(), config_, *packer), "adapters");
  }
  check_limit(adapters, bytes, options);
  for (const AdapterFile& file : files)
    combination.add_replacements(file);
  for (size_t i = 0; i < files.size(); ++i) {
    check_cancelled();
    combination.add_deltas(files[i], adapters[i].scale);
  }
  std::unique_ptr<Qwen2Adapter> out = combination.finish();
  out->model = this;
  checkpoint_->check_readable();  // DoRA and embeddings were computed from the base
  std::vector<KeyedHash::Bytes> parts;
  for (size_t i = 0; i < files.size(); ++i) {
    parts.push_back(files[i].mapping->bytes());
    parts.push_back(std::as_bytes(std::span(files[i].config)));
    parts.push_back(std::as_bytes(std::span(&adapters[i].scale, 1)));
  }
  out->content_names = name_content(parts, *packer);
  for (AdapterFile& file : files) {
    file.mapping->check_readable();
    out->files.push_back(std::move(file.mapping));
  }
  return out;
}

void Qwen2Model::put_adapter(int32_t id, StagedAdapter& staged) {
  auto& adapter = dynamic_cast<Qwen2Adapter&>(staged);
  QW_CHECK(adapter.model == this, "an adapter of another model");
  for (const auto& [layer, n] : adapter.n_deltas)
    layer->deltas.reserve(layer->deltas.size() + n);
  installed_.emplace(id, &adapter);
  for (Qwen2Adapter::Delta& part : adapter.deltas) {
    part.delta.adapter = id;
    part.layer->deltas.push_back(std::move(part.delta));
  }
}

void Qwen2Model::take_adapter(int32_t id, StagedAdapter& staged) noexcept {
  auto& adapter = static_cast<Qwen2Adapter&>(staged);
  installed_.erase(id);
  for (Qwen2Adapter::Delta& part : adapter.deltas) {
    // Each takes back one, in order: a layer has as many of the adapter as there are parts for it.
    std::vector<LoraDelta>& deltas = part.layer->deltas;
    const auto own = std::ranges::find(deltas, id, &LoraDelta::adapter);
    part.delta = std::move(*own);
    deltas.erase(own);
  }
}

}  // namespace qw
