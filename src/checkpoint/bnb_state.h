// The JSON that bitsandbytes keeps in a tensor of bytes beside each 4-bit matrix: what its tensors
// mean.
//
// Level 3 (checkpoint). Source: bitsandbytes 0.50.2, QuantState.as_dict(packed=True).
#pragma once

#include <string>

#include "quant/bitsandbytes.h"
#include "tensor/raw_tensor.h"

namespace qw {

/// Reads `X.weight.quant_state.bitsandbytes__nf4`. Errors: corrupt (not u8, no JSON, a member that
/// is missing or of another type), unsupported (quant_type, dtype), naming the tensor.
Bnb4State read_bnb4_state(const RawTensor& tensor);

/// The bytes of such a tensor, as Python's json.dumps writes them.
std::string bnb4_state_json(const Bnb4State& state);

}  // namespace qw
