// The network as published: every matrix as a view of the file, checked, nothing packed yet.
//
// Level 5 (model). Opening is separate from packing so that a wrong name, shape or type is found
// before memory is spent; DoRA adapters read the views again later.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/config.h"
#include "model/tensor_names.h"
#include "quant/linear_source.h"

namespace qw {

/// Matrices that share their input and are packed into one Linear, stacked along n.
struct LinearParts {
  std::string name;                               // "layers.3.qkv"
  std::vector<LinearSource> parts;                // empty: the network has no such layer
  std::vector<ModuleId> modules;                  // what each part is
  std::vector<float> bias;                        // of all parts; empty: none
  std::vector<std::span<const std::byte>> bytes;  // of the file, for dropping pages

  int64_t published_bytes() const;
  std::string format() const;  // formats of the parts, each once: "q4_k + q6_k"
};

struct MoeSources {
  LinearParts router;  // parts empty: a dense layer
  std::vector<LinearParts> gate_up, down;
  LinearParts shared_gate_up, shared_down, shared_gate;
};

struct LayerSources {
  std::vector<float> input_norm, post_norm;
  LinearParts qkv, o;
  LinearParts gate_up, down;  // of a dense layer
  MoeSources moe;
};

struct NetworkSources {
  LinearParts embedding;  // one part [vocab, hidden]
  std::vector<LayerSources> layers;
  std::vector<float> final_norm;
  LinearParts lm_head;  // the embedding's part again when tied
  bool tied = false;    // lm_head is the embedding
  std::vector<std::string> warnings;

  /// Calls visit(parts) for every layer that the network has, the embedding first; lm_head only
  /// when it is a matrix of its own.
  void for_each(const std::function<void(const LinearParts&)>& visit) const;
  int64_t published_bytes() const;
};

/// The values of a norm, bias or other vector, in f32. Errors: corrupt, naming the tensor, when one
/// is not finite.
std::vector<float> read_vector(const RawTensor& tensor);

/// Finds every tensor of the network and checks its shape and type against the config.
/// Errors: corrupt (a missing tensor, by name; shape, size, values that are not finite),
/// unsupported (type). What is odd but harmless becomes a warning.
NetworkSources open_network(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace qw
