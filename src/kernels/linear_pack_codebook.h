// Packing of the types whose codes are points of grids (IQ1 to IQ3) or digits (TQ1_0).
//
// Level 3 (kernels), private to packing.
#pragma once

#include <optional>

#include "kernels/linear_pack_blocks.h"

namespace qw::kernels {

/// How a type of blocks is packed; nothing for one of another kind.
std::optional<BlockPacking> codebook_packing_of(DType dtype);

}  // namespace qw::kernels
