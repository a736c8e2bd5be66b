// What the forward pass and those who walk a network layer by layer (quantisers) compute alike.
//
// Level 5 (model). Against the backend's interface, as the rest of the forward pass.
#pragma once

#include <cstdint>
#include <memory>

#include "backend/backend.h"
#include "model/config.h"

namespace qw {

class ForwardObserver;

/// Activations of one step, [T, ...].
struct Activations {
  Rows x, h, y;  // [T, hidden]: hidden states, input and result of a block
  Rows qkv;      // [T, (heads + 2 kv_heads) * head_dim]
  Rows o;        // [T, heads * head_dim]
};

/// Their owner; grown when a step needs more rows, never shrunk.
class ActivationBuffers {
 public:
  Activations get(Backend& backend, const ModelConfig& config, int64_t n_tokens);

 private:
  int64_t capacity_ = 0;  // rows
  std::unique_ptr<RowsBuffer> x_, h_, y_, qkv_, o_;
};

/// a.o = softmax(q k^T / sqrt(d)) v of the rotated projections of a.h, for layer `layer` of the
/// network, whose keys and values are layer `kv_layer` of the cache. Fills a.qkv too.
void self_attention(Backend& backend, const ModelConfig& config, int layer, const Linear& qkv,
                    const Activations& a, KvCache& kv, int kv_layer, ForwardObserver* observer);

}  // namespace qw
