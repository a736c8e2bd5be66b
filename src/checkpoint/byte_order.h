// From big-endian tensor bytes to little-endian ones, plain and block-quantised.
//
// Level 3 (checkpoint). A block is a C struct: each multi-byte field is turned round, byte arrays
// stay. Source of the field positions: the block structs of ggml-common.h.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "tensor/dtype.h"

namespace qw {

/// Turns every multi-byte field of the elements or blocks in `bytes` (whole ones) round, in place.
/// Errors: unsupported for IQ2_XXS and IQ3_XXS, whose fields ggml itself reads now as bytes, now
/// as 32-bit words, so that their big-endian form is not defined; `what` names the tensor.
void swap_byte_order(DType dtype, std::span<std::byte> bytes, std::string_view what);

}  // namespace qw
