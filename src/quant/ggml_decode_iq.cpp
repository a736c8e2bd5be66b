// Decoders of the codebook types, IQ1 to IQ4.
//
// Level 2 (quant). Formulas and byte order: ggml_blocks_layout.h and docs/formats.md.
#include <span>

#include "base/half.h"
#include "quant/ggml_codecs.h"
#include "quant/ggml_grids.h"

namespace qw::ggml {

namespace {

/// out[j] = scale * grid[j], negative where bit j of `signs` is set. Returns the end of out.
float* put_signed(std::span<const int8_t> grid, unsigned signs, float scale, float* out) noexcept {
  for (size_t j = 0; j < grid.size(); ++j) {
    const float value = scale * static_cast<float>(grid[j]);
    *out++ = (signs >> j & 1) != 0 ? -value : value;
  }
  return out;
}

/// out[j] = scale * (grid[j] + delta), rounded once before the product and once after.
float* put_shifted(std::span<const int8_t> grid, float delta, float scale, float* out) noexcept {
  for (const int8_t level : grid)
    *out++ = scale * (static_cast<float>(level) + delta);
  return out;
}

unsigned nibble(const uint8_t* bytes, size_t index) noexcept {
  return bytes[index / 2] >> (4 * (index % 2)) & 15u;
}

float half_plus(unsigned scale) noexcept {
  return 0.5F + static_cast<float>(scale);
}

uint32_t load_u32(const uint8_t* bytes) noexcept {
  uint32_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

}  // namespace

void decode(const BlockIQ2_XXS& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t s = 0; s < 8; ++s) {
    const uint8_t* indices = block.qs.data() + 8 * s;
    const uint32_t signs_and_scale = load_u32(indices + 4);
    const float scale = d * half_plus(signs_and_scale >> 28) * 0.25F;
    for (size_t g = 0; g < 4; ++g) {
      out = put_signed(kIq2XxsGrid[indices[g]], iq_signs(signs_and_scale >> (7 * g)), scale, out);
    }
  }
}

void decode(const BlockIQ2_XS& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t g = 0; g < 32; ++g) {
    const float scale = d * half_plus(nibble(block.scales.data(), g / 2)) * 0.25F;
    out = put_signed(kIq2XsGrid[block.qs[g] & 511u], iq_signs(block.qs[g] >> 9), scale, out);
  }
}

void decode(const BlockIQ2_S& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t g = 0; g < 32; ++g) {
    const float scale = d * half_plus(nibble(block.scales.data(), g / 2)) * 0.25F;
    const unsigned high = block.qh[g / 4] >> (2 * (g % 4)) & 3u;
    out = put_signed(kIq2SGrid[block.qs[g] | high << 8], block.signs[g], scale, out);
  }
}

void decode(const BlockIQ3_XXS& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t s = 0; s < 8; ++s) {
    const uint32_t signs_and_scale = load_u32(block.scales_and_signs.data() + 4 * s);
    const float scale = d * half_plus(signs_and_scale >> 28) * 0.5F;
    for (size_t g = 0; g < 4; ++g) {
      const uint8_t* indices = block.qs.data() + 8 * s + 2 * g;
      const unsigned signs = iq_signs(signs_and_scale >> (7 * g));
      out = put_signed(kIq3XxsGrid[indices[0]], signs, scale, out);
      out = put_signed(kIq3XxsGrid[indices[1]], signs >> 4, scale, out);
    }
  }
}

void decode(const BlockIQ3_S& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t i = 0; i < 64; ++i) {
    const float scale = d * static_cast<float>(1 + 2 * nibble(block.scales.data(), i / 8));
    const unsigned high = block.qh[i / 8] >> (i % 8) & 1u;
    const unsigned signs = nibble(block.signs.data(), i);
    out = put_signed(kIq3SGrid[block.qs[i] | high << 8], signs, scale, out);
  }
}

void decode(const BlockIQ1_S& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t s = 0; s < 8; ++s) {
    const unsigned qh = block.qh[s];
    const float scale = d * static_cast<float>(2 * (qh >> 12 & 7) + 1);
    const float delta = (qh & 0x8000u) != 0 ? -kIq1Delta : kIq1Delta;
    for (size_t g = 0; g < 4; ++g) {
      const unsigned index = block.qs[4 * s + g] | (qh >> (3 * g) & 7) << 8;
      out = put_shifted(kIq1Grid[index], delta, scale, out);
    }
  }
}

void decode(const BlockIQ1_M& block, float* out) noexcept {
  const float d = f16_to_f32(iq1_m_scale(block));
  for (size_t g = 0; g < 32; ++g) {
    const unsigned sub_block = static_cast<unsigned>(g / 2);
    const unsigned s = block.scales[sub_block / 4] >> (3 * (sub_block % 4)) & 7u;
    const unsigned qh = nibble(block.qh.data(), g);
    const float scale = d * static_cast<float>(2 * s + 1);
    const float delta = (qh & 8u) != 0 ? -kIq1Delta : kIq1Delta;
    out = put_shifted(kIq1Grid[block.qs[g] | (qh & 7u) << 8], delta, scale, out);
  }
}

void decode(const BlockIQ4_NL& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(kIq4Values[block.qs[j] & 15]);
    out[j + 16] = d * static_cast<float>(kIq4Values[block.qs[j] >> 4]);
  }
}

void decode(const BlockIQ4_XS& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  const std::array<int8_t, 8> scales = unpack_iq4_xs_scales(block);
  for (size_t s = 0; s < 8; ++s, out += 32) {
    const float scale = d * static_cast<float>(scales[s]);
    for (size_t j = 0; j < 16; ++j) {
      const uint8_t byte = block.qs[16 * s + j];
      out[j] = scale * static_cast<float>(kIq4Values[byte & 15]);
      out[j + 16] = scale * static_cast<float>(kIq4Values[byte >> 4]);
    }
  }
}

}  // namespace qw::ggml
