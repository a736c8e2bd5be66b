// The other direction of quantised_modules.h: codes of a module as its checkpoint has them.
//
// Level 3 (checkpoint).
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "checkpoint/quantised_modules.h"

namespace qw {

/// The bytes of the tensor of codes (the first of quantised_module_tensors) of `matrix`, which is a
/// module of this configuration with other codes (with_codes, quant/code_grid.h). Errors:
/// unsupported, as publish_gptq_codes and publish_awq_codes.
std::vector<std::byte> publish_module_codes(const QuantizationConfig& config,
                                            const std::string& module, const LinearSource& matrix);

}  // namespace qw
