// Published blocks and groups of codes into one lane of a panel.
//
// Level 3 (kernels), private to packing. The planes are those of kernels/cpu/linear_layouts.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/linear_kernel.h"
#include "kernels/linear_pack_words.h"
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

/// Writes 32 codes below 2^kBits of one row into lane `lane` of the block whose planes start at
/// `block`.
template <int kBits>
inline void put_codes(const uint8_t* codes, int lane, uint8_t* block) noexcept {
  uint32_t groups[8], planes[kBits];
  std::memcpy(groups, codes, sizeof groups);
  make_planes<kBits>(groups, planes);
  for (int v = 0; v < kBits; ++v)
    std::memcpy(block + 64 * v + 4 * lane, &planes[v], 4);
}

/// Published rows of blocks that become the lanes of one panel.
struct BlockPanel {
  const std::byte* rows;  // the first row
  int64_t row_bytes;      // from one row to the next
  int n_lanes;            // rows, at most kLanes
  int64_t n_blocks;       // published blocks in a row
  int64_t blocks_per_unit, unit_bytes;
};

/// Writes a whole panel; the scales of lanes without a row are those of zero bytes. False: a scale
/// is not finite.
using PackPanel = bool (*)(const BlockPanel& in, uint8_t* panel) noexcept;

/// Calls put(rows, part, unit) for every block of 16 rows, in order: `part` counts published blocks
/// in a unit. What is being written (a unit takes 0.5 to 5 KiB) stays in the first cache.
template <class Block, class Put>
inline bool pack_units(const BlockPanel& in, uint8_t* panel, Put put) noexcept {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(Block));
  constexpr int64_t kAhead = 512;  // bytes: so many streams are more than hardware follows
  bool finite = true;
  for (int64_t i = 0; i < in.n_blocks; ++i) {
    uint8_t* unit = panel + i / in.blocks_per_unit * in.unit_bytes;
    const int64_t part = i % in.blocks_per_unit;
    if (part == 0) std::memset(unit, 0, static_cast<size_t>(in.unit_bytes));
    const Rows rows{in.rows + i * kBytes, in.row_bytes};
    if (in.n_lanes == kLanes) {
      for (int lane = 0; lane < kLanes; ++lane)
        __builtin_prefetch(rows[lane] + kAhead);
      finite &= put(rows, part, unit);
    } else {
      std::byte whole[kLanes * kBytes] = {};
      for (int lane = 0; lane < in.n_lanes; ++lane)
        std::memcpy(whole + lane * kBytes, rows[lane], static_cast<size_t>(kBytes));
      finite &= put(Rows{whole, kBytes}, part, unit);
    }
  }
  return finite;
}

/// How a type of blocks is packed.
struct BlockPacking {
  LinearLayout layout;
  PackPanel pack_panel;
};
BlockPacking block_packing_of(DType dtype);

}  // namespace qw::kernels
