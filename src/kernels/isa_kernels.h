// The kernels of every instruction set of this build, one row each.
//
// Level 3 (kernels). The other tables (registry.h, elementwise.h, ...) choose from these rows.
#pragma once

#include <vector>

#include "kernels/isa.h"
#include "kernels/isa_exports.h"

namespace qw::kernels {

/// The rows that `isa` allows, from generic to the best.
std::vector<const IsaKernels*> isa_kernels(const Isa& isa);

}  // namespace qw::kernels
