// The published shapes, and the tensors that a model of such a shape has.
//
// A tool. Sources: config.json of each checkpoint; names as in Transformers and llama.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/shape.h"

namespace qw::make_model {

struct ModelShape {
  std::string name;
  int64_t hidden, intermediate;
  int n_layers, n_heads, n_kv_heads;
  int64_t vocab;
  bool tied;
  double rope_theta;
  int n_experts = 0, top_k = 0;
  int64_t expert_intermediate = 0, shared_intermediate = 0;
};

/// A published size ("0.5B", "MoE-A2.7B") or "tiny". Errors: invalid_argument, naming them all.
ModelShape shape_of(std::string_view size);

/// What a tensor is for: it decides size of values and type.
enum class Role { kEmbedding, kOutput, kNorm, kBias, kRouter, kLinear, kV, kDown };

struct Tensor {
  std::string name;  // without ".weight" / ".bias"
  std::string suffix;
  Shape shape;
  Role role;
  int layer = -1;
};

/// All tensors, in file order, with Hugging Face or GGUF names; experts of GGUF are stacked.
std::vector<Tensor> tensors_of(const ModelShape& shape, bool gguf);

/// Embedding, output and linear layers: what the formats store in their own types.
bool is_matrix(Role role);

/// Standard deviation that keeps a layer's output near its input's size.
double std_of(const Tensor& tensor);

}  // namespace qw::make_model
