// Level 6 (quantize): a network with some matrices replaced, beside itself.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "base/error.h"
#include "quantize/sensitivity.h"

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

}  // namespace

struct NetworkProbe::State {
  const ModelConfig& config;
  const NetworkSources& sources;
  Backend& backend;
  ThreadPool& pool;
  LayerPass pass;
  std::vector<LayerWeights> layers;
  std::vector<std::vector<float>> hidden;  // before each layer, and after the last
  LayerWeights last;                       // its input norm is the network's final one
  Linear lm_head;
  int64_t stride = 1;         // of every so many tokens one prediction counts
  std::vector<float> logits;  // [n_predictions, vocab]
  std::vector<float> normed;  // inputs of the output matrix: [n_predictions, hidden]

  State(const ModelConfig& model, const NetworkSources& from, const CalibrationSet& calibration,
        Backend& on, ThreadPool& threads, const CancelFlag* cancel)
      : config(model),
        sources(from),
        backend(on),
        pool(threads),
        pass(on, model, calibration.sequences, cancel) {}

  int64_t n_predictions() const { return (pass.n_tokens() + stride - 1) / stride; }

  void run_layer(const LayerWeights& w) {
    const auto nobody = [](const float*, int64_t) {};
    pass.attend(w, nobody);
    pass.add_attention(w, nobody);
    pass.add_feed_forward(w);
  }
  /// Inputs of the output matrix for the predictions that count.
  void take_normed() {
    normed.clear();
    int64_t token = 0;
    pass.norm_inputs(last, [&](const float* x, int64_t n_tokens) {
      for (int64_t t = 0; t < n_tokens; ++t, ++token, x += config.hidden) {
        if (token % stride == 0) normed.insert(normed.end(), x, x + config.hidden);
      }
    });
  }
  /// take(first, n, logits) for all predictions, some at a time.
  template <typename Take>
  void predict(const Linear& head, const Take& take) {
    const auto x = backend.allocate(kChunkRows, config.hidden);
    const auto y = backend.allocate(kChunkRows, config.vocab);
    std::vector<float> out(static_cast<size_t>(kChunkRows * config.vocab));
    for (int64_t first = 0; first < n_predictions(); first += kChunkRows) {
      const int64_t n = std::min(kChunkRows, n_predictions() - first);
      backend.upload_rows(normed.data() + first * config.hidden, x->view.first(n));
      backend.linear(x->view.first(n), head, y->view.first(n));
      backend.download(y->view.first(n), out.data());
      take(first, n, out.data());
    }
  }
};

NetworkProbe::NetworkProbe(const ModelConfig& config, const NetworkSources& sources,
                           const CalibrationSet& calibration, Backend& backend, ThreadPool& pool,
                           const CancelFlag* cancel)
    : state_(std::make_unique<State>(config, sources, calibration, backend, pool, cancel)) {
  State& s = *state_;
  const int64_t row_bytes = config.vocab * static_cast<int64_t>(sizeof(float));
  s.stride = std::max<int64_t>(1, (s.pass.n_tokens() * row_bytes + kLogitBytes - 1) / kLogitBytes);
  s.pass.embed(*backend.pack_embedding(sources.embedding.parts.front()));
  for (const LayerSources& layer : sources.layers) {
    s.hidden.push_back(s.pass.hidden());
    s.layers.push_back(pack_layer(backend, layer, config));
    s.run_layer(s.layers.back());
  }
  s.hidden.push_back(s.pass.hidden());
  s.last.input_norm = backend.upload(sources.final_norm);
  s.lm_head = pack_linear(backend, sources.lm_head);
  s.take_normed();
  s.logits.resize(static_cast<size_t>(s.n_predictions() * config.vocab));
  s.predict(s.lm_head, [&](int64_t first, int64_t n, const float* logits) {
    std::copy_n(logits, n * config.vocab, s.logits.data() + first * config.vocab);
  });
}

NetworkProbe::~NetworkProbe() = default;

int64_t NetworkProbe::n_predictions() const {
  return state_->n_predictions();
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
  const int n_layers = s.config.n_layers;
  std::map<int, std::vector<const ChangedMatrix*>> by_layer;
  const ChangedMatrix *embedding = nullptr, *head = nullptr;
  for (const ChangedMatrix& matrix : changed) {
    if (matrix.id.slot == Slot::kEmbedding) {
      embedding = &matrix;
      if (s.sources.tied) head = &matrix;
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
    s.pass.set_hidden(s.hidden[static_cast<size_t>(first)], first);
  }
  for (int layer = first; layer < n_layers; ++layer) {
    const auto index = static_cast<size_t>(layer);
    const auto found = by_layer.find(layer);
    if (found == by_layer.end()) {
      s.run_layer(s.layers[index]);
    } else {
      s.run_layer(
          pack_layer(s.backend, replaced(s.sources.layers[index], found->second), s.config));
    }
  }
  s.take_normed();
  Linear other;
  if (head != nullptr) {
    LinearParts parts = s.sources.lm_head;
    parts.parts = {head->make()};
    other = pack_linear(s.backend, parts);
  }
  std::vector<double> kls(static_cast<size_t>(s.n_predictions()));
  const int64_t vocab = s.config.vocab;
  s.predict(head != nullptr ? other : s.lm_head,
            [&](int64_t begin, int64_t n, const float* logits) {
              s.pool.parallel_for(n, 1, [&](int64_t from, int64_t to, int) {
                for (int64_t i = from; i < to; ++i) {
                  kls[static_cast<size_t>(begin + i)] =
                      divergence(s.logits.data() + (begin + i) * vocab, logits + i * vocab, vocab);
                }
              });
            });
  return std::accumulate(kls.begin(), kls.end(), 0.0) / static_cast<double>(kls.size());
}

}  // namespace qw::quantize
