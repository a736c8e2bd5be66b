#include "quantize/network_probe.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "quantize/layer_pass.h"

namespace qw::quantize {

namespace {

/// Logits of the network as published that are kept.
constexpr int64_t kLogitBytes = int64_t{1} << 29;
constexpr int64_t kChunkRows = 64;

/// Puts the changed matrix in the place of its module.
void replace(LinearParts& parts, const ChangedMatrix& changed) {
  for (size_t i = 0; i < parts.modules.size(); ++i) {
    if (parts.modules[i] == changed.id) parts.parts[i] = changed.make();
  }
}

LayerSources replaced(const LayerSources& layer, const std::vector<const ChangedMatrix*>& changed) {
  LayerSources out = layer;
  for (const ChangedMatrix* matrix : changed) {
    for (LinearParts* parts : {&out.qkv, &out.o, &out.gate_up, &out.down, &out.moe.router,
                               &out.moe.shared_gate_up, &out.moe.shared_down, &out.moe.shared_gate})
      replace(*parts, *matrix);
    for (std::vector<LinearParts>* experts : {&out.moe.gate_up, &out.moe.down}) {
      for (LinearParts& parts : *experts)
        replace(parts, *matrix);
    }
  }
  return out;
}

double log_sum_exp(const float* x, int64_t n) {
  const float max = *std::max_element(x, x + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i)
    sum += static_cast<double>(std::exp(x[i] - max));
  return static_cast<double>(max) + std::log(sum);
}

/// sum_i p(i) (log p(i) - log q(i)), both given as logits.
double divergence(const float* p, const float* q, int64_t n) {
  const double log_p = log_sum_exp(p, n), log_q = log_sum_exp(q, n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double log_pi = static_cast<double>(p[i]) - log_p;
    sum += static_cast<double>(std::exp(static_cast<float>(log_pi))) *
           (log_pi - static_cast<double>(q[i]) + log_q);
  }
  return std::max(0.0, sum);
}

int64_t stride_of(const ModelConfig& config, int64_t n_tokens) {
  const int64_t row_bytes = config.vocab * static_cast<int64_t>(sizeof(float));
  return std::max<int64_t>(1, (n_tokens * row_bytes + kLogitBytes - 1) / kLogitBytes);
}

/// The fewest layers from one state to the next with which all fit; at least that before the first
/// and that after the last are kept.
int hidden_stride_of(int n_layers, int64_t state_bytes, int64_t limit) {
  int stride = 1;
  while (stride < n_layers && (n_layers / stride + 2) * state_bytes > limit)
    ++stride;
  return stride;
}

/// Calls visit(parts) for all matrices of a layer.
void for_each_matrix(const LayerSources& layer,
                     const std::function<void(const LinearParts&)>& visit) {
  for_each_quantised(layer, visit);
  for (const LinearParts* parts : {&layer.moe.router, &layer.moe.shared_gate}) {
    if (!parts->parts.empty()) visit(*parts);
  }
}

int64_t bytes_of(const LayerWeights& w) {
  int64_t sum = 0;
  const auto add = [&](const Linear& linear) {
    if (linear.weight != nullptr) sum += linear.weight->resident_bytes;
  };
  for (const Linear* linear : {&w.qkv, &w.o, &w.gate_up, &w.down})
    add(*linear);
  if (w.moe == nullptr) return sum;
  for (const Linear* linear :
       {&w.moe->router, &w.moe->shared_gate_up, &w.moe->shared_down, &w.moe->shared_gate})
    add(*linear);
  for (const auto* experts : {&w.moe->gate_up, &w.moe->down})
    std::ranges::for_each(*experts, add);
  return sum;
}

/// Packs from a checkpoint, whose pages are let go of at once: a network that is run a layer at a
/// time must not stay in memory as a file.
struct Packer {
  const LayerSource& source;
  Backend& backend;

  LayerWeights layer(int index) const {
    const LayerSources& from = source.sources.layers[static_cast<size_t>(index)];
    LayerWeights out = pack_layer(backend, from, source.config);
    drop(from);
    return out;
  }
  LayerWeights layer(int index, const std::vector<const ChangedMatrix*>& changed) const {
    const LayerSources& from = source.sources.layers[static_cast<size_t>(index)];
    LayerWeights out = pack_layer(backend, replaced(from, changed), source.config);
    drop(from);
    return out;
  }
  Linear head() const {
    Linear out = pack_linear(backend, source.sources.lm_head);
    drop_pages(source.checkpoint, source.sources.lm_head);
    return out;
  }

 private:
  void drop(const LayerSources& from) const {
    for_each_matrix(from, [&](const LinearParts& parts) { drop_pages(source.checkpoint, parts); });
  }
};

void run_layer(LayerPass& pass, const LayerWeights& w) {
  const auto nobody = [](const float*, int64_t) {};
  pass.attend(w, nobody);
  pass.add_attention(w, nobody);
  pass.add_feed_forward(w);
}

}  // namespace

struct NetworkProbe::State {
  const LayerSource source;
  const CalibrationSet& calibration;
  Backend& backend;
  ThreadPool& pool;
  const CancelFlag* cancel;
  Packer packer{source, backend};
  LayerPass pass;
  std::vector<std::optional<LayerWeights>> layers;  // those that are kept
  std::optional<Linear> lm_head;                    // kept
  int hidden_stride = 1;                            // layers from one kept state to the next
  std::map<int, std::vector<float>> hidden;         // before layers, and after the last
  int64_t stride = 1;                               // of every so many tokens one prediction counts
  std::vector<float> logits;                        // [n_predictions, vocab]

  State(const LayerSource& from, const CalibrationSet& set, Backend& on, ThreadPool& threads,
        const CancelFlag* flag)
      : source(from),
        calibration(set),
        backend(on),
        pool(threads),
        cancel(flag),
        pass(on, from.config, set.sequences, flag),
        layers(from.sources.layers.size()),
        stride(stride_of(from.config, pass.n_tokens())) {}

  int n_layers() const { return source.config.n_layers; }
  int64_t n_predictions() const { return (pass.n_tokens() + stride - 1) / stride; }

  void run_published(int layer) {
    const std::optional<LayerWeights>& kept = layers[static_cast<size_t>(layer)];
    if (kept) return run_layer(pass, *kept);
    run_layer(pass, packer.layer(layer));
  }
  /// Stands before `layer`, as published.
  void start_at(int layer) {
    const auto from = std::prev(hidden.upper_bound(layer));
    pass.set_hidden(from->second, from->first);
    for (int l = from->first; l < layer; ++l)
      run_published(l);
  }

  /// take(first, n, logits) for all predictions of what `through` has run, some at a time.
  template <typename Take>
  void predict(LayerPass& through, const LayerSource& of, const Linear& head, const Take& take) {
    const int64_t width = of.config.hidden, vocab = of.config.vocab;
    std::vector<float> normed;  // inputs of the output matrix
    LayerWeights last;          // its input norm is the network's final one
    last.input_norm = backend.upload(of.sources.final_norm);
    int64_t token = 0;
    through.norm_inputs(last, [&](const float* x, int64_t n_tokens) {
      for (int64_t t = 0; t < n_tokens; ++t, ++token, x += width) {
        if (token % stride == 0) normed.insert(normed.end(), x, x + width);
      }
    });
    const auto x = backend.allocate(kChunkRows, width);
    const auto y = backend.allocate(kChunkRows, vocab);
    std::vector<float> out(static_cast<size_t>(kChunkRows * vocab));
    for (int64_t first = 0; first < n_predictions(); first += kChunkRows) {
      const int64_t n = std::min(kChunkRows, n_predictions() - first);
      backend.upload_rows(normed.data() + first * width, x->view.first(n));
      backend.linear(x->view.first(n), head, y->view.first(n));
      backend.download(y->view.first(n), out.data());
      take(first, n, out.data());
    }
  }

  /// Mean divergence of what `through` has run.
  double divergence_of(LayerPass& through, const LayerSource& of, const Linear& head) {
    std::vector<double> kls(static_cast<size_t>(n_predictions()));
    const int64_t vocab = source.config.vocab;
    predict(through, of, head, [&](int64_t begin, int64_t n, const float* other) {
      pool.parallel_for(n, 1, [&](int64_t from, int64_t to, int) {
        for (int64_t i = from; i < to; ++i) {
          kls[static_cast<size_t>(begin + i)] =
              divergence(logits.data() + (begin + i) * vocab, other + i * vocab, vocab);
        }
      });
    });
    return std::accumulate(kls.begin(), kls.end(), 0.0) / static_cast<double>(kls.size());
  }

  /// use(head) with the output matrix as published.
  template <typename Use>
  auto with_head(const Use& use) {
    if (lm_head) return use(*lm_head);
    return use(packer.head());
  }

  void keep_hidden(int layer) {
    if (layer % hidden_stride == 0 || layer == n_layers()) hidden[layer] = pass.hidden();
  }
  void run_all(const ProbeOptions& options);
};

void NetworkProbe::State::run_all(const ProbeOptions& options) {
  hidden_stride = hidden_stride_of(n_layers(), std::ssize(pass.hidden()) * int64_t{sizeof(float)},
                                   options.hidden_bytes);
  pass.embed(*backend.pack_embedding(source.sources.embedding.parts.front()));
  int64_t kept = 0;
  lm_head = packer.head();
  if (lm_head->weight->resident_bytes > options.packed_bytes) {
    lm_head.reset();
  } else {
    kept += lm_head->weight->resident_bytes;
  }
  int first = 0;  // that is kept
  for (int layer = 0; layer < n_layers(); ++layer) {
    keep_hidden(layer);
    std::optional<LayerWeights>& w = layers[static_cast<size_t>(layer)];
    w = packer.layer(layer);
    kept += bytes_of(*w);
    run_layer(pass, *w);
    for (; kept > options.packed_bytes && first <= layer; ++first) {
      kept -= bytes_of(*layers[static_cast<size_t>(first)]);
      layers[static_cast<size_t>(first)].reset();
    }
    if (options.on_layer) options.on_layer(layer);
  }
  keep_hidden(n_layers());
  logits.resize(static_cast<size_t>(n_predictions() * source.config.vocab));
  with_head([&](const Linear& head) {
    predict(pass, source, head, [&](int64_t begin, int64_t n, const float* from) {
      std::copy_n(from, n * source.config.vocab, logits.data() + begin * source.config.vocab);
    });
  });
  source.checkpoint.check_readable();
}

NetworkProbe::NetworkProbe(const LayerSource& source, const CalibrationSet& calibration,
                           Backend& backend, ThreadPool& pool, const CancelFlag* cancel,
                           const ProbeOptions& options)
    : state_(std::make_unique<State>(source, calibration, backend, pool, cancel)) {
  state_->run_all(options);
}

NetworkProbe::~NetworkProbe() = default;

int64_t NetworkProbe::packed_bytes() const {
  int64_t sum = state_->lm_head ? state_->lm_head->weight->resident_bytes : 0;
  for (const std::optional<LayerWeights>& w : state_->layers)
    sum += w ? bytes_of(*w) : 0;
  return sum;
}

int64_t NetworkProbe::n_predictions() const {
  return state_->n_predictions();
}

int64_t NetworkProbe::n_predictions(const ModelConfig& config, const CalibrationSet& calibration) {
  int64_t n_tokens = 0;
  for (const auto& sequence : calibration.sequences)
    n_tokens += std::ssize(sequence);
  return ceil_div(n_tokens, stride_of(config, n_tokens));
}

double NetworkProbe::kl(const std::vector<const GgufTensor*>& changed) {
  std::vector<ChangedMatrix> matrices;
  for (const GgufTensor* tensor : changed) {
    if (tensor->is_copied()) continue;
    const Slot slot = tensor->id.slot;
    const bool is_stack =
        slot == Slot::kExpertGate || slot == Slot::kExpertUp || slot == Slot::kExpertDown;
    for (size_t part = 0; part < tensor->parts.size(); ++part) {
      ModuleId id = tensor->id;
      if (is_stack) id.expert = static_cast<int>(part);
      matrices.push_back(
          {id, [tensor, part, this] { return tensor->encoded_part(part, state_->pool); }});
    }
  }
  return kl(matrices);
}

double NetworkProbe::kl(const std::vector<ChangedMatrix>& changed) {
  State& s = *state_;
  const int n_layers = s.n_layers();
  std::map<int, std::vector<const ChangedMatrix*>> by_layer;
  const ChangedMatrix *embedding = nullptr, *head = nullptr;
  for (const ChangedMatrix& matrix : changed) {
    if (matrix.id.slot == Slot::kEmbedding) {
      embedding = &matrix;
      if (s.source.sources.tied) head = &matrix;
    } else if (matrix.id.slot == Slot::kLmHead) {
      head = &matrix;
    } else {
      by_layer[matrix.id.layer].push_back(&matrix);
    }
  }
  const int first = embedding != nullptr ? 0
                    : by_layer.empty()   ? n_layers
                                         : by_layer.begin()->first;
  if (embedding != nullptr) {
    s.pass.embed(*s.backend.pack_embedding(embedding->make()));
  } else {
    s.start_at(first);
  }
  for (int layer = first; layer < n_layers; ++layer) {
    const auto found = by_layer.find(layer);
    if (found == by_layer.end()) {
      s.run_published(layer);
    } else {
      run_layer(s.pass, s.packer.layer(layer, found->second));
    }
  }
  double out = 0;
  if (head != nullptr) {
    LinearParts parts = s.source.sources.lm_head;
    parts.parts = {head->make()};
    out = s.divergence_of(s.pass, s.source, pack_linear(s.backend, parts));
    drop_pages(s.source.checkpoint, s.source.sources.lm_head);
  } else {
    out = s.with_head(
        [&](const Linear& published) { return s.divergence_of(s.pass, s.source, published); });
  }
  s.source.checkpoint.check_readable();
  return out;
}

double NetworkProbe::kl(const LayerSource& other, const std::function<void(int)>& on_layer) {
  State& s = *state_;
  if (other.config.vocab != s.source.config.vocab) {
    fail(ErrorKind::kInvalidArgument, "quantize", "vocabulary: expected {} tokens, got {} ({})",
         s.source.config.vocab, other.config.vocab, printable(other.checkpoint.path));
  }
  const Packer packer{other, s.backend};
  LayerPass pass(s.backend, other.config, s.calibration.sequences, s.cancel);
  pass.embed(*s.backend.pack_embedding(other.sources.embedding.parts.front()));
  for (int layer = 0; layer < other.config.n_layers; ++layer) {
    run_layer(pass, packer.layer(layer));
    if (on_layer) on_layer(layer);
  }
  const double out = s.divergence_of(pass, other, packer.head());
  other.checkpoint.check_readable();
  return out;
}

}  // namespace qw::quantize
