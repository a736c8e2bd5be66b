#include "model/layer.h"

#include <cmath>

#include "model/tap.h"

namespace qw {

Activations ActivationBuffers::get(Backend& backend, const ModelConfig& config, int64_t n_tokens) {
  const int64_t q = int64_t{config.n_heads} * config.head_dim;
  const int64_t kv = int64_t{config.n_kv_heads} * config.head_dim;
  if (n_tokens > capacity_) {
    x_ = backend.allocate(n_tokens, config.hidden);
    h_ = backend.allocate(n_tokens, config.hidden);
    y_ = backend.allocate(n_tokens, config.hidden);
    qkv_ = backend.allocate(n_tokens, q + 2 * kv);
    o_ = backend.allocate(n_tokens, q);
    capacity_ = n_tokens;
  }
  return {x_->view.first(n_tokens), h_->view.first(n_tokens), y_->view.first(n_tokens),
          qkv_->view.first(n_tokens), o_->view.first(n_tokens)};
}

void self_attention(Backend& backend, const ModelConfig& config, int layer, const Linear& qkv,
                    const Activations& a, KvCache& kv, int kv_layer, ForwardObserver* observer) {
  const AttentionSpec spec{
      .n_heads = config.n_heads,
      .n_kv_heads = config.n_kv_heads,
      .head_dim = config.head_dim,
      .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim))),
      .window = config.window_of_layer(layer)};
  const int64_t q = a.o.cols, k = (a.qkv.cols - q) / 2;
  backend.linear(a.h, qkv, a.qkv);                   // [T, (nh + 2 nkv) * hd]
  backend.rope_store_kv(a.qkv, kv, kv_layer, spec);  // rotates q, k; writes k, v at plan.slots
  tap(observer, backend, a.qkv.slice_cols(0, q), "layer{}.q_rope", layer);
  tap(observer, backend, a.qkv.slice_cols(q, k), "layer{}.k_rope", layer);
  tap(observer, backend, a.qkv.slice_cols(q + k, k), "layer{}.v", layer);
  backend.paged_attention(a.qkv, kv, kv_layer, spec, a.o);  // [T, nh * hd]
  tap(observer, backend, a.o, "layer{}.attn_context", layer);
}

}  // namespace qw
