#include "quantize/gptq_layer.h"

#include <numeric>
#include <optional>
#include <utility>

#include "base/error.h"

namespace qw::quantize {

namespace {

GptqOptions options_of(const LinearParts& from, const GptqLayerOptions& options) {
  GptqOptions out = options.gptq;
  if (!options.bits_of) return out;
  out.bits = options.bits_of(from.modules.front());
  for (const ModuleId& id : from.modules)
    QW_CHECK(options.bits_of(id) == out.bits, "{}: bits of matrices with the same inputs",
             from.name);
  return out;
}

class LayerWalk {
 public:
  LayerWalk(const LayerSources& layer, const ModelConfig& config, Backend& backend, LayerPass& pass,
            const PartsMaker& make)
      : layer_(layer), config_(config), backend_(backend), pass_(pass), make_(make), made_(layer) {}

  LayerSources run() {
    LayerWeights w = norms();
    w.qkv = pack(make_(layer_.qkv, made_.qkv,
                       [&](LayerPass::Take take) { pass_.norm_inputs(w, take); }, {}));
    w.o = pack(make_(layer_.o, made_.o, [&](LayerPass::Take take) { pass_.attend(w, take); }, {}));
    const bool sparse = !layer_.moe.router.parts.empty();
    if (sparse) {
      pass_.add_attention(w, [](const float*, int64_t) {});
      make_experts(w);
    } else {
      w.gate_up = pack(make_(layer_.gate_up, made_.gate_up,
                             [&](LayerPass::Take take) { pass_.add_attention(w, take); }, {}));
      w.down = pack(make_(layer_.down, made_.down,
                          [&](LayerPass::Take take) { pass_.gated(w.gate_up, take); }, {}));
    }
    pass_.add_feed_forward(w);
    return std::move(made_);
  }

 private:
  LayerWeights norms() const {
    LayerWeights w;
    w.input_norm = backend_.upload(layer_.input_norm);
    w.post_norm = backend_.upload(layer_.post_norm);
    return w;
  }

  Linear pack(const LinearParts& parts) { return pack_linear(backend_, parts); }

  void make_experts(LayerWeights& w) {
    const MoeSources& from = layer_.moe;
    MoeSources& to = made_.moe;
    w.moe = std::make_unique<MoeWeights>();
    w.moe->router = pack(from.router);
    w.moe->top_k = config_.moe->top_k;
    w.moe->norm_topk_prob = config_.moe->norm_topk_prob;
    const std::vector<std::vector<int32_t>> routed = pass_.route(*w.moe);
    std::vector<int32_t> all(static_cast<size_t>(pass_.n_tokens()));
    std::iota(all.begin(), all.end(), 0);
    for (size_t e = 0; e < routed.size(); ++e) {
      const int64_t n_routed = std::ssize(routed[e]);
      const std::vector<int32_t>& tokens = is_cold(n_routed, config_) ? all : routed[e];
      w.moe->gate_up.push_back(pack(make_(
          from.gate_up[e], to.gate_up[e],
          [&](LayerPass::Take take) { pass_.expert_inputs(tokens, take); }, n_routed)));
      w.moe->down.push_back(pack(make_(
          from.down[e], to.down[e],
          [&](LayerPass::Take take) { pass_.expert_gated(tokens, w.moe->gate_up.back(), take); },
          n_routed)));
    }
    if (from.shared_gate_up.parts.empty()) return;
    w.moe->shared_gate_up =
        pack(make_(from.shared_gate_up, to.shared_gate_up,
                   [&](LayerPass::Take take) { pass_.expert_inputs(all, take); }, {}));
    w.moe->shared_down =
        pack(make_(from.shared_down, to.shared_down,
                   [&](LayerPass::Take take) { pass_.gated(w.moe->shared_gate_up, take); }, {}));
    w.moe->shared_gate = pack(from.shared_gate);
  }

  const LayerSources& layer_;
  const ModelConfig& config_;
  Backend& backend_;
  LayerPass& pass_;
  const PartsMaker& make_;
  LayerSources made_;
};

}  // namespace

bool is_cold(std::optional<int64_t> n_routed, const ModelConfig& config) {
  return n_routed && *n_routed < cold_expert_tokens(config.hidden);
}

LayerSources walk_layer(const LayerSources& layer, const ModelConfig& config, Backend& backend,
                        LayerPass& pass, const PartsMaker& make) {
  return LayerWalk(layer, config, backend, pass, make).run();
}

void tell_inputs(const Hessian& hessian, const GptqFactor& factor, bool is_cold,
                 QuantisedModule& module) {
  module.damp = factor.damp();
  module.n_tokens = hessian.n_tokens();
  module.n_dead = factor.n_dead();
  module.is_damp_raised = factor.damp() > factor.options().damp;
  module.is_cold = is_cold;
}

std::vector<QuantisedModule> gptq_layer(const LayerSources& layer, const ModelConfig& config,
                                        const GptqLayerOptions& options, Backend& backend,
                                        const MatrixTeam& team, LayerPass& pass) {
  std::vector<QuantisedModule> modules;
  const auto quantise = [&](const LinearParts& from, LinearParts& to,
                            FunctionRef<void(LayerPass::Take)> inputs,
                            std::optional<int64_t> n_routed) -> const LinearParts& {
    Hessian hessian(from.name, from.parts.front().k, team);
    inputs([&](const float* x, int64_t n_tokens) { hessian.add(x, n_tokens, hessian.k()); });
    GptqFactor factor(hessian, options_of(from, options), team);
    to.bytes.clear();
    double loss = 0;
    for (size_t i = 0; i < from.parts.size(); ++i) {
      GptqResult result = gptq_quantise(from.parts[i], factor, team);
      if (options.gptq.mode == GptqOptions::Mode::kReference) {
        result.matrix = with_f16_scales(*result.matrix);
        result.source = source_of(from.parts[i].name, result.matrix);
      }
      QuantisedModule& module = modules.emplace_back();
      module.id = from.modules[i];
      module.matrix = result.matrix;
      module.loss = result.loss;
      tell_inputs(hessian, factor, is_cold(n_routed, config), module);
      to.parts[i] = std::move(result.source);
      loss += result.loss;
      if (options.on_done) options.on_done(from.parts[i].published_bytes());
    }
    if (options.on_group)
      options.on_group({from, to, hessian, factor, loss, n_routed.value_or(pass.n_tokens())});
    return options.true_sequential ? to : from;
  };
  std::vector<float> before;
  if (!options.true_sequential) before = pass.hidden();
  const LayerSources quantised = walk_layer(layer, config, backend, pass, quantise);
  if (!options.true_sequential) {
    pass.set_hidden(std::move(before), pass.layer() - 1);
    pass_layer(quantised, config, backend, pass);
  }
  return modules;
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
