// AWQ of one layer of a network: inputs are divided and their weights multiplied, so that inputs
// that matter are rounded less, and the divisors go into what comes before: a norm, or the rows of
// v and up.
//
// Level 6 (quantize). Source: Lin et al. 2023, "AWQ"; AutoAWQ 0.2.7, quantizer.py and scale.py.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/network.h"
#include "quantize/awq_search.h"
#include "quantize/layer_pass.h"
#include "quantize/quantised_layer.h"

namespace qw::quantize {

/// What the search of kReference found, for tests.
struct AwqTrace {
  struct Pair {
    std::vector<float> x_sizes, w_sizes, scales;
    std::vector<double> losses;  // by ratio
    double ratio = 0;
  };
  std::map<std::string, Pair> pairs;               // by what comes before: "input_layernorm", ...
  std::map<std::string, std::vector<float>> clip;  // by module: "mlp.up_proj"
};

struct AwqLayerOptions {
  AwqOptions awq;
  /// Told of the published bytes of each matrix when it is done; may be empty.
  std::function<void(int64_t)> on_done;
  AwqTrace* trace = nullptr;
};

/// Quantises the layer that `pass` stands before, and moves it behind that layer: as quantised
/// (kBetter) or as published (kReference, as AutoAWQ does). The tensors are the seven matrices (or
/// those of the experts), and what the divisors and the rounding to f16 change: norms, biases,
/// router, the gate of a shared expert. Errors: those of LayerPass, Hessian, GptqFactor and
/// gptq_quantise; unsupported, for a mixture of experts in kReference; invalid_argument, for values
/// that f16 cannot hold.
QuantisedLayer awq_layer(const LayerSources& layer, const ModelConfig& config,
                         const AwqLayerOptions& options, Backend& backend, const MatrixTeam& team,
                         LayerPass& pass);

}  // namespace qw::quantize
