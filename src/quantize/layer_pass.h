// Calibration sequences on their way through a network, one layer at a time: what the inputs of its
// matrices are, with whatever weights the layers before them have.
//
// Level 6 (quantize). Runs on a backend, as the forward pass does, but layer after layer for all
// tokens instead of token after token for all layers, so only one layer's weights are in memory.
// Source: Frantar et al. 2022, "GPTQ", section 4.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "base/cancel.h"
#include "base/function_ref.h"
#include "model/layer.h"
#include "model/network.h"
#include "model/rope.h"

namespace qw::quantize {

/// Memory: 2 * 4 * n_tokens * hidden bytes, and the activations of a step.
///
/// A layer is: norm_inputs (any number of times), attend, add_attention, gated (any number of
/// times), add_feed_forward; each reads what the one before left. Values depend on neither the
/// number of threads nor how sequences are put together in steps.
class LayerPass {
 public:
  /// The largest number of tokens that are computed at a time, except for one longer sequence.
  static constexpr int64_t kStepTokens = 1024;
  /// Inputs x [n_tokens, cols] of a matrix, of one sequence; token t at x + t * cols.
  using Take = FunctionRef<void(const float* x, int64_t n_tokens)>;

  /// `cancel` may be null. All must outlive this. Errors: invalid_argument, for a sequence without
  /// tokens or with ids outside the vocabulary.
  LayerPass(Backend& backend, const ModelConfig& config,
            const std::vector<std::vector<int32_t>>& sequences, const CancelFlag* cancel);

  int64_t n_tokens() const noexcept { return n_tokens_; }

  /// Hidden states before the first layer. Errors of this and of all that follow: NumericError,
  /// when a value is not finite, naming layer and sequence; cancelled.
  void embed(const EmbeddingWeight& table);
  /// [n_tokens, hidden], to keep, and to go on from. The next layer is `layer`.
  const std::vector<float>& hidden() const noexcept { return x_; }
  void set_hidden(std::vector<float> values, int layer);
  int layer() const noexcept { return layer_; }

  /// Inputs of q, k and v: norm(x).
  void norm_inputs(const LayerWeights& w, Take take);
  /// Inputs of o, with w.qkv.
  void attend(const LayerWeights& w, Take take);
  /// x += o; inputs of the feed-forward block (gate and up, router, experts).
  void add_attention(const LayerWeights& w, Take take);
  /// Inputs of down, with gate_up, for all tokens.
  void gated(const Linear& gate_up, Take take);
  /// x += ffn, or the mixture of experts; the next layer's turn.
  void add_feed_forward(const LayerWeights& w);

  // What a layer would give with other matrices; changes nothing that later stages read.

  /// o of the attention, with `qkv` in the place of w.qkv; before add_attention.
  void attention_output(const LayerWeights& w, const Linear& qkv, Take take);
  /// Output of a dense feed-forward block; after add_attention.
  void feed_forward_output(const Linear& gate_up, const Linear& down, Take take);
  /// Inputs of the feed-forward block again, after w.post_norm has changed.
  void renew_norm(const LayerWeights& w);

  // Of a mixture of experts, between add_attention and add_feed_forward.

  /// Tokens that each expert is chosen for, ascending.
  std::vector<std::vector<int32_t>> route(const MoeWeights& moe);
  /// Inputs of an expert's gate and up: those of `tokens`, in parts.
  void expert_inputs(std::span<const int32_t> tokens, Take take);
  /// Inputs of an expert's down.
  void expert_gated(std::span<const int32_t> tokens, const Linear& gate_up, Take take);

 private:
  struct Step {
    BatchPlan plan;
    std::vector<float> cos, sin;
    int64_t first = 0;  // token
    int64_t n_tokens() const { return plan.n_tokens(); }
  };

  void add_step(const std::vector<std::vector<int32_t>>& sequences, size_t begin, size_t end);
  template <typename Body>
  void for_steps(std::string_view what, const Body& body);
  float* x_of(const Step& step) { return x_.data() + step.first * config_.hidden; }
  /// What is kept between stages, dense: [n, cols] from the step's place on.
  float* side_of(const Step& step) { return side_.data() + step.first * side_width_; }
  const float* input_row(int64_t token) const;
  /// To whoever takes them, unless one is not finite.
  void give(const Step& step, const float* values, int64_t cols, Take take);
  void check_fault(const Step& step);

  Backend& backend_;
  const ModelConfig& config_;
  const CancelFlag* cancel_;
  Rope rope_;
  float eps_;
  int layer_ = 0;
  std::string_view stage_;  // of the layer, for messages
  int64_t n_tokens_ = 0, side_width_ = 0;
  std::vector<Step> steps_;
  std::unique_ptr<KvCache> kv_;  // of one layer, for the largest step
  ActivationBuffers buffers_;
  std::vector<float> x_, side_, scratch_;
};

}  // namespace qw::quantize
