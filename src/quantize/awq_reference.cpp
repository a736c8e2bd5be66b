#include "quantize/awq_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/error.h"
#include "quantize/awq_tensors.h"

namespace qw::quantize {

namespace {

using Floats = std::vector<float>;

/// Tokens that clipping is measured on, about.
constexpr int64_t kClipTokens = 512;

/// "self_attn.q_proj" of "model.layers.0.self_attn.q_proj".
std::string short_name(const ModuleId& id) {
  const std::string name = hf_name(id);
  const std::string prefix = "model.layers." + std::to_string(id.layer) + ".";
  return name.substr(prefix.size());
}

class Reference {
 public:
  Reference(const LayerSources& layer, const AwqLayerOptions& options, Backend& backend,
            const MatrixTeam& team, LayerPass& pass)
      : layer_(layer),
        options_(options),
        group_size_(options.awq.group_size),
        backend_(backend),
        team_(team),
        pass_(pass) {}

  QuantisedLayer run() {
    LayerWeights w;
    w.input_norm = backend_.upload(layer_.input_norm);
    w.post_norm = backend_.upload(layer_.post_norm);
    w.qkv = pack_linear(backend_, layer_.qkv);
    w.o = pack_linear(backend_, layer_.o);
    w.gate_up = pack_linear(backend_, layer_.gate_up);
    w.down = pack_linear(backend_, layer_.down);
    const int index = layer_.o.modules.front().layer;
    const ModuleId input_norm = {Slot::kInputNorm, index}, post_norm = {Slot::kPostNorm, index};
    const ModuleId &v = layer_.qkv.modules[2], &up = layer_.gate_up.modules[1];

    const AwqInputs qkv =
        collect(layer_.qkv, [&](LayerPass::Take take) { pass_.norm_inputs(w, take); });
    const Floats for_qkv =
        search_by_block(input_norm, layer_.qkv, 1, qkv,
                        [&](const Linear& tried, LayerPass::Take take) {
                          pass_.attention_output(w, tried, take);
                        });
    const AwqInputs o = collect(layer_.o, [&](LayerPass::Take take) { pass_.attend(w, take); });
    const Floats for_o = layer_.qkv.parts[2].n == layer_.o.parts.front().k
                             ? search_by_moments(v, layer_.o, o)
                             : Floats();
    const AwqInputs gate_up =
        collect(layer_.gate_up, [&](LayerPass::Take take) { pass_.add_attention(w, take); });
    const Floats for_gate_up = search_by_block(
        post_norm, layer_.gate_up, 2, gate_up, [&](const Linear& tried, LayerPass::Take take) {
          pass_.feed_forward_output(tried, w.down, take);
        });
    const AwqInputs down =
        collect(layer_.down, [&](LayerPass::Take take) { pass_.gated(w.gate_up, take); });
    const Floats for_down = search_by_moments(up, layer_.down, down);
    pass_.add_feed_forward(w);

    keep_norm(input_norm, layer_.input_norm, for_qkv);
    for (size_t i = 0; i < 3; ++i)
      quantise(layer_.qkv, i, qkv, for_qkv, i == 2 ? for_o : Floats(), i == 2);
    keep_biases(for_o);
    const Floats ones(static_cast<size_t>(layer_.o.parts.front().k), 1.0F);
    quantise(layer_.o, 0, o, for_o.empty() ? ones : for_o, {}, true);
    keep_norm(post_norm, layer_.post_norm, for_gate_up);
    quantise(layer_.gate_up, 0, gate_up, for_gate_up, {}, true);
    quantise(layer_.gate_up, 1, gate_up, for_gate_up, for_down, true);
    quantise(layer_.down, 0, down, for_down, {}, true);
    for (const QuantisedModule& module : out_.modules)
      add_awq_tensors(module, options_.awq.version, out_.tensors);
    return std::move(out_);
  }

 private:
  AwqInputs collect(const LinearParts& parts, FunctionRef<void(LayerPass::Take)> inputs) {
    AwqInputs out(parts.name, parts.parts.front().k, team_, pass_.n_tokens(), kClipTokens);
    inputs([&](const float* x, int64_t n_tokens) { out.add(x, n_tokens); });
    return out;
  }

  /// Tries all ratios; the scales of least loss(scales).
  Floats search(const ModuleId& previous, const LinearParts& parts, const AwqInputs& inputs,
                FunctionRef<double(const Floats& scales)> loss) {
    AwqTrace::Pair found;
    found.x_sizes = inputs.mean_sizes();
    found.w_sizes = awq_weight_sizes(parts.parts, group_size_, team_);
    double least = std::numeric_limits<double>::infinity();
    for (int i = 0; i < kAwqRatios; ++i) {
      const double ratio = static_cast<double>(i) / kAwqRatios;
      Floats scales = awq_scales(found.x_sizes, found.w_sizes, ratio);
      found.losses.push_back(loss(scales));
      if (!(found.losses.back() < least)) continue;
      least = found.losses.back();
      found.ratio = ratio;
      found.scales = std::move(scales);
    }
    if (found.scales.empty()) {
      fail(ErrorKind::kInvalidArgument, "awq",
           "{}: expected a finite loss of some scales, got none", printable(parts.name));
    }
    for (const ModuleId& id : parts.modules)
      ratios_[hf_name(id)] = found.ratio;
    Floats out = found.scales;
    if (options_.trace != nullptr) options_.trace->pairs[short_name(previous)] = std::move(found);
    return out;
  }

  /// round(W S) / S.
  Floats tried(const LinearSource& w, const Floats& scales) {
    Floats out(static_cast<size_t>(w.n * w.k));
    constexpr int64_t kRows = 16;
    team_.for_each((w.n + kRows - 1) / kRows, [&](int64_t block) {
      const int64_t row = block * kRows, n_rows = std::min(kRows, w.n - row);
      Floats rows = scaled_rows(w, row, n_rows, scales);
      awq_round(rows.data(), n_rows, w.k, group_size_);
      for (int64_t i = 0; i < n_rows * w.k; ++i)
        out[static_cast<size_t>(row * w.k + i)] =
            rows[static_cast<size_t>(i)] / scales[static_cast<size_t>(i % w.k)];
    });
    return out;
  }

  /// Loss: the mean square of what changes in the outputs of the block with the first n_tried
  /// matrices rounded.
  Floats search_by_block(const ModuleId& previous, const LinearParts& parts, size_t n_tried,
                         const AwqInputs& inputs,
                         FunctionRef<void(const Linear&, LayerPass::Take)> outputs) {
    const auto hidden = static_cast<size_t>(layer_.o.parts.front().n);
    Floats published;
    outputs(pack_linear(backend_, parts), [&](const float* y, int64_t n_tokens) {
      published.insert(published.end(), y, y + static_cast<size_t>(n_tokens) * hidden);
    });
    return search(previous, parts, inputs, [&](const Floats& scales) {
      LinearParts changed;
      changed.name = parts.name;
      changed.modules = parts.modules;
      changed.bias = parts.bias;
      changed.parts = parts.parts;
      for (size_t i = 0; i < n_tried; ++i) {
        const LinearSource& part = parts.parts[i];
        changed.parts[i] = LinearSource::of_floats(
            part.name, part.n, part.k, std::make_shared<const Floats>(tried(part, scales)));
      }
      double sum = 0;
      size_t done = 0;
      outputs(pack_linear(backend_, changed), [&](const float* y, int64_t n_tokens) {
        const size_t n = static_cast<size_t>(n_tokens) * hidden;
        for (size_t i = 0; i < n; ++i) {
          const double change =
              static_cast<double>(y[i]) - static_cast<double>(published[done + i]);
          sum += change * change;
        }
        done += n;
      });
      return sum / static_cast<double>(published.size());
    });
  }

  /// The same of one matrix's outputs.
  Floats search_by_moments(const ModuleId& previous, const LinearParts& parts,
                           const AwqInputs& inputs) {
    const LinearSource& w = parts.parts.front();
    const Floats ones(static_cast<size_t>(w.k), 1.0F);
    const Floats published = scaled_rows(w, 0, w.n, ones);
    return search(previous, parts, inputs, [&](const Floats& scales) {
      Floats change = tried(w, scales);
      std::transform(change.begin(), change.end(), published.begin(), change.begin(),
                     std::minus<>());
      return output_error(team_, inputs.moments(), change.data(), w.n) /
             static_cast<double>(inputs.moments().n_tokens() * w.n);
    });
  }

  void quantise(const LinearParts& parts, size_t i, const AwqInputs& inputs, const Floats& scales,
                const Floats& divisors, bool clip) {
    const LinearSource& source = parts.parts[i];
    const int64_t n = source.n, k = source.k;
    Floats w = scaled_rows(source, 0, n, scales, divisors);
    if (clip) {
      Floats x = inputs.kept();
      for (size_t j = 0; j < x.size(); ++j)
        x[j] /= scales[j % static_cast<size_t>(k)];
      const Floats bounds = awq_clip(team_, w.data(), n, k, group_size_, x);
      apply_clip(w.data(), n, k, group_size_, bounds);
      if (options_.trace != nullptr) options_.trace->clip[short_name(parts.modules[i])] = bounds;
    }
    QuantisedModule& module = out_.modules.emplace_back();
    module.id = parts.modules[i];
    module.matrix = awq_publish_rounding(w.data(), n, k, group_size_);
    module.n_tokens = inputs.moments().n_tokens();
    module.ratio = ratios_[hf_name(module.id)];
    module.change = change_of(source, module.id, scales, divisors, module.matrix, team_);
    module.loss = loss_of(*module.matrix, source, inputs, scales, divisors);
    if (options_.on_done) options_.on_done(source.published_bytes());
  }

  /// As GptqResult::loss, without damp.
  double loss_of(const AffineMatrix& matrix, const LinearSource& source, const AwqInputs& inputs,
                 const Floats& scales, const Floats& divisors) {
    const Floats ones(static_cast<size_t>(source.k), 1.0F);
    const Floats published = scaled_rows(source, 0, source.n, ones);
    Floats change(published.size());
    const auto shared = std::make_shared<AffineMatrix>(matrix);
    source_of(source.name, shared).decode_rows(0, source.n, change.data());
    for (size_t j = 0; j < change.size(); ++j) {
      const size_t row = j / scales.size();
      change[j] = change[j] / scales[j % scales.size()] * (divisors.empty() ? 1 : divisors[row]) -
                  published[j];
    }
    return inputs.moments().scale() / 2 *
           output_error(team_, inputs.moments(), change.data(), source.n);
  }

  void keep_norm(const ModuleId& id, Floats norm, const Floats& scales) {
    for (size_t i = 0; i < norm.size(); ++i)
      norm[i] /= scales[i];
    out_.tensors.push_back(f16_tensor(hf_name(id) + ".weight", Shape{std::ssize(norm)}, norm));
  }

  void keep_biases(const Floats& of_v) {
    auto begin = layer_.qkv.bias.begin();
    for (size_t i = 0; i < 3 && !layer_.qkv.bias.empty(); ++i) {
      const int64_t n = layer_.qkv.parts[i].n;
      Floats bias(begin, begin + n);
      begin += n;
      for (size_t j = 0; i == 2 && j < of_v.size(); ++j)
        bias[j] /= of_v[j];
      out_.tensors.push_back(
          f16_tensor(hf_name(layer_.qkv.modules[i]) + ".bias", Shape{n}, bias));
    }
  }

  const LayerSources& layer_;
  const AwqLayerOptions& options_;
  int64_t group_size_;
  Backend& backend_;
  const MatrixTeam& team_;
  LayerPass& pass_;
  std::map<std::string, double> ratios_;
  QuantisedLayer out_;
};

}  // namespace

QuantisedLayer awq_reference_layer(const LayerSources& layer, const AwqLayerOptions& options,
                                   Backend& backend, const MatrixTeam& team, LayerPass& pass) {
  if (!layer.moe.router.parts.empty()) {
    fail(ErrorKind::kUnsupported, "awq",
         "{}: expected a dense layer for AutoAWQ's way, which has no mixtures of Qwen's experts, "
         "got one (the better mode takes both)",
         printable(layer.moe.router.name));
  }
  return Reference(layer, options, backend, team, pass).run();
}

}  // namespace qw::quantize
