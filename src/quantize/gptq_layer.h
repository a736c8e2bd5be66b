// GPTQ of one layer of a network: each of its matrices is quantised with the inputs that it has
// when all that comes before it is quantised.
//
// Level 6 (quantize). Source: AutoGPTQ 0.7.1, modeling/_base.py (quantize) for the order.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/network.h"
#include "quantize/gptq_solver.h"
#include "quantize/layer_pass.h"
#include "quantize/quantised_layer.h"

namespace qw::quantize {

struct GptqLayerOptions {
  GptqOptions gptq;
  /// Inputs of a matrix come from quantised matrices of the same layer (q, k, v; then o; then gate,
  /// up; then down). Else from the layer as published.
  bool true_sequential = true;
  /// Told of the published bytes of each matrix when it is done; may be empty.
  std::function<void(int64_t)> on_done;
};

/// Quantises the layer that `pass` stands before, and moves it behind that layer as quantised.
/// Routers and the gate of a shared expert stay as published. Errors: those of LayerPass, Hessian,
/// GptqFactor and gptq_quantise, naming layer or module.
std::vector<QuantisedModule> gptq_layer(const LayerSources& layer, const ModelConfig& config,
                                        const GptqLayerOptions& options, Backend& backend,
                                        const MatrixTeam& team, LayerPass& pass);

/// Moves `pass` behind a layer that was quantised before.
void pass_layer(const LayerSources& layer, const ModelConfig& config, Backend& backend,
                LayerPass& pass);

}  // namespace qw::quantize
