// The network ready to run: packed weights, in the order the forward pass uses them.
//
// Level 5 (model). Built from NetworkSources by a backend; adapters append to it later.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "model/model.h"
#include "model/sources.h"

namespace qw {

struct LayerWeights {
  std::unique_ptr<DeviceVector> input_norm, post_norm;
  Linear qkv, o;
  Linear gate_up, down;             // of a dense layer
  std::unique_ptr<MoeWeights> moe;  // of a sparse one
};

struct Network {
  std::unique_ptr<EmbeddingWeight> embedding;
  std::vector<LayerWeights> layers;
  std::unique_ptr<DeviceVector> final_norm;
  Linear lm_head;

  /// Calls visit(linear, parts, active) for every packed layer; `active` is the share of it that
  /// one token reads (top_k / n_experts for experts, else 1).
  void for_each_linear(
      const NetworkSources& sources,
      const std::function<void(const Linear&, const LinearParts&, double)>& visit) const;

  /// The Linear that holds module `id`, and the rows [begin, begin + part.n) it has there.
  struct Place {
    Linear* linear = nullptr;  // null: this network has no such matrix
    const LinearParts* parts = nullptr;
    size_t part = 0;
    int64_t row_begin = 0;
  };
  Place find(const NetworkSources& sources, const ModuleId& id);
};

/// One layer, bias included; its weight is null where `parts` has none. Errors: as
/// Backend::pack_linear.
Linear pack_linear(Backend& backend, const LinearParts& parts);
LayerWeights pack_layer(Backend& backend, const LayerSources& layer, const ModelConfig& config);
/// Tells the kernel that pages of the file that hold these matrices are not wanted any more.
void drop_pages(const Checkpoint& checkpoint, const LinearParts& parts);
/// The same of the whole file.
void drop_pages(const Checkpoint& checkpoint);

/// Packs everything with progress, and lets go of file pages that were packed.
/// Errors: unsupported, corrupt, out_of_memory, io, cancelled.
Network pack_network(const NetworkSources& sources, const ModelConfig& config,
                     const Checkpoint& checkpoint, Backend& backend, const LoadOptions& options);

}  // namespace qw
