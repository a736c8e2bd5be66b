// The linear kernels of this build: one row per (layout, form of the activations, instruction set).
//
// Level 3 (kernels). The second seam: whoever packs a weight chooses a row once and keeps it. A new
// instruction set is a folder under cpu/ and a row of isa_kernels.cpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/isa.h"
#include "kernels/linear_kernel.h"
#include "kernels/linear_table.h"

namespace qw::kernels {

std::string_view name_of(LinearLayout layout) noexcept;  // "q4_k_16"
std::string_view name_of(ActivationForm form) noexcept;  // "int8"
std::string name_of(const LinearKernel& kernel);         // "q4_k_16/avx512vnni (int8)"

/// Every row that `isa` allows, best first for equal (layout, form).
std::vector<const LinearKernel*> linear_kernels(const Isa& isa);

/// The best allowed row for a layout and form; null: none.
const LinearKernel* find_linear_kernel(const Isa& isa, LinearLayout layout, ActivationForm form);

}  // namespace qw::kernels
