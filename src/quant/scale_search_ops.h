// Searches for the scales of many small groups of values at a time, one group in each lane.
//
// Level 2 (quant). Plain data only: included by files compiled for one instruction set
// (kernels/scale_search.h). Every table gives the same bits: the operations and their order within
// a group are those of scale_search.h, one rounding each, and groups do not meet. What each table
// does is written once, in kernels/cpu/scale_search_body.h, and without lanes, in scale_search.cpp.
#pragma once

#include <stdint.h>

namespace qw {

/// Groups that are searched together; a multiple of the lanes of every instruction set.
inline constexpr int kSearchGroups = 16;

/// Values of a group at most.
inline constexpr int kSearchValues = 32;

/// Step sizes that are tried for x ~ scale * code - min: the range over (max_code + first + step *
/// i).
struct AffineSearch {
  int max_code;
  float first, step;
  int n_steps;
  bool absolute_error;  // weigh |error| instead of its square
};

/// Value i of group g is at [i * kSearchGroups + g]. Inputs are finite, weights >= 0.
struct SearchGroups {
  int n_values = 0;
  const float* x = nullptr;
  const float* weights = nullptr;
  float* codes = nullptr;  // whole numbers
  float* scale = nullptr;  // [kSearchGroups]
  float* min = nullptr;    // [kSearchGroups], of affine searches: x ~ scale * code - min
};

/// A scale and an offset for each group, [kSearchGroups] each.
struct GroupGrid {
  const float* scale = nullptr;
  const float* offset = nullptr;
  int lowest = 0, highest = 0;
};

/// Values of a block that is rounded to nearest.
inline constexpr int kNearestBlock = 32;

/// Blocks next to each other, each with the scale that its extreme values give: no search. Inputs
/// are finite.
struct NearestBlocks {
  int64_t n_blocks = 0;
  const float* x = nullptr;  // [n_blocks, kNearestBlock]
  float* scale = nullptr;    // [n_blocks]
  float* min = nullptr;      // [n_blocks], of nearest_affine
  uint8_t* codes = nullptr;  // [n_blocks, kNearestBlock]
};

struct ScaleSearchOps {
  const char* name = nullptr;
  /// search_affine of every group.
  void (*affine)(const SearchGroups& groups, const AffineSearch& search) = nullptr;
  /// search_symmetric of every group.
  void (*symmetric)(const SearchGroups& groups, int max_code) = nullptr;
  /// search_by_descent of every group: codes in [-4, 3], weights are the values' squares.
  void (*descent)(const SearchGroups& groups) = nullptr;
  /// codes = clamp(round((x + offset) / scale), lowest, highest), ties to even; where the scale is
  /// 0 they stay as they are.
  void (*round)(const SearchGroups& groups, const GroupGrid& grid) = nullptr;
  /// scale = m / -half, with m the first value of largest magnitude; code = min(floor(x / scale +
  /// half + 1/2), 2 half - 1). Codes are 0 where 1 / scale overflows, of all three.
  void (*nearest_symmetric)(const NearestBlocks& blocks, int half) = nullptr;
  /// min = the least value, scale = (most - least) / max_code; code = floor((x - min) / scale +
  /// 1/2).
  void (*nearest_affine)(const NearestBlocks& blocks, int max_code) = nullptr;
  /// scale = largest magnitude / 127; code = round(x / scale), ties away from 0, in two's
  /// complement.
  void (*nearest_magnitude)(const NearestBlocks& blocks) = nullptr;
};

/// Without lanes: the reference.
const ScaleSearchOps& scalar_search_ops() noexcept;

}  // namespace qw
