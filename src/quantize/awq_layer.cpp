#include "quantize/awq_layer.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "quantize/awq_reference.h"
#include "quantize/awq_tensors.h"
#include "quantize/gptq_solver.h"

namespace qw::quantize {

namespace {

using Floats = std::vector<float>;
using Parts = std::span<const LinearParts* const>;

/// Rows of each matrix that scales are chosen by.
constexpr int64_t kSampleRows = 128;
/// The same of an expert's matrices, of which there are many.
constexpr int64_t kExpertSampleRows = 64;
/// Ratios that are tried: i / kAwqRatios, and no scales. Larger ones were never the best of the
/// bundled model or AutoAWQ's test layer, November 2026.
constexpr int kTriedRatios = 10;
/// Scales are kept within these, so that divided norms and rows stay well within f16.
constexpr float kLargestScale = 64;

GptqOptions rounding_of(const AwqOptions& options) {
  GptqOptions out;
  out.group_size = options.group_size;
  out.sym = false;
  out.zero_from_0 = true;
  out.damp = options.damp;
  return out;
}

/// Rows of W that stand for all, spread evenly.
LinearSource sample_of(const LinearSource& w, int64_t n_rows) {
  if (w.n <= n_rows) n_rows = w.n;
  auto rows = std::make_shared<Floats>(static_cast<size_t>(n_rows * w.k));
  for (int64_t r = 0; r < n_rows; ++r)
    w.decode_rows(r * w.n / n_rows, 1, rows->data() + r * w.k);
  return LinearSource::of_floats(w.name, n_rows, w.k, std::move(rows));
}

class LayerQuantiser {
 public:
  LayerQuantiser(const LayerSources& layer, const ModelConfig& config,
                 const AwqLayerOptions& options, Backend& backend, const MatrixTeam& team,
                 LayerPass& pass)
      : layer_(layer),
        config_(config),
        options_(options),
        version_(options.awq.version),
        rounding_(rounding_of(options.awq)),
        backend_(backend),
        team_(team),
        pass_(pass) {}

  QuantisedLayer run() {
    w_.input_norm = backend_.upload(layer_.input_norm);
    w_.post_norm = backend_.upload(layer_.post_norm);
    attention();
    if (layer_.moe.router.parts.empty()) {
      dense();
    } else {
      mixture();
    }
    pass_.add_feed_forward(w_);
    for (const QuantisedModule& module : out_.modules)
      add_awq_tensors(module, version_, out_.tensors);
    return std::move(out_);
  }

 private:
  using Inputs = FunctionRef<void(LayerPass::Take)>;

  /// Second moments of inputs, factored.
  struct Known {
    GptqFactor factor;
    Floats sizes;  // GptqFactor::own_sizes, before any scales
    int64_t n_tokens = 0;
  };
  struct Scales {
    Floats values;
    std::optional<double> ratio;  // none: all are 1, or what rounding a norm makes of that
  };

  Known know(const LinearParts& parts, Inputs inputs) {
    Hessian moments(parts.name, parts.parts.front().k, team_);
    inputs([&](const float* x, int64_t n_tokens) { moments.add(x, n_tokens, moments.k()); });
    GptqFactor factor(moments, rounding_, team_);
    Floats sizes = factor.own_sizes();
    return {std::move(factor), std::move(sizes), moments.n_tokens()};
  }

  /// Of AutoAWQ's scales, with an input's own size in the place of its mean size, and none: those
  /// with the least error that rounding with feedback leaves in a sample of the rows. `make_exact`
  /// rounds scales to what can be divided by.
  Scales choose(Known& known, Parts matrices, int64_t n_rows, const Floats& w_sizes,
                FunctionRef<void(Floats&)> make_exact) {
    std::vector<LinearSource> samples;
    for (const LinearParts* parts : matrices) {
      for (const LinearSource& part : parts->parts)
        samples.push_back(sample_of(part, n_rows));
    }
    Scales best;
    double least = 0;
    for (int i = -1; i < kTriedRatios; ++i) {
      const double ratio = static_cast<double>(i) / kAwqRatios;
      Floats scales = candidate(known, w_sizes, i < 0 ? std::nullopt : std::optional(ratio));
      make_exact(scales);
      known.factor.set_input_scales(scales);
      double loss = 0;
      for (const LinearSource& sample : samples)
        loss += gptq_quantise(scaled_source(sample, scales), known.factor, team_).loss;
      if (i >= 0 && !(loss < least)) continue;
      least = loss;
      best = {std::move(scales), i < 0 ? std::nullopt : std::optional(ratio)};
    }
    known.factor.set_input_scales(best.values);
    return best;
  }

  static Floats candidate(const Known& known, const Floats& w_sizes, std::optional<double> ratio) {
    Floats scales(known.sizes.size(), 1.0F);
    if (!ratio) return scales;
    scales = awq_scales(known.sizes, w_sizes, *ratio);
    for (size_t c = 0; c < scales.size(); ++c) {
      // Nothing is known of an input that was always 0.
      scales[c] = known.factor.is_dead(static_cast<int64_t>(c))
                      ? 1
                      : std::clamp(scales[c], 1 / kLargestScale, kLargestScale);
    }
    return scales;
  }

  Floats weight_sizes(Parts matrices) {
    std::vector<LinearSource> all;
    for (const LinearParts* parts : matrices)
      all.insert(all.end(), parts->parts.begin(), parts->parts.end());
    return awq_weight_sizes(all, options_.awq.group_size, team_);
  }

  /// Quantises matrices whose inputs are divided by scales.values. Returns where their modules
  /// begin.
  size_t quantise(const LinearParts& from, const Known& known, const Scales& scales,
                  bool is_cold = false) {
    const size_t first = out_.modules.size();
    for (size_t i = 0; i < from.parts.size(); ++i) {
      const GptqResult result =
          gptq_quantise(scaled_source(from.parts[i], scales.values), known.factor, team_);
      out_.modules.push_back({.id = from.modules[i],
                              .matrix = result.matrix,
                              .loss = result.loss,
                              .damp = known.factor.damp(),
                              .n_tokens = known.n_tokens,
                              .n_dead = known.factor.n_dead(),
                              .is_damp_raised = known.factor.damp() > rounding_.damp,
                              .is_cold = is_cold,
                              .ratio = scales.ratio,
                              .change = change_of(from.parts[i], from.modules[i], scales.values, {},
                                                  result.matrix, team_),
                              .recoding = std::nullopt});
      if (options_.on_done) options_.on_done(from.parts[i].published_bytes());
    }
    return first;
  }

  /// The matrices of `like`, as they will be read from the file, with this bias.
  Linear pack(const LinearParts& like, size_t first, Floats bias = {}) {
    LinearParts parts;
    parts.name = like.name;
    parts.modules = like.modules;
    parts.bias = std::move(bias);
    for (size_t i = 0; i < like.parts.size(); ++i) {
      parts.parts.push_back(
          published_form(like.parts[i].name, out_.modules[first + i].matrix, version_));
    }
    return pack_linear(backend_, parts);
  }

  void keep(const ModuleId& id, const char* suffix, const Shape& shape,
            std::span<const float> values) {
    out_.tensors.push_back(f16_tensor(hf_name(id) + suffix, shape, values));
  }

  /// Scales of matrices behind a norm, which takes the divisors.
  Scales choose_behind_norm(Known& known, Parts matrices, int64_t n_rows, const Floats& norm,
                            const ModuleId& id, std::unique_ptr<DeviceVector>& uploaded) {
    const std::string name = hf_name(id);
    const Scales scales =
        choose(known, matrices, n_rows, weight_sizes(matrices),
               [&](Floats& values) { fold_into_norm(norm, values, name); });
    Floats exact = scales.values;
    const Floats folded = fold_into_norm(norm, exact, name);
    uploaded = backend_.upload(folded);
    keep(id, ".weight", Shape{std::ssize(folded)}, folded);
    return scales;
  }

  void attention() {
    const LinearParts& qkv = layer_.qkv;
    const LinearParts* const behind_norm[] = {&qkv};
    Known known = know(qkv, [&](LayerPass::Take take) { pass_.norm_inputs(w_, take); });
    const ModuleId norm = {Slot::kInputNorm, qkv.modules.front().layer};
    const size_t first =
        quantise(qkv, known,
                 choose_behind_norm(known, behind_norm, kSampleRows, layer_.input_norm, norm,
                                    w_.input_norm));
    Floats bias = f16_values(qkv.bias, qkv.name + ".bias");
    w_.qkv = pack(qkv, first, bias);

    known = know(layer_.o, [&](LayerPass::Take take) { pass_.attend(w_, take); });
    const Scales scales = choose_behind_heads(known);
    const size_t o = quantise(layer_.o, known, scales);
    w_.o = pack(layer_.o, o);
    if (scales.ratio) {
      const Floats divisors = of_kv_heads(scales.values);
      QuantisedModule& v = out_.modules[first + 2];
      v.matrix = divided_rows(*v.matrix, divisors);
      for (size_t i = 0; i < divisors.size() && !bias.empty(); ++i)
        bias[bias.size() - divisors.size() + i] /= divisors[i];
      bias = f16_values(bias, qkv.name + ".bias");
      w_.qkv = pack(qkv, first, bias);
      pass_.attend(w_, [](const float*, int64_t) {});
    }
    keep_bias(bias);
  }

  /// Scales of o, whose divisors go into v: heads that share a head of v share them.
  Scales choose_behind_heads(Known& known) {
    const LinearParts* const matrices[] = {&layer_.o};
    Floats w_sizes = weight_sizes(matrices);
    share(known.sizes);
    share(w_sizes);
    return choose(known, matrices, kSampleRows, w_sizes, [](Floats&) {});
  }
  void share(Floats& sizes) const {
    const Floats of_kv = of_kv_heads(sizes);
    for (size_t i = 0; i < sizes.size(); ++i)
      sizes[i] = of_kv[kv_channel(i)];
  }
  size_t kv_channel(size_t channel) const {
    const auto d = static_cast<size_t>(config_.head_dim);
    const auto repeat = static_cast<size_t>(config_.n_heads / config_.n_kv_heads);
    return channel / d / repeat * d + channel % d;
  }
  /// The mean over the heads that share one.
  Floats of_kv_heads(const Floats& values) const {
    const int repeat = config_.n_heads / config_.n_kv_heads;
    Floats out(values.size() / static_cast<size_t>(repeat));
    for (size_t i = 0; i < values.size(); ++i)
      out[kv_channel(i)] += values[i] / static_cast<float>(repeat);
    return out;
  }

  void keep_bias(const Floats& bias) {
    size_t begin = 0;
    for (size_t i = 0; i < layer_.qkv.parts.size() && !bias.empty(); ++i) {
      const int64_t n = layer_.qkv.parts[i].n;
      keep(layer_.qkv.modules[i], ".bias", Shape{n},
           std::span(bias).subspan(begin, static_cast<size_t>(n)));
      begin += static_cast<size_t>(n);
    }
  }

  /// A block of gate, up and down once gate and up are quantised at `first`.
  void down_of(const LinearParts& gate_up, const LinearParts& down, size_t first,
               Linear& to_gate_up, Linear& to_down,
               FunctionRef<void(const Linear&, LayerPass::Take)> gated,
               bool is_cold = false) {
    const LinearParts* const matrices[] = {&down};
    const Linear packed = pack(gate_up, first);
    Known known = know(down, [&](LayerPass::Take take) { gated(packed, take); });
    const Scales scales =
        choose(known, matrices, kSampleRows, weight_sizes(matrices), [](Floats&) {});
    const size_t at = quantise(down, known, scales, is_cold);
    QuantisedModule& up = out_.modules[first + 1];
    up.matrix = divided_rows(*up.matrix, scales.values);
    to_gate_up = pack(gate_up, first);
    to_down = pack(down, at);
  }

  void dense() {
    const LinearParts* const matrices[] = {&layer_.gate_up};
    Known known =
        know(layer_.gate_up, [&](LayerPass::Take take) { pass_.add_attention(w_, take); });
    const ModuleId norm = {Slot::kPostNorm, layer_.gate_up.modules.front().layer};
    const Scales scales =
        choose_behind_norm(known, matrices, kSampleRows, layer_.post_norm, norm, w_.post_norm);
    const size_t first = quantise(layer_.gate_up, known, scales);
    pass_.renew_norm(w_);
    down_of(layer_.gate_up, layer_.down, first, w_.gate_up, w_.down,
            [&](const Linear& gate_up, LayerPass::Take take) { pass_.gated(gate_up, take); });
  }

  /// A small matrix that stays in f16, with the norm's divisors multiplied into it.
  Linear keep_small(const LinearParts& from, const Scales& scales) {
    LinearParts parts;
    parts.name = from.name;
    parts.modules = from.modules;
    const LinearSource& w = from.parts.front();
    keep(from.modules.front(), ".weight", Shape{w.n, w.k}, scaled_rows(w, 0, w.n, scales.values));
    parts.parts.push_back(LinearSource::of_matrix(out_.tensors.back()));
    return pack_linear(backend_, parts);
  }

  void mixture() {
    const MoeSources& from = layer_.moe;
    std::vector<const LinearParts*> matrices;
    for (const LinearParts& expert : from.gate_up)
      matrices.push_back(&expert);
    const bool shared = !from.shared_gate_up.parts.empty();
    if (shared) matrices.push_back(&from.shared_gate_up);
    Known of_all =
        know(from.gate_up.front(), [&](LayerPass::Take take) { pass_.add_attention(w_, take); });
    const ModuleId norm = {Slot::kPostNorm, from.router.modules.front().layer};
    const Scales scales = choose_behind_norm(of_all, matrices, kExpertSampleRows,
                                             layer_.post_norm, norm, w_.post_norm);
    pass_.renew_norm(w_);
    w_.moe = std::make_unique<MoeWeights>();
    w_.moe->router = keep_small(from.router, scales);
    w_.moe->top_k = config_.moe->top_k;
    w_.moe->norm_topk_prob = config_.moe->norm_topk_prob;
    const std::vector<std::vector<int32_t>> routed = pass_.route(*w_.moe);
    std::vector<int32_t> all(static_cast<size_t>(pass_.n_tokens()));
    std::iota(all.begin(), all.end(), 0);
    for (size_t e = 0; e < routed.size(); ++e) {
      const bool is_cold = std::ssize(routed[e]) < cold_expert_tokens(config_.hidden);
      expert(e, is_cold ? all : routed[e], scales, is_cold);
    }
    if (!shared) return;
    const size_t first = quantise(from.shared_gate_up, of_all, scales);
    down_of(from.shared_gate_up, from.shared_down, first, w_.moe->shared_gate_up,
            w_.moe->shared_down,
            [&](const Linear& gate_up, LayerPass::Take take) { pass_.gated(gate_up, take); });
    w_.moe->shared_gate = keep_small(from.shared_gate, scales);
  }

  /// The norm's divisors are in what its inputs are taken from, not in its moments.
  void expert(size_t e, const std::vector<int32_t>& tokens, const Scales& scales, bool is_cold) {
    const MoeSources& from = layer_.moe;
    const Known known = know(from.gate_up[e], [&](LayerPass::Take take) {
      pass_.expert_inputs(tokens, take);
    });
    const size_t first = quantise(from.gate_up[e], known, scales, is_cold);
    down_of(from.gate_up[e], from.down[e], first, w_.moe->gate_up.emplace_back(),
            w_.moe->down.emplace_back(),
            [&](const Linear& gate_up, LayerPass::Take take) {
              pass_.expert_gated(tokens, gate_up, take);
            },
            is_cold);
  }

  const LayerSources& layer_;
  const ModelConfig& config_;
  const AwqLayerOptions& options_;
  AwqVersion version_;
  GptqOptions rounding_;
  Backend& backend_;
  const MatrixTeam& team_;
  LayerPass& pass_;
  LayerWeights w_;
  QuantisedLayer out_;
};

}  // namespace

QuantisedLayer awq_layer(const LayerSources& layer, const ModelConfig& config,
                         const AwqLayerOptions& options, Backend& backend, const MatrixTeam& team,
                         LayerPass& pass) {
  if (options.awq.mode == AwqOptions::Mode::kReference)
    return awq_reference_layer(layer, options, backend, team, pass);
  return LayerQuantiser(layer, config, options, backend, team, pass).run();
}

}  // namespace qw::quantize
