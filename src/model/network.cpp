#include "model/network.h"

#include "base/error.h"
#include "base/progress.h"

namespace qw {

namespace {

class Packer {
 public:
  Packer(const Checkpoint& checkpoint, Backend& backend, const LoadOptions& options, int64_t bytes)
      : checkpoint_(checkpoint),
        backend_(backend),
        options_(options),
        progress_("loading", bytes, Progress::Unit::kBytes, options.quiet) {}

  Linear pack(const LinearParts& parts) {
    Linear out = pack_uncounted(parts);
    done(parts);
    return out;
  }

  /// A matrix whose bytes are still read, or counted, by another: a tied embedding.
  Linear pack_uncounted(const LinearParts& parts) {
    check_cancel();
    return pack_linear(backend_, parts);
  }

  std::unique_ptr<EmbeddingWeight> pack_embedding(const LinearParts& parts) {
    check_cancel();
    return backend_.pack_embedding(parts.parts.front());
  }

  /// Counts the bytes and tells the kernel that the pages may go.
  void done(const LinearParts& parts) {
    progress_.add(parts.published_bytes());
    drop_pages(checkpoint_, parts);
  }

 private:
  void check_cancel() const {
    if (options_.cancel != nullptr) options_.cancel->check("loading the model");
  }

  const Checkpoint& checkpoint_;
  Backend& backend_;
  const LoadOptions& options_;
  Progress progress_;
};

/// pack(parts) makes a Linear of each.
template <typename Pack>
std::unique_ptr<MoeWeights> pack_moe(const MoeSources& moe, const MoeConfig& config,
                                     const Pack& pack) {
  auto out = std::make_unique<MoeWeights>();
  out->router = pack(moe.router);
  for (const LinearParts& expert : moe.gate_up)
    out->gate_up.push_back(pack(expert));
  for (const LinearParts& expert : moe.down)
    out->down.push_back(pack(expert));
  out->shared_gate_up = pack(moe.shared_gate_up);
  out->shared_down = pack(moe.shared_down);
  out->shared_gate = pack(moe.shared_gate);
  out->top_k = config.top_k;
  out->norm_topk_prob = config.norm_topk_prob;
  return out;
}

template <typename Pack>
LayerWeights pack_layer_by(const LayerSources& layer, const ModelConfig& config, Backend& backend,
                           const Pack& pack) {
  LayerWeights out;
  out.input_norm = backend.upload(layer.input_norm);
  out.post_norm = backend.upload(layer.post_norm);
  out.qkv = pack(layer.qkv);
  out.o = pack(layer.o);
  out.gate_up = pack(layer.gate_up);
  out.down = pack(layer.down);
  if (!layer.moe.router.parts.empty()) out.moe = pack_moe(layer.moe, *config.moe, pack);
  return out;
}

/// One walk for const and mutable networks.
template <typename SomeNetwork, typename Visit>
void visit_linears(SomeNetwork& network, const NetworkSources& sources, const Visit& visit) {
  const auto call = [&](auto& linear, const LinearParts& parts, double active = 1) {
    if (linear.weight != nullptr) visit(linear, parts, active);
  };
  call(network.lm_head, sources.lm_head);
  for (size_t l = 0; l < network.layers.size(); ++l) {
    auto& w = network.layers[l];
    const LayerSources& s = sources.layers[l];
    call(w.qkv, s.qkv);
    call(w.o, s.o);
    call(w.gate_up, s.gate_up);
    call(w.down, s.down);
    if (w.moe == nullptr) continue;
    call(w.moe->router, s.moe.router);
    const auto n_experts = static_cast<double>(w.moe->down.size());
    for (size_t e = 0; e < w.moe->down.size(); ++e) {
      call(w.moe->gate_up[e], s.moe.gate_up[e], w.moe->top_k / n_experts);
      call(w.moe->down[e], s.moe.down[e], w.moe->top_k / n_experts);
    }
    call(w.moe->shared_gate_up, s.moe.shared_gate_up);
    call(w.moe->shared_down, s.moe.shared_down);
    call(w.moe->shared_gate, s.moe.shared_gate);
  }
}

}  // namespace

Linear pack_linear(Backend& backend, const LinearParts& parts) {
  Linear out;
  out.name = parts.name;
  if (!parts.bias.empty()) out.bias = backend.upload(parts.bias);
  if (!parts.parts.empty()) out.weight = backend.pack_linear(parts.parts);
  return out;
}

LayerWeights pack_layer(Backend& backend, const LayerSources& layer, const ModelConfig& config) {
  return pack_layer_by(layer, config, backend,
                       [&](const LinearParts& parts) { return pack_linear(backend, parts); });
}

void drop_pages(const Checkpoint& checkpoint, const LinearParts& parts) {
  for (const auto bytes : parts.bytes) {
    for (const auto& mapping : checkpoint.mappings) {
      const auto all = mapping->bytes();
      if (bytes.data() >= all.data() && bytes.data() + bytes.size() <= all.data() + all.size())
        mapping->drop(bytes);
    }
  }
}

void drop_pages(const Checkpoint& checkpoint) {
  for (const auto& mapping : checkpoint.mappings)
    mapping->drop(mapping->bytes());
}

Network pack_network(const NetworkSources& sources, const ModelConfig& config,
                     const Checkpoint& checkpoint, Backend& backend, const LoadOptions& options) {
  Packer packer(checkpoint, backend, options, sources.published_bytes());
  Network network;
  network.embedding = packer.pack_embedding(sources.embedding);
  network.lm_head =
      sources.tied ? packer.pack_uncounted(sources.lm_head) : packer.pack(sources.lm_head);
  packer.done(sources.embedding);
  for (const LayerSources& layer : sources.layers) {
    network.layers.push_back(pack_layer_by(layer, config, backend,
                                           [&](const LinearParts& p) { return packer.pack(p); }));
  }
  network.final_norm = backend.upload(sources.final_norm);
  checkpoint.check_readable();
  return network;
}

void Network::for_each_linear(
    const NetworkSources& sources,
    const std::function<void(const Linear&, const LinearParts&, double)>& visit) const {
  visit_linears(*this, sources, visit);
}

Network::Place Network::find(const NetworkSources& sources, const ModuleId& id) {
  Place place;
  visit_linears(*this, sources, [&](Linear& linear, const LinearParts& parts, double) {
    int64_t row = 0;
    for (size_t part = 0; part < parts.modules.size(); ++part) {
      if (parts.modules[part] == id) place = {&linear, &parts, part, row};
      row += parts.parts[part].n;
    }
  });
  return place;
}

}  // namespace qw
