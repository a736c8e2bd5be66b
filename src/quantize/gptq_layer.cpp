#include "quantize/gptq_layer.h"

#include <numeric>
#include <optional>
#include <utility>

#include "base/error.h"

namespace qw::quantize {

namespace {

class LayerQuantiser {
 public:
  LayerQuantiser(const LayerSources& layer, const ModelConfig& config,
                 const GptqLayerOptions& options, Backend& backend, const MatrixTeam& team,
                 LayerPass& pass)
      : layer_(layer),
        config_(config),
        options_(options),
        backend_(backend),
        team_(team),
        pass_(pass),
        quantised_(layer) {}

  std::vector<QuantisedModule> run() {
    LayerWeights w = norms();
    std::vector<float> before;
    if (!options_.true_sequential) before = pass_.hidden();
    w.qkv = pack(quantise(layer_.qkv, quantised_.qkv,
                          [&](LayerPass::Take take) { pass_.norm_inputs(w, take); }));
    w.o = pack(
        quantise(layer_.o, quantised_.o, [&](LayerPass::Take take) { pass_.attend(w, take); }));
    const bool sparse = !layer_.moe.router.parts.empty();
    if (sparse) {
      pass_.add_attention(w, [](const float*, int64_t) {});
      quantise_experts(w);
    } else {
      w.gate_up = pack(quantise(layer_.gate_up, quantised_.gate_up,
                                [&](LayerPass::Take take) { pass_.add_attention(w, take); }));
      w.down = pack(quantise(layer_.down, quantised_.down,
                             [&](LayerPass::Take take) { pass_.gated(w.gate_up, take); }));
    }
    if (options_.true_sequential) {
      pass_.add_feed_forward(w);
    } else {
      w = {};
      pass_.set_hidden(std::move(before), pass_.layer());
      pass_layer(quantised_, config_, backend_, pass_);
    }
    return std::move(modules_);
  }

 private:
  using Inputs = FunctionRef<void(LayerPass::Take)>;

  LayerWeights norms() const {
    LayerWeights w;
    w.input_norm = backend_.upload(layer_.input_norm);
    w.post_norm = backend_.upload(layer_.post_norm);
    return w;
  }

  Linear pack(const LinearParts& parts) { return pack_linear(backend_, parts); }

  GptqOptions options_of(const LinearParts& from) const {
    GptqOptions out = options_.gptq;
    if (!options_.bits_of) return out;
    out.bits = options_.bits_of(from.modules.front());
    for (const ModuleId& id : from.modules)
      QW_CHECK(options_.bits_of(id) == out.bits, "{}: bits of matrices with the same inputs",
               from.name);
    return out;
  }

  /// Quantises matrices that share `inputs`; `routed`: of an expert. Returns those that the layer
  /// goes on with.
  const LinearParts& quantise(const LinearParts& from, LinearParts& to, Inputs inputs,
                              std::optional<int64_t> routed = {}) {
    const bool is_cold = routed && *routed < cold_expert_tokens(config_.hidden);
    Hessian hessian(from.name, from.parts.front().k, team_);
    inputs([&](const float* x, int64_t n_tokens) { hessian.add(x, n_tokens, hessian.k()); });
    GptqFactor factor(hessian, options_of(from), team_);
    to.bytes.clear();
    double loss = 0;
    for (size_t i = 0; i < from.parts.size(); ++i) {
      GptqResult result = gptq_quantise(from.parts[i], factor, team_);
      if (options_.gptq.mode == GptqOptions::Mode::kReference) {
        result.matrix = with_f16_scales(*result.matrix);
        result.source = source_of(from.parts[i].name, result.matrix);
      }
      modules_.push_back({.id = from.modules[i],
                          .matrix = result.matrix,
                          .loss = result.loss,
                          .damp = factor.damp(),
                          .n_tokens = hessian.n_tokens(),
                          .n_dead = factor.n_dead(),
                          .is_damp_raised = factor.damp() > options_.gptq.damp,
                          .is_cold = is_cold,
                          .ratio = std::nullopt,
                          .change = std::nullopt});
      to.parts[i] = std::move(result.source);
      loss += result.loss;
      if (options_.on_done) options_.on_done(from.parts[i].published_bytes());
    }
    if (options_.on_group)
      options_.on_group({from, to, hessian, factor, loss, routed.value_or(pass_.n_tokens())});
    return options_.true_sequential ? to : from;
  }

  void quantise_experts(LayerWeights& w) {
    const MoeSources& from = layer_.moe;
    MoeSources& to = quantised_.moe;
    w.moe = std::make_unique<MoeWeights>();
    w.moe->router = pack(from.router);
    w.moe->top_k = config_.moe->top_k;
    w.moe->norm_topk_prob = config_.moe->norm_topk_prob;
    const std::vector<std::vector<int32_t>> routed = pass_.route(*w.moe);
    std::vector<int32_t> all(static_cast<size_t>(pass_.n_tokens()));
    std::iota(all.begin(), all.end(), 0);
    for (size_t e = 0; e < routed.size(); ++e) {
      const int64_t n_routed = std::ssize(routed[e]);
      const std::vector<int32_t>& tokens =
          n_routed < cold_expert_tokens(config_.hidden) ? all : routed[e];
      w.moe->gate_up.push_back(pack(quantise(
          from.gate_up[e], to.gate_up[e],
          [&](LayerPass::Take take) { pass_.expert_inputs(tokens, take); }, n_routed)));
      w.moe->down.push_back(pack(quantise(
          from.down[e], to.down[e],
          [&](LayerPass::Take take) { pass_.expert_gated(tokens, w.moe->gate_up.back(), take); },
          n_routed)));
    }
    if (from.shared_gate_up.parts.empty()) return;
    w.moe->shared_gate_up =
        pack(quantise(from.shared_gate_up, to.shared_gate_up,
                      [&](LayerPass::Take take) { pass_.expert_inputs(all, take); }));
    w.moe->shared_down = pack(quantise(from.shared_down, to.shared_down, [&](LayerPass::Take take) {
      pass_.gated(w.moe->shared_gate_up, take);
    }));
    w.moe->shared_gate = pack(from.shared_gate);
  }

  const LayerSources& layer_;
  const ModelConfig& config_;
  const GptqLayerOptions& options_;
  Backend& backend_;
  const MatrixTeam& team_;
  LayerPass& pass_;
  LayerSources quantised_;
  std::vector<QuantisedModule> modules_;
};

}  // namespace

std::vector<QuantisedModule> gptq_layer(const LayerSources& layer, const ModelConfig& config,
                                        const GptqLayerOptions& options, Backend& backend,
                                        const MatrixTeam& team, LayerPass& pass) {
  return LayerQuantiser(layer, config, options, backend, team, pass).run();
}

void pass_layer(const LayerSources& layer, const ModelConfig& config, Backend& backend,
                LayerPass& pass) {
  const LayerWeights w = pack_layer(backend, layer, config);
  const auto nothing = [](const float*, int64_t) {};
  pass.attend(w, nothing);
  pass.add_attention(w, nothing);
  pass.add_feed_forward(w);
}

}  // namespace qw::quantize
