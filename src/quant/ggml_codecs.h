// One decoder and, where there is one, one encoder per GGML block type; decode_row and encode_row
// dispatch to them.
//
// Level 2 (quant), private to this folder. `out` and `x` hold one block's elements.
#pragma once

#include "quant/ggml_blocks_layout.h"
#include "quant/scale_search.h"

namespace qw::ggml {

void decode(const BlockQ4_0& block, float* out) noexcept;
void decode(const BlockQ4_1& block, float* out) noexcept;
void decode(const BlockQ5_0& block, float* out) noexcept;
void decode(const BlockQ5_1& block, float* out) noexcept;
void decode(const BlockQ8_0& block, float* out) noexcept;
void decode(const BlockQ8_1& block, float* out) noexcept;
void decode(const BlockQ2_K& block, float* out) noexcept;
void decode(const BlockQ3_K& block, float* out) noexcept;
void decode(const BlockQ4_K& block, float* out) noexcept;
void decode(const BlockQ5_K& block, float* out) noexcept;
void decode(const BlockQ6_K& block, float* out) noexcept;
void decode(const BlockQ8_K& block, float* out) noexcept;
void decode(const BlockIQ1_S& block, float* out) noexcept;
void decode(const BlockIQ1_M& block, float* out) noexcept;
void decode(const BlockIQ2_XXS& block, float* out) noexcept;
void decode(const BlockIQ2_XS& block, float* out) noexcept;
void decode(const BlockIQ2_S& block, float* out) noexcept;
void decode(const BlockIQ3_XXS& block, float* out) noexcept;
void decode(const BlockIQ3_S& block, float* out) noexcept;
void decode(const BlockIQ4_NL& block, float* out) noexcept;
void decode(const BlockIQ4_XS& block, float* out) noexcept;
void decode(const BlockTQ1_0& block, float* out) noexcept;
void decode(const BlockTQ2_0& block, float* out) noexcept;
void decode(const BlockMXFP4& block, float* out) noexcept;
void decode(const BlockNVFP4& block, float* out) noexcept;
void decode(const BlockQ1_0& block, float* out) noexcept;
void decode(const BlockQ2_0& block, float* out) noexcept;

// Inputs are finite. Every encoder sets the whole block.
void encode(const float* x, BlockQ8_1& block) noexcept;
void encode(const float* x, BlockQ8_K& block) noexcept;
void encode(const float* x, BlockIQ1_S& block) noexcept;
void encode(const float* x, BlockIQ1_M& block) noexcept;
void encode(const float* x, BlockIQ2_XXS& block) noexcept;
void encode(const float* x, BlockIQ2_XS& block) noexcept;
void encode(const float* x, BlockIQ2_S& block) noexcept;
void encode(const float* x, BlockIQ3_XXS& block) noexcept;
void encode(const float* x, BlockIQ3_S& block) noexcept;
void encode(const float* x, BlockIQ4_NL& block) noexcept;
void encode(const float* x, BlockIQ4_XS& block) noexcept;
void encode(const float* x, BlockTQ1_0& block) noexcept;
void encode(const float* x, BlockTQ2_0& block) noexcept;
void encode(const float* x, BlockMXFP4& block) noexcept;
void encode(const float* x, BlockNVFP4& block) noexcept;
void encode(const float* x, BlockQ1_0& block) noexcept;
void encode(const float* x, BlockQ2_0& block) noexcept;

// The same with the importance of each element.
void encode(const float* x, const Importance& importance, BlockIQ1_S& block) noexcept;
void encode(const float* x, const Importance& importance, BlockIQ1_M& block) noexcept;
void encode(const float* x, const Importance& importance, BlockIQ2_XXS& block) noexcept;
void encode(const float* x, const Importance& importance, BlockIQ2_XS& block) noexcept;
void encode(const float* x, const Importance& importance, BlockIQ2_S& block) noexcept;
void encode(const float* x, const Importance& importance, BlockIQ3_XXS& block) noexcept;
void encode(const float* x, const Importance& importance, BlockIQ3_S& block) noexcept;
void encode(const float* x, const Importance& importance, BlockIQ4_NL& block) noexcept;
void encode(const float* x, const Importance& importance, BlockIQ4_XS& block) noexcept;

/// Blocks next to each other, as many as fill the lanes of a search: 1 of Q2_K, Q3_K and Q6_K, up
/// to 2 of Q4_K and Q5_K, up to 16 of the types of 32 elements.
struct BlockRun {
  const float* x = nullptr;
  const Importance* importance = nullptr;  // null: none
  size_t n_blocks = 0;
  const ScaleSearchOps& ops;
};

void encode(const BlockRun& run, BlockQ2_K* block) noexcept;
void encode(const BlockRun& run, BlockQ3_K* block) noexcept;
void encode(const BlockRun& run, BlockQ4_K* blocks) noexcept;
void encode(const BlockRun& run, BlockQ5_K* blocks) noexcept;
void encode(const BlockRun& run, BlockQ6_K* block) noexcept;
// Searched with importances, rounded to nearest without.
void encode(const BlockRun& run, BlockQ4_0* blocks) noexcept;
void encode(const BlockRun& run, BlockQ4_1* blocks) noexcept;
void encode(const BlockRun& run, BlockQ5_0* blocks) noexcept;
void encode(const BlockRun& run, BlockQ5_1* blocks) noexcept;
void encode(const BlockRun& run, BlockQ8_0* blocks) noexcept;  // always rounded to nearest

}  // namespace qw::ggml
