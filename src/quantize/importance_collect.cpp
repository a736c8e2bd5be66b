// Level 6 (quantize): importances from calibration.
#include <algorithm>
#include <memory>
#include <numeric>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "quantize/importance.h"
#include "quantize/layer_pass.h"

namespace qw::quantize {

namespace {

/// Sums of squares of the inputs of one matrix, in double.
class Squares {
 public:
  explicit Squares(int64_t k) : sums_(static_cast<size_t>(k)) {}

  void add(const float* x, int64_t n_tokens) {
    for (int64_t t = 0; t < n_tokens; ++t, x += sums_.size()) {
      for (size_t i = 0; i < sums_.size(); ++i)
        sums_[i] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    }
    n_tokens_ += n_tokens;
  }
  void append_to(ImportanceEntry& entry) const {
    for (const double sum : sums_)
      entry.sums.push_back(static_cast<float>(sum));
    entry.counts.push_back(static_cast<float>(n_tokens_));
  }

 private:
  std::vector<double> sums_;
  int64_t n_tokens_ = 0;
};

class Collector {
 public:
  Collector(const ModelConfig& config, Backend& backend, LayerPass& pass)
      : config_(config), backend_(backend), pass_(pass) {}

  void layer(const LayerSources& layer) {
    const LayerWeights w = pack_layer(backend_, layer, config_);
    collect(layer.qkv, [&](LayerPass::Take add) { pass_.norm_inputs(w, add); });
    collect(layer.o, [&](LayerPass::Take add) { pass_.attend(w, add); });
    if (w.moe == nullptr) {
      collect(layer.gate_up, [&](LayerPass::Take add) { pass_.add_attention(w, add); });
      collect(layer.down, [&](LayerPass::Take add) { pass_.gated(w.gate_up, add); });
    } else {
      pass_.add_attention(w, [](const float*, int64_t) {});
      experts(layer.moe, *w.moe);
    }
    pass_.add_feed_forward(w);
  }

  /// The output matrix sees the norm of the last hidden states.
  void output(const NetworkSources& sources) {
    LayerWeights last;
    last.input_norm = backend_.upload(sources.final_norm);
    LinearParts head = sources.lm_head;
    if (sources.tied) head.modules = {{Slot::kEmbedding}};
    collect(head, [&](LayerPass::Take add) { pass_.norm_inputs(last, add); });
  }

  ImportanceMatrix take() { return std::move(out_); }

 private:
  using Stage = FunctionRef<void(LayerPass::Take)>;

  ImportanceEntry& entry_of(ModuleId id) {
    id.expert = -1;
    return out_.entries[gguf_name(id) + ".weight"];
  }
  /// Appends what `stage` shows to the entries of all matrices that share it.
  void collect(const LinearParts& parts, Stage stage) {
    Squares squares(parts.parts.front().k);
    stage([&](const float* x, int64_t n_tokens) { squares.add(x, n_tokens); });
    for (const ModuleId& id : parts.modules)
      squares.append_to(entry_of(id));
  }
  void experts(const MoeSources& from, const MoeWeights& moe) {
    const std::vector<std::vector<int32_t>> routed = pass_.route(moe);
    for (size_t e = 0; e < routed.size(); ++e) {
      collect(from.gate_up[e], [&](LayerPass::Take add) { pass_.expert_inputs(routed[e], add); });
      collect(from.down[e],
              [&](LayerPass::Take add) { pass_.expert_gated(routed[e], moe.gate_up[e], add); });
    }
    if (from.shared_gate_up.parts.empty()) return;
    std::vector<int32_t> all(static_cast<size_t>(pass_.n_tokens()));
    std::iota(all.begin(), all.end(), 0);
    collect(from.shared_gate_up, [&](LayerPass::Take add) { pass_.expert_inputs(all, add); });
    collect(from.shared_down, [&](LayerPass::Take add) { pass_.gated(moe.shared_gate_up, add); });
  }

  const ModelConfig& config_;
  Backend& backend_;
  LayerPass& pass_;
  ImportanceMatrix out_;
};

}  // namespace

namespace {

constexpr std::string_view kSums = ".sums", kCounts = ".counts";

/// As tensors of a layer's file.
std::vector<RawTensor> tensors_of(const ImportanceMatrix& matrix) {
  std::vector<RawTensor> out;
  const auto add = [&](const std::string& name, const std::vector<float>& values) {
    auto owned = std::make_shared<const std::vector<float>>(values);
    RawTensor& tensor = out.emplace_back();
    tensor.name = name;
    tensor.dtype = DType::kF32;
    tensor.shape = Shape{std::ssize(values)};
    tensor.bytes = std::as_bytes(std::span(*owned));
    tensor.owner = std::move(owned);
  };
  for (const auto& [name, entry] : matrix.entries) {
    add(name + std::string(kSums), entry.sums);
    add(name + std::string(kCounts), entry.counts);
  }
  return out;
}

ImportanceMatrix matrix_of(std::span<const RawTensor> tensors) {
  ImportanceMatrix out;
  for (const RawTensor& tensor : tensors) {
    const bool is_sums = tensor.name.ends_with(kSums);
    const std::string_view suffix = is_sums ? kSums : kCounts;
    if (!tensor.name.ends_with(suffix) || tensor.dtype != DType::kF32) {
      fail(ErrorKind::kCorrupt, "imatrix", "work directory: expected sums and counts, got {}",
           printable(tensor.name));
    }
    ImportanceEntry& entry = out.entries[tensor.name.substr(0, tensor.name.size() - suffix.size())];
    std::vector<float>& values = is_sums ? entry.sums : entry.counts;
    values.resize(tensor.bytes.size() / sizeof(float));
    std::ranges::copy(tensor.bytes, std::as_writable_bytes(std::span(values)).begin());
  }
  return out;
}

void note_chunks(const CalibrationSet& calibration, ImportanceMatrix& out) {
  out.n_chunks = std::ssize(calibration.sequences);
  for (const auto& sequence : calibration.sequences)
    out.chunk_tokens = std::max(out.chunk_tokens, static_cast<int64_t>(sequence.size()));
}

/// Calls finish(importances) while the work directory is there.
void collect_resumably(const LayerSource& source, const CalibrationSet& calibration,
                       Backend& backend, ThreadPool& pool, const LayerRequest& request,
                       const std::function<void(ImportanceMatrix)>& finish) {
  constexpr std::string_view kJob = R"({"version": 1, "imatrix": true})";
  LayerMethod method;
  method.job = kJob;
  method.quantise = [&](const LayerSources& layer, const MatrixTeam&, LayerPass& pass) {
    Collector collector(source.config, backend, pass);
    collector.layer(layer);
    if (pass.layer() == source.config.n_layers) collector.output(source.sources);
    QuantisedLayer out;
    out.tensors = tensors_of(collector.take());
    return out;
  };
  make_layers(source, calibration, backend, pool, request, method,
              [&](std::span<const RawTensor> made) {
                ImportanceMatrix out = matrix_of(made);
                note_chunks(calibration, out);
                finish(std::move(out));
              });
}

}  // namespace

int64_t importance_work_bytes(const ModelConfig& config, const NetworkSources& sources,
                              const CalibrationSet& calibration) {
  constexpr int64_t kFileBytes = 1 << 16;  // a header, and what a file system rounds up to
  int64_t n_floats = 2 * calibration.n_tokens * config.hidden;  // hidden states, old and new
  for (const LayerSources& layer : sources.layers) {
    for_each_quantised(layer, [&](const LinearParts& parts) {
      n_floats += std::ssize(parts.parts) * (parts.parts.front().k + 1);
    });
  }
  n_floats += config.hidden + 1;
  return n_floats * static_cast<int64_t>(sizeof(float)) + (config.n_layers + 3) * kFileBytes;
}

ImportanceMatrix resume_importance(const LayerSource& source, const CalibrationSet& calibration,
                                   Backend& backend, ThreadPool& pool,
                                   const LayerRequest& request) {
  ImportanceMatrix out;
  collect_resumably(source, calibration, backend, pool, request,
                    [&](ImportanceMatrix made) { out = std::move(made); });
  return out;
}

ImportanceMatrix make_importance(const LayerSource& source, const CalibrationSet& calibration,
                                 Backend& backend, ThreadPool& pool, const LayerRequest& request,
                                 std::vector<std::string> datasets) {
  ImportanceMatrix out;
  collect_resumably(source, calibration, backend, pool, request, [&](ImportanceMatrix made) {
    out = std::move(made);
    out.datasets = std::move(datasets);
    write_importance(out, request.output);
  });
  return out;
}

ImportanceMatrix collect_importance(const LayerSource& source, const CalibrationSet& calibration,
                                    Backend& backend, const CancelFlag* cancel,
                                    const std::function<void(int)>& on_layer) {
  const auto& [checkpoint, config, sources] = source;
  LayerPass pass(backend, config, calibration.sequences, cancel);
  pass.embed(*backend.pack_embedding(sources.embedding.parts.front()));
  Collector collector(config, backend, pass);
  for (int layer = 0; layer < config.n_layers; ++layer) {
    const LayerSources& from = sources.layers[static_cast<size_t>(layer)];
    collector.layer(from);
    for_each_quantised(from, [&](const LinearParts& parts) { drop_pages(checkpoint, parts); });
    if (on_layer) on_layer(layer);
  }
  collector.output(sources);
  checkpoint.check_readable();
  ImportanceMatrix out = collector.take();
  note_chunks(calibration, out);
  return out;
}

}  // namespace qw::quantize
