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

/// Matrices that share their inputs, and what they were quantised with.
struct GptqGroupDone {
  const LinearParts &published, &quantised;
  const Hessian& hessian;
  GptqFactor& factor;    // left as it was
  double loss = 0;       // of all, GptqResult::loss
  int64_t n_routed = 0;  // tokens of the calibration that reach them
};

struct GptqLayerOptions {
  GptqOptions gptq;
  /// Inputs of a matrix come from quantised matrices of the same layer (q, k, v; then o; then gate,
  /// up; then down). Else from the layer as published.
  bool true_sequential = true;
  /// Told of the published bytes of each matrix when it is done; may be empty.
  std::function<void(int64_t)> on_done;
  /// Of a module, the same for all that share their inputs; empty: gptq.bits.
  std::function<int(const ModuleId&)> bits_of;
  /// Told of matrices that share their inputs when they are done; may be empty.
  std::function<void(const GptqGroupDone&)> on_group;
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
