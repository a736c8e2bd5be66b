// GPTQ of one layer of a network: each of its matrices is quantised with the inputs that it has
// when all that comes before it is quantised.
//
// Level 6 (quantize). Source: AutoGPTQ 0.7.1, modeling/_base.py (quantize) for the order.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "base/function_ref.h"
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

/// How matrices that share their inputs are made: `to` begins as `from`; `inputs` must be called
/// once at least, for it moves the pass on. `n_routed`: of an expert, how many tokens are routed to
/// it; if that makes it cold, its inputs are those of all. Returns what the layer goes on with.
using PartsMaker = std::function<const LinearParts&(const LinearParts& from, LinearParts& to,
                                                    FunctionRef<void(LayerPass::Take)> inputs,
                                                    std::optional<int64_t> n_routed)>;

/// Of an expert to which too few tokens are routed.
bool is_cold(std::optional<int64_t> n_routed, const ModelConfig& config);

/// Moves `pass` behind the layer that it stands before, through the matrices as `make` makes them
/// of `layer`'s: q, k and v; o; gate and up; down; those of experts one by one. Routers and the
/// gate of a shared expert stay what they are. Returns the layer that was made.
LayerSources walk_layer(const LayerSources& layer, const ModelConfig& config, Backend& backend,
                        LayerPass& pass, const PartsMaker& make);

/// What is to be said of the inputs that a matrix was made with.
void tell_inputs(const Hessian& hessian, const GptqFactor& factor, bool is_cold,
                 QuantisedModule& module);

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
