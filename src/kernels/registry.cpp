#include "kernels/registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "kernels/isa_kernels.h"

namespace qw::kernels {

namespace {

constexpr std::array<std::string_view, kLinearLayouts> kLayoutNames = {
    "rows",      "f32_16",     "f16_16",          "bf16_16",   "q4_0_16",   "q4_1_16",
    "q5_0_16",   "q5_1_16",    "q8_0_16",         "q2_k_16",   "q3_k_16",   "q4_k_16",
    "q5_k_16",   "q6_k_16",    "q8_k_16",         "iq1_s_16",  "iq1_m_16",  "iq2_xxs_16",
    "iq2_xs_16", "iq3_xxs_16", "iq3_s_16",        "iq4_nl_16", "iq4_xs_16", "ternary_16",
    "mxfp4_16",  "nvfp4_16",   "q1_0_16",         "q2_0_16",   "group2_16", "group3_16",
    "group4_16", "group8_16",  "group4_offset_16"};

}  // namespace

std::string_view name_of(LinearLayout layout) noexcept {
  return kLayoutNames[static_cast<size_t>(layout)];
}

std::string_view name_of(ActivationForm form) noexcept {
  switch (form) {
    case ActivationForm::kF32:
      return "f32";
    case ActivationForm::kBf16:
      return "bf16";
    case ActivationForm::kInt8:
      return "int8";
  }
  return "?";
}

std::string name_of(const LinearKernel& kernel) {
  return fmt::format("{}/{} ({})", name_of(kernel.layout), name_of(kernel.level),
                     name_of(kernel.form));
}

std::vector<const LinearKernel*> linear_kernels(const Isa& isa) {
  std::vector<const LinearKernel*> out;
  for (const IsaKernels* row : isa_kernels(isa)) {
    for (const auto& kernels : {row->linear_int8, row->linear_float}) {
      if (kernels == nullptr) continue;
      const LinearKernelTable table = kernels();
      for (int i = 0; i < table.count; ++i)
        out.push_back(table.rows + i);
    }
  }
  std::stable_sort(out.begin(), out.end(),
                   [](const LinearKernel* a, const LinearKernel* b) { return a->rank > b->rank; });
  return out;
}

const LinearKernel* find_linear_kernel(const Isa& isa, LinearLayout layout, ActivationForm form) {
  for (const LinearKernel* kernel : linear_kernels(isa)) {
    if (kernel->layout == layout && kernel->form == form) return kernel;
  }
  return nullptr;
}

}  // namespace qw::kernels
