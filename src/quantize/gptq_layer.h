// GPTQ of one layer of a network: each of its matrices is quantised with the inputs that it has
// when all that comes before it is quantised.
//
// Level 6 (quantize). Source: AutoGPTQ 0.7.1, modeling/_base.py (quantize) for the order.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/network.h"
#include "quantize/gptq_solver.h"
#include "quantize/layer_pass.h"

namespace qw::quantize {

/// One quantised matrix, and what is to be said of it.
struct GptqModule {
  ModuleId id;
  std::shared_ptr<const AffineMatrix> matrix;
  double loss = 0;       // GptqResult::loss
  double damp = 0;       // as used
  int64_t n_tokens = 0;  // that its inputs were taken from
  int64_t n_dead = 0;    // inputs that were always 0
  bool is_damp_raised = false;
  bool is_cold = false;  // an expert that was routed to too rarely
};

struct GptqLayerOptions {
  GptqOptions gptq;
  /// Inputs of a matrix come from quantised matrices of the same layer (q, k, v; then o; then gate,
  /// up; then down). Else from the layer as published.
  bool true_sequential = true;
  /// Told of the published bytes of each matrix when it is done; may be empty.
  std::function<void(int64_t)> on_done;
};

/// An expert that fewer tokens than this are routed to is quantised with the inputs that it would
/// have if it got all of them: a number of inputs that is small against their features says nothing
/// about most directions.
constexpr int64_t cold_expert_tokens(int64_t k) {
  return k / 8 < 64 ? 64 : k / 8;
}

/// Quantises the layer that `pass` stands before, and moves it behind that layer as quantised.
/// Routers and the gate of a shared expert stay as published. Errors: those of LayerPass, Hessian,
/// GptqFactor and gptq_quantise, naming layer or module.
std::vector<GptqModule> gptq_layer(const LayerSources& layer, const ModelConfig& config,
                                   const GptqLayerOptions& options, Backend& backend,
                                   const MatrixTeam& team, LayerPass& pass);

/// Moves `pass` behind a layer that was quantised before.
void pass_layer(const LayerSources& layer, const ModelConfig& config, Backend& backend,
                LayerPass& pass);

}  // namespace qw::quantize
