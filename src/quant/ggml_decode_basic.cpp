// Decoders of the 32-element types and of the ternary, one- and two-bit and 4-bit float types.
//
// Level 2 (quant). Formulas and byte order: ggml_blocks_layout.h and docs/formats.md.
#include "base/half.h"
#include "quant/ggml_codecs.h"

namespace qw::ggml {

namespace {

/// Fifth bits of a Q5 block, bit j for element j.
uint32_t fifth_bits(const std::array<uint8_t, 4>& qh) noexcept {
  return std::bit_cast<uint32_t>(qh);
}

int low_nibble(uint8_t byte) noexcept {
  return byte & 15;
}
int high_nibble(uint8_t byte) noexcept {
  return byte >> 4;
}

}  // namespace

void decode(const BlockQ4_0& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(low_nibble(block.qs[j]) - 8) * d;
    out[j + 16] = static_cast<float>(high_nibble(block.qs[j]) - 8) * d;
  }
}

void decode(const BlockQ4_1& block, float* out) noexcept {
  const float d = f16_to_f32(block.d), m = f16_to_f32(block.m);
  for (size_t j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(low_nibble(block.qs[j])) * d + m;
    out[j + 16] = static_cast<float>(high_nibble(block.qs[j])) * d + m;
  }
}

void decode(const BlockQ5_0& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  const uint32_t fifth = fifth_bits(block.qh);
  for (size_t j = 0; j < 16; ++j) {
    const int first = low_nibble(block.qs[j]) | static_cast<int>(fifth >> j & 1) << 4;
    const int second = high_nibble(block.qs[j]) | static_cast<int>(fifth >> (j + 16) & 1) << 4;
    out[j] = static_cast<float>(first - 16) * d;
    out[j + 16] = static_cast<float>(second - 16) * d;
  }
}

void decode(const BlockQ5_1& block, float* out) noexcept {
  const float d = f16_to_f32(block.d), m = f16_to_f32(block.m);
  const uint32_t fifth = fifth_bits(block.qh);
  for (size_t j = 0; j < 16; ++j) {
    const int first = low_nibble(block.qs[j]) | static_cast<int>(fifth >> j & 1) << 4;
    const int second = high_nibble(block.qs[j]) | static_cast<int>(fifth >> (j + 16) & 1) << 4;
    out[j] = static_cast<float>(first) * d + m;
    out[j + 16] = static_cast<float>(second) * d + m;
  }
}

void decode(const BlockQ8_0& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t j = 0; j < 32; ++j)
    out[j] = static_cast<float>(block.qs[j]) * d;
}

void decode(const BlockQ8_1& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t j = 0; j < 32; ++j)
    out[j] = static_cast<float>(block.qs[j]) * d;
}

void decode(const BlockTQ1_0& block, float* out) noexcept {
  // A byte holds a fraction of 256, so that multiplying it by 3^n (modulo 256) and then by 3 brings
  // digit n above the eighth bit.
  static constexpr std::array<int, 5> kPow3 = {1, 3, 9, 27, 81};
  const float d = f16_to_f32(block.d);
  const auto digit = [](uint8_t byte, int n) {
    const auto shifted = static_cast<uint8_t>(byte * kPow3[static_cast<size_t>(n)]);
    return shifted * 3 >> 8;
  };
  const auto run = [&](const uint8_t* bytes, int n_bytes, int n_digits) {
    for (int n = 0; n < n_digits; ++n) {
      for (int i = 0; i < n_bytes; ++i)
        *out++ = static_cast<float>(digit(bytes[i], n) - 1) * d;
    }
  };
  run(block.qs.data(), 32, 5);
  run(block.qs.data() + 32, 16, 5);
  run(block.qh.data(), 4, 4);
}

void decode(const BlockTQ2_0& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t half = 0; half < 2; ++half) {
    for (int plane = 0; plane < 4; ++plane) {
      for (size_t i = 0; i < 32; ++i) {
        *out++ = static_cast<float>((block.qs[32 * half + i] >> (2 * plane) & 3) - 1) * d;
      }
    }
  }
}

void decode(const BlockMXFP4& block, float* out) noexcept {
  const float d = e8m0_half(block.e);
  for (size_t j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(kE2m1Doubled[block.qs[j] & 15]) * d;
    out[j + 16] = static_cast<float>(kE2m1Doubled[block.qs[j] >> 4]) * d;
  }
}

void decode(const BlockNVFP4& block, float* out) noexcept {
  for (size_t s = 0; s < 4; ++s) {
    const float d = ue4m3_half(block.d[s]);
    for (size_t i = 0; i < 8; ++i) {
      const uint8_t byte = block.qs[8 * s + i];
      out[16 * s + i] = static_cast<float>(kE2m1Doubled[byte & 15]) * d;
      out[16 * s + 8 + i] = static_cast<float>(kE2m1Doubled[byte >> 4]) * d;
    }
  }
}

void decode(const BlockQ1_0& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t i = 0; i < 128; ++i)
    out[i] = (block.qs[i / 8] >> (i % 8) & 1) != 0 ? d : -d;
}

void decode(const BlockQ2_0& block, float* out) noexcept {
  const float d = f16_to_f32(block.d);
  for (size_t i = 0; i < 64; ++i) {
    out[i] = static_cast<float>((block.qs[i / 4] >> (2 * (i % 4)) & 3) - 1) * d;
  }
}

}  // namespace qw::ggml
