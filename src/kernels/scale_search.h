// The searches of quant/scale_search_ops.h, sixteen groups at a time.
//
// Level 3 (kernels).
#pragma once

#include "kernels/isa.h"
#include "quant/scale_search_ops.h"

namespace qw::kernels {

/// The best that `isa` allows. Which one it is changes no bit.
const ScaleSearchOps& scale_search_ops(const Isa& isa) noexcept;

}  // namespace qw::kernels
