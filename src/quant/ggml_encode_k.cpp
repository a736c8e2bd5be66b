// Encoders of the k-quants.
//
// Level 2 (quant). Each sub-block's scale (and minimum) is searched (scale_search.h), sixteen
// sub-blocks at a time, then the scales' own scale; the values are rounded again with the scales as
// stored. Weights without importances are those of the published quantisers; with importances they
// are importance * sqrt(mean square + x^2).
#include <algorithm>
#include <cmath>
#include <span>

#include "base/half.h"
#include "quant/encode_util.h"
#include "quant/ggml_codecs.h"
#include "quant/search_lanes.h"

namespace qw::ggml {

namespace {

constexpr size_t kBlock = 256;

/// Element 128h + 32p + i goes to bits 2p.. of byte 32h + i.
void put_two_bits(size_t element, int two, std::array<uint8_t, 64>& qs) noexcept {
  qs[element / 128 * 32 + element % 32] |= static_cast<uint8_t>(two << (2 * (element % 128 / 32)));
}

/// Scales or minima of a block as codes in [0, max_code], and what the codes are multiples of.
template <size_t kSize>
struct Levels {
  std::array<int8_t, kSize> codes;
  float unit = 0.0F;
};

/// `weights` null: the largest value has the largest code.
template <size_t kSize>
Levels<kSize> quantise_levels(std::span<const float, kSize> values, const float* weights,
                              int max_code) noexcept {
  Levels<kSize> out;
  if (weights != nullptr) {
    out.unit = search_positive(values, {weights, kSize}, max_code, out.codes);
    return out;
  }
  const float max = std::max(0.0F, *std::ranges::max_element(values));
  const float inverse = max > 0.0F ? static_cast<float>(max_code) / max : 0.0F;
  for (size_t s = 0; s < kSize; ++s)
    out.codes[s] = static_cast<int8_t>(std::clamp(round_even(inverse * values[s]), 0, max_code));
  out.unit = max / static_cast<float>(max_code);
  return out;
}

/// Scales and minima of a block, each as codes and what these are multiples of.
template <size_t kSize>
struct AffineLevels {
  Levels<kSize> d, m;
};

/// The levels of the block whose first sub-block is number `first`; its sub-blocks' grid is set to
/// what is stored.
template <size_t kSize, class Lanes>
AffineLevels<kSize> quantise_affine_levels(Lanes& lanes, size_t first, const float* weights,
                                           int max_code) noexcept {
  const auto of = [&](const auto& values) {
    return quantise_levels(std::span<const float, kSize>(values.data() + first, kSize), weights,
                           max_code);
  };
  const AffineLevels<kSize> out = {of(lanes.scale), of(lanes.min)};
  const float d = f16_to_f32(f32_to_f16(out.d.unit)), m = f16_to_f32(f32_to_f16(out.m.unit));
  for (size_t s = 0; s < kSize; ++s) {
    lanes.grid_scale[first + s] = d * static_cast<float>(out.d.codes[s]);
    lanes.grid_offset[first + s] = m * static_cast<float>(out.m.codes[s]);
  }
  return out;
}

/// The part that Q4_K and Q5_K share: searches the eight sub-blocks of each block, stores their
/// scales in six bits, then rounds the values again with the scales as stored.
template <typename Block>
std::array<uint8_t, 2 * kBlock> encode_k4_scales(const BlockRun& run, const AffineSearch& plain,
                                                 Block* blocks) noexcept {
  SearchLanes<32> lanes;
  lanes.load(run.x, 8 * run.n_blocks);
  const AffineSearch search =
      run.importance != nullptr ? search_with_importance(plain.max_code) : plain;
  if (run.importance != nullptr) {
    std::array<float, 2> mean_squares{};
    for (size_t b = 0; b < run.n_blocks; ++b)
      mean_squares[b] = 2.0F * sum_of_squares({run.x + kBlock * b, kBlock}) / 256.0F;
    lanes.weigh(run.importance, 8 * run.n_blocks, [&](size_t s) { return mean_squares[s / 8]; });
  } else {
    lanes.weigh_by_rms();
  }
  run.ops.affine(lanes.groups(), search);
  const std::array<float, kSearchGroups> weight = lanes.weight_sums();
  for (size_t b = 0; b < run.n_blocks; ++b) {
    const float* levels_weight = run.importance != nullptr ? weight.data() + 8 * b : nullptr;
    const auto [d, m] = quantise_affine_levels<8>(lanes, 8 * b, levels_weight, 63);
    K4Scales scales;
    std::ranges::copy(d.codes, scales.scale.begin());
    std::ranges::copy(m.codes, scales.min.begin());
    blocks[b].scales = pack_k4_scales(scales);
    blocks[b].d = f32_to_f16(d.unit);
    blocks[b].dmin = f32_to_f16(m.unit);
  }
  run.ops.round(lanes.groups(), lanes.grid(0, search.max_code));
  return lanes.codes_from(0);
}

template <typename Block>
void put_low_nibbles(const uint8_t* codes, Block& block) noexcept {
  for (size_t i = 0; i < 128; ++i) {
    const size_t low = i / 32 * 64 + i % 32;
    block.qs[i] = static_cast<uint8_t>((codes[low] & 15) | (codes[low + 32] & 15) << 4);
  }
}

/// Scales of the sub-blocks as codes in [-32, 32), and the block's scale.
struct Q3Scales {
  std::array<int8_t, 16> codes;
  float unit = 0.0F;
};

Q3Scales q3_scales(const std::array<float, 16>& found) noexcept {
  Q3Scales out;
  out.codes.fill(-32);
  const float max_scale = extreme(found);
  if (max_scale == 0.0F) return out;
  const float inverse = -32.0F / max_scale;
  for (size_t s = 0; s < 16; ++s)
    out.codes[s] = static_cast<int8_t>(std::clamp(round_even(inverse * found[s]), -32, 31));
  out.unit = 1.0F / inverse;
  return out;
}

}  // namespace

void encode(const BlockRun& run, BlockQ2_K* block) noexcept {
  constexpr AffineSearch kPlain = {
      .max_code = 3, .first = -0.5F, .step = 0.1F, .n_steps = 15, .absolute_error = true};
  SearchLanes<16> lanes;
  lanes.load(run.x, 16);
  if (run.importance != nullptr) {
    const float mean_square = sum_of_squares({run.x, kBlock}) / 256.0F;
    lanes.weigh(run.importance, 16, [&](size_t) { return mean_square; });
  } else {
    lanes.weigh_by([](float x) { return std::fabs(x); });
  }
  run.ops.affine(lanes.groups(), run.importance != nullptr ? search_with_importance(3) : kPlain);
  const std::array<float, 16> weight = lanes.weight_sums();
  const float* levels_weight = run.importance != nullptr ? weight.data() : nullptr;
  const auto [d, m] = quantise_affine_levels<16>(lanes, 0, levels_weight, 15);
  block->d = f32_to_f16(d.unit);
  block->dmin = f32_to_f16(m.unit);
  for (size_t s = 0; s < 16; ++s)
    block->scales[s] = static_cast<uint8_t>(d.codes[s] | m.codes[s] << 4);
  run.ops.round(lanes.groups(), lanes.grid(0, 3));
  const auto codes = lanes.codes_from(0);
  block->qs = {};
  for (size_t i = 0; i < kBlock; ++i)
    put_two_bits(i, codes[i], block->qs);
}

void encode(const BlockRun& run, BlockQ3_K* block) noexcept {
  SearchLanes<16> lanes;
  lanes.load(run.x, 16);
  Q3Scales scales;
  if (run.importance != nullptr) {
    const float mean_square = 2.0F * sum_of_squares({run.x, kBlock}) / 256.0F;
    lanes.weigh(run.importance, 16, [&](size_t) { return mean_square; });
    run.ops.symmetric(lanes.groups(), 4);
    scales.unit = search_symmetric(lanes.scale, lanes.weight_sums(), 32, scales.codes);
  } else {
    run.ops.descent(lanes.groups());
    scales = q3_scales(lanes.scale);
  }
  block->d = f32_to_f16(scales.unit);
  block->scales = pack_q3_k_scales(scales.codes);
  for (size_t s = 0; s < 16; ++s)
    lanes.grid_scale[s] = f16_to_f32(block->d) * static_cast<float>(scales.codes[s]);
  run.ops.round(lanes.groups(), lanes.grid(-4, 3));
  const auto codes = lanes.codes_from(-4);
  block->qs = {};
  block->hmask = {};
  for (size_t i = 0; i < kBlock; ++i) {
    put_two_bits(i, codes[i] & 3, block->qs);
    block->hmask[i % 32] |= static_cast<uint8_t>(codes[i] >> 2 << (i / 32));
  }
}

void encode(const BlockRun& run, BlockQ4_K* blocks) noexcept {
  constexpr AffineSearch kSearch = {
      .max_code = 15, .first = -1.0F, .step = 0.1F, .n_steps = 20, .absolute_error = false};
  const auto codes = encode_k4_scales(run, kSearch, blocks);
  for (size_t b = 0; b < run.n_blocks; ++b)
    put_low_nibbles(codes.data() + kBlock * b, blocks[b]);
}

void encode(const BlockRun& run, BlockQ5_K* blocks) noexcept {
  constexpr AffineSearch kSearch = {
      .max_code = 31, .first = -0.5F, .step = 0.1F, .n_steps = 15, .absolute_error = false};
  const auto codes = encode_k4_scales(run, kSearch, blocks);
  for (size_t b = 0; b < run.n_blocks; ++b) {
    const uint8_t* own = codes.data() + kBlock * b;
    put_low_nibbles(own, blocks[b]);
    blocks[b].qh = {};
    for (size_t i = 0; i < kBlock; ++i)
      blocks[b].qh[i % 32] |= static_cast<uint8_t>(own[i] >> 4 << (i / 32));
  }
}

void encode(const BlockRun& run, BlockQ6_K* block) noexcept {
  *block = {};
  SearchLanes<16> lanes;
  lanes.load(run.x, 16);
  if (run.importance != nullptr) {
    lanes.load_weights(run.importance->weights, 16);
  } else {
    lanes.weigh_by([](float x) { return x * x; });
  }
  run.ops.symmetric(lanes.groups(), 32);
  const float max_scale = extreme(lanes.scale);
  if (std::fabs(max_scale) < kTiny) return;
  const float inverse = -128.0F / max_scale;
  block->d = f32_to_f16(1.0F / inverse);
  for (size_t s = 0; s < 16; ++s) {
    const int code = std::clamp(round_even(inverse * lanes.scale[s]), -128, 127);
    block->scales[s] = static_cast<int8_t>(code);
    lanes.grid_scale[s] = f16_to_f32(block->d) * static_cast<float>(code);
  }
  run.ops.round(lanes.groups(), lanes.grid(-32, 31));
  const auto codes = lanes.codes_from(-32);
  for (size_t i = 0; i < kBlock; ++i) {
    const size_t half = i / 128, plane = i % 128 / 32, column = i % 32;
    block->ql[64 * half + 32 * (plane % 2) + column] |=
        static_cast<uint8_t>((codes[i] & 15) << (4 * (plane / 2)));
    block->qh[32 * half + column] |= static_cast<uint8_t>(codes[i] >> 4 << (2 * plane));
  }
}

}  // namespace qw::ggml
