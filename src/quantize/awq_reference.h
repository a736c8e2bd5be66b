// AWQ of one layer as AutoAWQ does it: what tests compare with, and what kBetter has to beat.
//
// Level 6 (quantize), private to awq_layer.cpp. Source: AutoAWQ 0.2.7, quantizer.py.
#pragma once

#include "quantize/awq_layer.h"

namespace qw::quantize {

/// All pairs are searched with the weights and inputs as published: q, k and v by the output of the
/// attention with q alone rounded, o and down by their own (from second moments), gate and up by
/// that of the block; o only where v has as many rows as o has inputs. Then the divisors are
/// applied, weights clipped but for q and k, and rounded in f16. Moves `pass` behind the layer as
/// published.
///
/// Q alone, because AutoAWQ hands the attention the cache that the first run of the layer filled:
/// every trial appends its keys and values behind those, and sees none of them (its mask begins at
/// the first key). Its published losses are these to 1e-6.
/// Errors: as awq_layer.
QuantisedLayer awq_reference_layer(const LayerSources& layer, const AwqLayerOptions& options,
                                   Backend& backend, const MatrixTeam& team, LayerPass& pass);

}  // namespace qw::quantize
