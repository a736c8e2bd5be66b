// Published blocks and groups of codes into one lane of a panel.
//
// Level 3 (kernels), private to packing. The planes are those of kernels/cpu/linear_layouts.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/linear_kernel.h"
#include "quant/ggml_blocks_layout.h"
#include "tensor/dtype.h"

namespace qw::kernels {

inline bool is_finite(F16Bits bits) noexcept {
  return (bits & 0x7C00) != 0x7C00;
}

/// Entry `lane` of an f16 header of a unit.
inline void put_f16(uint8_t* header, int lane, F16Bits bits) noexcept {
  std::memcpy(header + 2 * lane, &bits, 2);
}

/// Writes 32 codes of `bits` bits into lane `lane` of the block whose planes start at `block`.
/// bits: 2, 3, 4, 5, 6 or 8. The lane must have been zero.
void put_codes(int bits, const uint8_t* codes, int lane, uint8_t* block) noexcept;

/// Packs a row of `n_blocks` published blocks, `per_unit` of them to a unit of `unit_bytes`, into
/// lane `lane` of a panel. False: a scale is not finite.
using PackRow = bool (*)(const std::byte* row, int64_t n_blocks, int64_t per_unit, int lane,
                         int64_t unit_bytes, uint8_t* panel) noexcept;

/// How a type of blocks is packed.
struct BlockPacking {
  LinearLayout layout;
  PackRow pack_row;
};
BlockPacking block_packing_of(DType dtype);

}  // namespace qw::kernels
