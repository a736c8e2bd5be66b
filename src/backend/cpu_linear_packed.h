// A packed weight: parts stacked along n, each in its own layout with its own kernel.
//
// Level 4 (backend), private to the linear layers of the CPU backend.
#pragma once

#include <memory>
#include <vector>

#include "backend/cpu_linear.h"
#include "backend/cpu_linear_memory.h"
#include "base/mapped_file.h"
#include "kernels/linear_pack.h"
#include "kernels/registry.h"

namespace qw {

struct PackedPart {
  LinearSource source;  // kRows: the published bytes; otherwise only its name and sizes are kept
  int64_t n = 0, first_row = 0;
  kernels::PanelMatrix matrix{};
  std::shared_ptr<const uint8_t> bytes;      // the panels
  std::shared_ptr<const MappedFile> stored;  // instead of bytes (PackedStore)
  const kernels::LinearKernel* kernel = nullptr;
  std::shared_ptr<const std::vector<int32_t>>
      columns;  // null: as published; parts share equal ones
  bool round_to_bf16 =
      false;  // f32 kernel, activations rounded to bf16 first (ActivationMode::kBf16)
};

class PackedLinear final : public CpuLinear {
 public:
  void decode_rows(int64_t row, int64_t n_rows, float* out) const override;
  std::vector<PackedPart> parts;
};

/// out[r * n_columns + c] = W[row + r, column + c] of a dense or block source; column and n_columns
/// are whole blocks.
void decode_columns(const LinearSource& source, int64_t row, int64_t n_rows, int64_t column,
                    int64_t n_columns, float* out);

}  // namespace qw
