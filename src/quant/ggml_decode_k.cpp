// Decoders of the k-quants.
//
// Level 2 (quant). Formulas and byte order: ggml_blocks_layout.h and docs/formats.md. A scale
// product is rounded before it meets the code, as in the reference: d * scale first, then times q.
#include "base/half.h"
#include "quant/ggml_codecs.h"

namespace qw::ggml {

void decode(const BlockQ2_K& block, float* out) noexcept {
  const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
  for (size_t s = 0; s < 16; ++s) {
    const size_t half = s / 8, plane = s % 8 / 2, first = 16 * (s % 2);
    const float scale = d * static_cast<float>(block.scales[s] & 15);
    const float min = dmin * static_cast<float>(block.scales[s] >> 4);
    for (size_t i = 0; i < 16; ++i) {
      const int q = block.qs[32 * half + first + i] >> (2 * plane) & 3;
      *out++ = scale * static_cast<float>(q) - min;
    }
  }
}

void decode(const BlockQ3_K& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  const std::array<int8_t, 16> scales = unpack_q3_k_scales(block.scales);
  for (size_t s = 0; s < 16; ++s) {
    const size_t half = s / 8, plane = s % 8 / 2, first = 16 * (s % 2);
    const float scale = d * static_cast<float>(scales[s]);
    for (size_t i = first; i < first + 16; ++i) {
      const int low = block.qs[32 * half + i] >> (2 * plane) & 3;
      const int high = block.hmask[i] >> (4 * half + plane) & 1;
      *out++ = scale * static_cast<float>((low | high << 2) - 4);
    }
  }
}

void decode(const BlockQ4_K& block, float* out) noexcept {
  const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
  const K4Scales scales = unpack_k4_scales(block.scales);
  for (size_t s = 0; s < 8; ++s) {
    const float scale = d * static_cast<float>(scales.scale[s]);
    const float min = dmin * static_cast<float>(scales.min[s]);
    for (size_t i = 0; i < 32; ++i) {
      const int q = block.qs[32 * (s / 2) + i] >> (4 * (s % 2)) & 15;
      *out++ = scale * static_cast<float>(q) - min;
    }
  }
}

void decode(const BlockQ5_K& block, float* out) noexcept {
  const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
  const K4Scales scales = unpack_k4_scales(block.scales);
  for (size_t s = 0; s < 8; ++s) {
    const float scale = d * static_cast<float>(scales.scale[s]);
    const float min = dmin * static_cast<float>(scales.min[s]);
    for (size_t i = 0; i < 32; ++i) {
      const int low = block.qs[32 * (s / 2) + i] >> (4 * (s % 2)) & 15;
      const int high = block.qh[i] >> s & 1;
      *out++ = scale * static_cast<float>(low | high << 4) - min;
    }
  }
}

void decode(const BlockQ6_K& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t s = 0; s < 16; ++s) {
    const size_t half = s / 8, plane = s % 8 / 2, first = 16 * (s % 2);
    const float scale = d * static_cast<float>(block.scales[s]);
    for (size_t i = first; i < first + 16; ++i) {
      const int low = block.ql[64 * half + 32 * (plane % 2) + i] >> (4 * (plane / 2)) & 15;
      const int high = block.qh[32 * half + i] >> (2 * plane) & 3;
      *out++ = scale * static_cast<float>((low | high << 4) - 32);
    }
  }
}

void decode(const BlockQ8_K& block, float* out) noexcept {
  for (size_t i = 0; i < 256; ++i)
    out[i] = block.d * static_cast<float>(block.qs[i]);
}

}  // namespace qw::ggml
