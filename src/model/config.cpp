#include "model/config.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace qw {

namespace {

/// Caps far above any published model, so that products of sizes stay far from overflow.
constexpr int64_t kMaxSize = int64_t{1} << 24;
constexpr int kMaxHeads = 4096, kMaxExperts = 4096;

void check_range(std::string_view field, int64_t value, int64_t smallest, int64_t largest,
                 const std::string& file) {
  if (value < smallest || value > largest) {
    fail(ErrorKind::kCorrupt, "config", "{}: expected {} to {}, got {} ({})", field, smallest,
         largest, value, printable(file));
  }
}

void check_positive(std::string_view field, double value, const std::string& file) {
  if (!(value > 0) || !std::isfinite(value)) {
    fail(ErrorKind::kCorrupt, "config", "{}: expected a positive number, got {} ({})", field, value,
         printable(file));
  }
}

}  // namespace

ModelConfig ModelConfig::from_checkpoint(const Checkpoint& checkpoint) {
  return checkpoint.kind == Checkpoint::Kind::kGguf ? from_gguf(checkpoint) : from_hf(checkpoint);
}

void ModelConfig::check(const std::string& file) const {
  check_range("hidden size", hidden, 1, kMaxSize, file);
  check_range("intermediate size", intermediate, 1, kMaxSize, file);
  check_range("vocabulary size", vocab, 1, kMaxSize, file);
  check_range("number of layers", n_layers, 1, kMaxLayers, file);
  check_range("number of attention heads", n_heads, 1, kMaxHeads, file);
  check_range("number of key-value heads", n_kv_heads, 1, n_heads, file);
  check_range("head size", head_dim, 2, 4096, file);
  check_range("context length", max_positions, 1, int64_t{1} << 30, file);
  if (n_heads % n_kv_heads != 0) {
    fail(ErrorKind::kCorrupt, "config",
         "number of attention heads: expected a multiple of {} key-value heads, got {} ({})",
         n_kv_heads, n_heads, printable(file));
  }
  if (head_dim % 2 != 0) {
    fail(ErrorKind::kCorrupt, "config", "head size: expected an even number, got {} ({})", head_dim,
         printable(file));
  }
  check_positive("rms_norm_eps", rms_norm_eps, file);
  check_positive("rope_theta", rope.theta, file);
  check_positive("rope scaling factor", rope.factor, file);
  if (rope.scaling == RopeScaling::kYarn) {
    check_range("original context length of rope scaling", rope.original_max_positions, 1,
                int64_t{1} << 30, file);
    check_positive("beta_fast", rope.beta_fast, file);
    check_positive("beta_slow", rope.beta_slow, file);
    if (rope.attention_factor) check_positive("attention_factor", *rope.attention_factor, file);
    check_positive("rope_theta - 1", rope.theta - 1, file);  // its logarithm is a divisor
  }
  if (rope.scaling == RopeScaling::kDynamic) {
    check_range("head size with dynamic rope scaling", head_dim, 4, 4096, file);
    check_positive("rope scaling factor - 1 + 1e-9", rope.factor - 1 + 1e-9, file);
  }
  check_range("sliding window", sliding_window, 0, int64_t{1} << 30, file);
  for (const int32_t id : eos_ids)
    check_range("eos_token_id", id, 0, vocab - 1, file);
  if (!moe) return;
  check_range("number of experts", moe->n_experts, 1, kMaxExperts, file);
  check_range("experts per token", moe->top_k, 1, moe->n_experts, file);
  check_range("expert size", moe->expert_intermediate, 1, kMaxSize, file);
  check_range("shared expert size", moe->shared_intermediate, 0, kMaxSize, file);
  check_range("decoder_sparse_step", moe->decoder_sparse_step, 1, kMaxLayers, file);
}

bool ModelConfig::layer_is_sparse(int layer) const {
  return moe && (layer + 1) % moe->decoder_sparse_step == 0 &&
         std::ranges::find(moe->mlp_only_layers, layer) == moe->mlp_only_layers.end();
}

int64_t ModelConfig::window_of_layer(int layer) const {
  const bool windowed = layer_is_windowed.empty() ? layer >= max_window_layers
                                                  : layer_is_windowed[static_cast<size_t>(layer)];
  return windowed ? sliding_window : 0;
}

namespace {

struct ParameterCount {
  int64_t all = 0, active = 0;
  void add(int64_t n) {
    all += n;
    active += n;
  }
};

ParameterCount count_layers(const ModelConfig& c) {
  ParameterCount count;
  const int64_t q = int64_t{c.n_heads} * c.head_dim, kv = int64_t{c.n_kv_heads} * c.head_dim;
  for (int layer = 0; layer < c.n_layers; ++layer) {
    count.add((c.hidden + 1) * (q + 2 * kv) + q * c.hidden + 2 * c.hidden);
    if (!c.layer_is_sparse(layer)) {
      count.add(3 * c.hidden * c.intermediate);
      continue;
    }
    const int64_t expert = 3 * c.hidden * c.moe->expert_intermediate;
    count.all += expert * c.moe->n_experts;
    count.active += expert * c.moe->top_k;
    count.add(c.hidden * c.moe->n_experts);  // router
    if (c.moe->shared_intermediate > 0)
      count.add(3 * c.hidden * c.moe->shared_intermediate + c.hidden);
  }
  count.add(c.hidden);  // final norm
  return count;
}

}  // namespace

int64_t ModelConfig::n_parameters() const {
  return count_layers(*this).all + vocab * hidden * (tied_embeddings ? 1 : 2);
}

int64_t ModelConfig::n_parameters_active() const {
  return count_layers(*this).active;
}

}  // namespace qw
