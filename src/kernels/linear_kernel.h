// Plain data that linear kernels and their callers exchange: layouts, activations, arguments.
//
// Level 3 (kernels). Included by files compiled for one instruction set, hence no std templates and
// no inline functions. Weights are stored in panels of 16 output rows: one lane of a vector of 16
// int32 or f32 per row. y[M, N] = x[M, K] * W[N, K]^T.
#pragma once

#include <stdint.h>

namespace qw::kernels {

inline constexpr int kLanes = 16;       // output rows of a panel
inline constexpr int kBlock = 32;       // columns that share an activation scale
inline constexpr int kChunkBlocks = 8;  // blocks that are expanded at a time: 256 columns
inline constexpr int kChunk = kBlock * kChunkBlocks;
/// Ahead of the panel that a gemv reads. Into L2, as everything that is read once: L1 waits for
/// fewer lines at a time, and held a Zen 4 core to four fifths of what memory gave it (November
/// 2026).
inline constexpr int kPrefetchBytes = 2048;
inline constexpr int kMaxTilePanels = 4;  // panels that a tile takes
inline constexpr int kTileRows = 6;       // rows of x that a tile multiplies at a time

/// How the codes of a matrix are arranged in memory. docs: kernels/cpu/linear_layouts.h.
enum class LinearLayout : uint8_t {
  kRows,  // the published rows, decoded a tile at a time: any format
  kF32,
  kF16,
  kBf16,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kQ8_K,
  kIq1S,
  kIq1M,
  kIq2Xxs,
  kIq2Xs,  // IQ2_XS, IQ2_S
  kIq3Xxs,
  kIq3S,
  kIq4Nl,
  kIq4Xs,
  kTernary,  // TQ1_0, TQ2_0
  kMxfp4,
  kNvfp4,
  kQ1_0,
  kQ2_0,
  kGroup2,
  kGroup3,
  kGroup4,
  kGroup8,        // GPTQ, AWQ: scale and integer zero per group
  kGroup4Offset,  // AWQ GEMV_FAST: scale and offset per group
};
inline constexpr int kLinearLayouts = static_cast<int>(LinearLayout::kGroup4Offset) + 1;

/// How a kernel wants its activations.
enum class ActivationForm : uint8_t {
  kF32,   // as they are
  kBf16,  // rounded to bf16, two to a word
  kInt8,  // ActBlock
};

/// 32 activations rounded to 8 bits: x[i] = scale * code(i), scale = max|x| / 127, code rounded to
/// nearest even. A block below 2^-100 is zero; one with a value that is not finite has the scale
/// NaN and the codes 0. A gemv reads signed codes, row by row; a tile reads code + 128, unsigned
/// (signed codes on ARM, which multiplies signed bytes), in groups of kTileRows rows that are
/// interleaved block by block: block b of row r is element
/// ((r / 6) * n_blocks + b) * 6 + r % 6, so that a tile reads one stream.
struct alignas(64) ActBlock {
  uint8_t codes[kBlock];
  float scale;
  float scaled_sum[2];  // scale * sum of the codes of each half
  float scaled_total;   // scale * sum of all codes
  int32_t sum[2];       // of the codes of each half
  int32_t total;
  int32_t unused;
};

/// A matrix of `n_panels` panels in one layout.
struct PanelMatrix {
  const uint8_t* data;  // panel p at data + p * panel_bytes, aligned to 64 bytes
  int64_t panel_bytes;
  int64_t n_panels;
  int64_t k;            // columns
  int64_t n_blocks;     // ceil(k / 32)
  int64_t unit_blocks;  // blocks of one unit: header and codes that belong together
  int64_t unit_bytes;
};

/// Activations of `m` rows; `rows` points to floats (kF32), bf16 pairs (kBf16) or ActBlocks
/// (kInt8).
struct ActRows {
  const void* rows;
  int64_t stride;  // elements between rows: floats, pairs, or ActBlocks
  int64_t m;
};

/// out[r * out_stride + 16 p + lane] = W[panel first + p] . x[r] for p in [0, n_panels). Any m, but
/// made for few: some rows at a time, each time over all n_panels.
struct GemvArgs {
  PanelMatrix w;
  int64_t first_panel, n_panels;
  ActRows x;
  float* out;
  int64_t out_stride;
};

/// What a tile multiplies: up to four panels, one chunk of columns, widened.
///   kF32:  values, f32 [columns][panels][16]
///   kBf16: values, bf16 [columns / 2][panels][16][2]
///   kInt8: values, s8 [blocks][8][panels][16][4] (four columns to a lane), or where wide ones are
///          multiplied as words s16 [blocks][8][panels][2][16][2] (even columns, odd columns);
///          scales and minimums, f32 [blocks][panels][halves][16]; start, i32, likewise:
///          minus what is added to codes of x times the sum of the values
/// Panels past the matrix are zero.
struct ExpandedChunk {
  alignas(64) uint8_t values[kChunk * kMaxTilePanels * kLanes * 4];
  alignas(64) float scales[kChunkBlocks * kMaxTilePanels * 2 * kLanes];
  alignas(64) float minimums[kChunkBlocks * kMaxTilePanels * 2 * kLanes];
  alignas(64) int32_t start[kChunkBlocks * kMaxTilePanels * 2 * kLanes];
};

struct ExpandArgs {
  PanelMatrix w;
  int64_t first_panel, n_panels;
  int64_t first_block, n_blocks;  // n_blocks <= kChunkBlocks
  int64_t slot;  // panel of the chunk that the first one becomes; slot + n_panels <= tile_panels.
                 // Those behind the last become zero
  ExpandedChunk* out;
};

/// sums[r * 16 * tile_panels + 16 p + lane] += chunk . x[r]; of the first chunk: = chunk . x[r]
struct TileArgs {
  const ExpandedChunk* w;
  bool first;
  int64_t first_column,
      n_columns;  // of the chunk; kInt8 and kBf16: n_columns rounded up to whole blocks
  ActRows x;      // rows start at column 0; kInt8: stride is 6 * n_blocks, of groups
  float* sums;
};

/// Decodes columns [first_block, ...) of one panel: out[c * 16 + lane] = W[16 panel + lane, column
/// c], bit-equal to the codec's reference.
struct DecodeArgs {
  PanelMatrix w;
  int64_t panel, first_block, n_blocks;
  float* out;
};

/// Rounds one row of k floats to n_blocks = ceil(k / 32) ActBlocks, for a gemv or for a tile.
struct QuantizeArgs {
  const float* x;
  int64_t k;
  bool for_tile;
  ActBlock* out;
  int64_t block_stride;  // elements between blocks of the row
};

/// y[r * ldy + i] = sums[r * stride + i] + bias[i], or += that; for n outputs of some rows.
struct StoreArgs {
  const float* sums;  // these three begin with the first of the outputs
  int64_t stride, rows, n;
  const float* bias;  // null: zero
  bool accumulate;
  float* y;
  int64_t ldy;
};

using GemvFn = void (*)(const GemvArgs&) noexcept;
using ExpandFn = void (*)(const ExpandArgs&) noexcept;
using TileFn = void (*)(const TileArgs&) noexcept;
using DecodeFn = void (*)(const DecodeArgs&) noexcept;
using QuantizeFn = void (*)(const QuantizeArgs&) noexcept;
using StoreFn = void (*)(const StoreArgs&) noexcept;

}  // namespace qw::kernels
