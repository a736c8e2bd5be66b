// Encoders of the k-quants.
//
// Level 2 (quant). Each sub-block's scale (and minimum) is searched (scale_search.h), then the
// scales' own scale; the values are rounded again with the scales as stored. Weights without
// importances are those of the published quantisers; with importances they are importance *
// sqrt(mean square + x^2).
#include <algorithm>
#include <cmath>
#include <span>

#include "base/half.h"
#include "quant/encode_util.h"
#include "quant/ggml_codecs.h"
#include "quant/scale_search.h"

namespace qw::ggml {

namespace {

/// Scale for x ~ scale * code, code in [-4, 3], weights x^2: coordinate descent on the codes.
float search_q3(std::span<const float> x, std::span<int8_t> codes) noexcept {
  const float max = extreme(x);
  if (std::fabs(max) < kTiny) {
    std::fill(codes.begin(), codes.end(), int8_t{-4});
    return 0.0F;
  }
  const float inverse_scale = -4.0F / max;
  float sum_lx = 0.0F, sum_l2 = 0.0F;
  for (size_t i = 0; i < x.size(); ++i) {
    codes[i] = static_cast<int8_t>(std::clamp(round_even(inverse_scale * x[i]), -4, 3));
    const float weight = x[i] * x[i];
    sum_lx += weight * x[i] * static_cast<float>(codes[i]);
    sum_l2 += weight * static_cast<float>(codes[i]) * static_cast<float>(codes[i]);
  }
  for (int round = 0; round < 5; ++round) {
    bool changed = false;
    for (size_t i = 0; i < x.size(); ++i) {
      const float weight = x[i] * x[i];
      const auto level = static_cast<float>(codes[i]);
      float without_lx = sum_lx - weight * x[i] * level;
      if (!(without_lx > 0.0F)) continue;
      float without_l2 = sum_l2 - weight * level * level;
      const int better = std::clamp(round_even(x[i] * without_l2 / without_lx), -4, 3);
      if (better == codes[i]) continue;
      without_lx += weight * x[i] * static_cast<float>(better);
      without_l2 += weight * static_cast<float>(better) * static_cast<float>(better);
      if (without_l2 > 0.0F && without_lx * without_lx * sum_l2 > sum_lx * sum_lx * without_l2) {
        codes[i] = static_cast<int8_t>(better);
        sum_lx = without_lx;
        sum_l2 = without_l2;
        changed = true;
      }
    }
    if (!changed) break;
  }
  return sum_l2 > 0.0F ? sum_lx / sum_l2 : 0.0F;
}

/// Element 128h + 32p + i goes to bits 2p.. of byte 32h + i.
void put_two_bits(size_t element, int two, std::array<uint8_t, 64>& qs) noexcept {
  qs[element / 128 * 32 + element % 32] |= static_cast<uint8_t>(two << (2 * (element % 128 / 32)));
}

/// Weights of Q4_K and Q5_K: |x| plus the root mean square of its sub-block.
std::array<float, 32> rms_weights(const float* x) noexcept {
  float sum2 = 0.0F;
  for (size_t i = 0; i < 32; ++i)
    sum2 += x[i] * x[i];
  const float rms = std::sqrt(sum2 / 32.0F);
  std::array<float, 32> weights;
  for (size_t i = 0; i < 32; ++i)
    weights[i] = rms + std::fabs(x[i]);
  return weights;
}

/// Scales or minima of a block as codes in [0, max_code], and what the codes are multiples of.
template <size_t kSize>
struct Levels {
  std::array<int8_t, kSize> codes;
  float unit = 0.0F;
};

/// `weights` null: the largest value has the largest code.
template <size_t kSize>
Levels<kSize> quantise_levels(const std::array<float, kSize>& values,
                              const std::array<float, kSize>* weights, int max_code) noexcept {
  Levels<kSize> out;
  if (weights != nullptr) {
    out.unit = search_positive(values, *weights, max_code, out.codes);
    return out;
  }
  const float max = std::max(0.0F, *std::ranges::max_element(values));
  const float inverse = max > 0.0F ? static_cast<float>(max_code) / max : 0.0F;
  for (size_t s = 0; s < kSize; ++s)
    out.codes[s] = static_cast<int8_t>(std::clamp(round_even(inverse * values[s]), 0, max_code));
  out.unit = max / static_cast<float>(max_code);
  return out;
}

float sum_of(std::span<const float> values) noexcept {
  float sum = 0.0F;
  for (const float value : values)
    sum += value;
  return sum;
}

/// The part that Q4_K and Q5_K share: searches the eight sub-blocks, stores their scales in six
/// bits, then rounds the values again with the scales as stored.
template <typename Block>
std::array<int8_t, 256> encode_k4_scales(const float* x, const Importance* importance,
                                         const AffineSearch& plain, Block& block) noexcept {
  const AffineSearch search =
      importance != nullptr ? search_with_importance(plain.max_code) : plain;
  const float mean_square = importance != nullptr ? 2.0F * sum_of_squares({x, 256}) / 256.0F : 0.0F;
  std::array<int8_t, 256> codes;
  std::array<float, 8> scale, min, weight;
  for (size_t s = 0; s < 8; ++s) {
    const std::array<float, 32> weights =
        importance != nullptr ? weigh<32>(x + 32 * s, importance->weights + 32 * s, mean_square)
                              : rms_weights(x + 32 * s);
    const ScaleMin found =
        search_affine({x + 32 * s, 32}, weights, {codes.data() + 32 * s, 32}, search);
    scale[s] = found.scale;
    min[s] = found.min;
    weight[s] = sum_of(weights);
  }
  const auto* levels_weight = importance != nullptr ? &weight : nullptr;
  const Levels<8> d = quantise_levels(scale, levels_weight, 63);
  const Levels<8> m = quantise_levels(min, levels_weight, 63);
  K4Scales scales;
  std::ranges::copy(d.codes, scales.scale.begin());
  std::ranges::copy(m.codes, scales.min.begin());
  block.scales = pack_k4_scales(scales);
  block.d = f32_to_f16(d.unit);
  block.dmin = f32_to_f16(m.unit);
  for (size_t s = 0; s < 8; ++s) {
    const float step = f16_to_f32(block.d) * static_cast<float>(scales.scale[s]);
    if (step == 0.0F) continue;
    const float offset = f16_to_f32(block.dmin) * static_cast<float>(scales.min[s]);
    for (size_t i = 32 * s; i < 32 * s + 32; ++i) {
      codes[i] =
          static_cast<int8_t>(std::clamp(round_even((x[i] + offset) / step), 0, search.max_code));
    }
  }
  return codes;
}

void encode_q2(const float* x, const Importance* importance, BlockQ2_K& block) noexcept {
  constexpr AffineSearch kPlain = {
      .max_code = 3, .first = -0.5F, .step = 0.1F, .n_steps = 15, .absolute_error = true};
  const AffineSearch search = importance != nullptr ? search_with_importance(3) : kPlain;
  const float mean_square = importance != nullptr ? sum_of_squares({x, 256}) / 256.0F : 0.0F;
  std::array<int8_t, 256> codes;
  std::array<float, 16> scale, min, weight;
  for (size_t s = 0; s < 16; ++s) {
    std::array<float, 16> weights;
    if (importance != nullptr) {
      weights = weigh<16>(x + 16 * s, importance->weights + 16 * s, mean_square);
    } else {
      for (size_t i = 0; i < 16; ++i)
        weights[i] = std::fabs(x[16 * s + i]);
    }
    const ScaleMin found =
        search_affine({x + 16 * s, 16}, weights, {codes.data() + 16 * s, 16}, search);
    scale[s] = found.scale;
    min[s] = found.min;
    weight[s] = sum_of(weights);
  }
  const auto* levels_weight = importance != nullptr ? &weight : nullptr;
  const Levels<16> d = quantise_levels(scale, levels_weight, 15);
  const Levels<16> m = quantise_levels(min, levels_weight, 15);
  block.d = f32_to_f16(d.unit);
  block.dmin = f32_to_f16(m.unit);
  block.qs = {};
  for (size_t s = 0; s < 16; ++s) {
    block.scales[s] = static_cast<uint8_t>(d.codes[s] | m.codes[s] << 4);
    const float step = f16_to_f32(block.d) * static_cast<float>(d.codes[s]);
    const float offset = f16_to_f32(block.dmin) * static_cast<float>(m.codes[s]);
    for (size_t i = 16 * s; i < 16 * s + 16; ++i) {
      const int code =
          step == 0.0F ? codes[i] : std::clamp(round_even((x[i] + offset) / step), 0, 3);
      put_two_bits(i, code, block.qs);
    }
  }
}

/// Scales of the sub-blocks as codes in [-32, 32), and the block's scale.
struct Q3Scales {
  std::array<int8_t, 16> codes;
  float unit = 0.0F;
};

Q3Scales q3_scales(const float* x, std::array<int8_t, 256>& codes) noexcept {
  std::array<float, 16> found;
  for (size_t s = 0; s < 16; ++s)
    found[s] = search_q3({x + 16 * s, 16}, {codes.data() + 16 * s, 16});
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

Q3Scales q3_scales(const float* x, const Importance& importance,
                   std::array<int8_t, 256>& codes) noexcept {
  const float mean_square = 2.0F * sum_of_squares({x, 256}) / 256.0F;
  std::array<float, 16> found, weight;
  for (size_t s = 0; s < 16; ++s) {
    const std::array<float, 16> weights =
        weigh<16>(x + 16 * s, importance.weights + 16 * s, mean_square);
    found[s] = search_symmetric({x + 16 * s, 16}, weights, 4, {codes.data() + 16 * s, 16});
    weight[s] = sum_of(weights);
  }
  Q3Scales out;
  out.unit = search_symmetric(found, weight, 32, out.codes);
  return out;
}

void store_q3(const float* x, const std::array<int8_t, 256>& codes, const Q3Scales& scales,
              BlockQ3_K& block) noexcept {
  block.d = f32_to_f16(scales.unit);
  block.scales = pack_q3_k_scales(scales.codes);
  block.qs = {};
  block.hmask = {};
  for (size_t i = 0; i < 256; ++i) {
    const float d = f16_to_f32(block.d) * static_cast<float>(scales.codes[i / 16]);
    const int code = (d == 0.0F ? codes[i] : std::clamp(round_even(x[i] / d), -4, 3)) + 4;
    put_two_bits(i, code & 3, block.qs);
    block.hmask[i % 32] |= static_cast<uint8_t>(code >> 2 << (i / 32));
  }
}

void encode_q4(const float* x, const Importance* importance, BlockQ4_K& block) noexcept {
  constexpr AffineSearch kSearch = {
      .max_code = 15, .first = -1.0F, .step = 0.1F, .n_steps = 20, .absolute_error = false};
  const std::array<int8_t, 256> codes = encode_k4_scales(x, importance, kSearch, block);
  for (size_t i = 0; i < 128; ++i) {
    const size_t low = i / 32 * 64 + i % 32;
    block.qs[i] = static_cast<uint8_t>(codes[low] | codes[low + 32] << 4);
  }
}

void encode_q5(const float* x, const Importance* importance, BlockQ5_K& block) noexcept {
  constexpr AffineSearch kSearch = {
      .max_code = 31, .first = -0.5F, .step = 0.1F, .n_steps = 15, .absolute_error = false};
  const std::array<int8_t, 256> codes = encode_k4_scales(x, importance, kSearch, block);
  for (size_t i = 0; i < 128; ++i) {
    const size_t low = i / 32 * 64 + i % 32;
    block.qs[i] = static_cast<uint8_t>((codes[low] & 15) | (codes[low + 32] & 15) << 4);
  }
  block.qh = {};
  for (size_t i = 0; i < 256; ++i)
    block.qh[i % 32] |= static_cast<uint8_t>(codes[i] >> 4 << (i / 32));
}

void encode_q6(const float* x, const Importance* importance, BlockQ6_K& block) noexcept {
  block = {};
  std::array<int8_t, 256> codes;
  std::array<float, 16> found;
  for (size_t s = 0; s < 16; ++s) {
    std::array<float, 16> weights;
    for (size_t i = 0; i < 16; ++i) {
      const float value = x[16 * s + i];
      weights[i] = importance != nullptr ? importance->weights[16 * s + i] : value * value;
    }
    found[s] = search_symmetric({x + 16 * s, 16}, weights, 32, {codes.data() + 16 * s, 16});
  }
  const float max_scale = extreme(found);
  if (std::fabs(max_scale) < kTiny) return;
  const float inverse = -128.0F / max_scale;
  block.d = f32_to_f16(1.0F / inverse);
  for (size_t s = 0; s < 16; ++s) {
    block.scales[s] = static_cast<int8_t>(std::clamp(round_even(inverse * found[s]), -128, 127));
    const float d = f16_to_f32(block.d) * static_cast<float>(block.scales[s]);
    for (size_t i = 16 * s; i < 16 * s + 16; ++i) {
      const int code = (d == 0.0F ? codes[i] : std::clamp(round_even(x[i] / d), -32, 31)) + 32;
      const size_t half = i / 128, plane = i % 128 / 32, column = i % 32;
      block.ql[64 * half + 32 * (plane % 2) + column] |=
          static_cast<uint8_t>((code & 15) << (4 * (plane / 2)));
      block.qh[32 * half + column] |= static_cast<uint8_t>(code >> 4 << (2 * plane));
    }
  }
}

}  // namespace

void encode(const float* x, BlockQ2_K& block) noexcept {
  encode_q2(x, nullptr, block);
}
void encode(const float* x, const Importance& importance, BlockQ2_K& block) noexcept {
  encode_q2(x, &importance, block);
}

void encode(const float* x, BlockQ4_K& block) noexcept {
  encode_q4(x, nullptr, block);
}
void encode(const float* x, const Importance& importance, BlockQ4_K& block) noexcept {
  encode_q4(x, &importance, block);
}

void encode(const float* x, BlockQ5_K& block) noexcept {
  encode_q5(x, nullptr, block);
}
void encode(const float* x, const Importance& importance, BlockQ5_K& block) noexcept {
  encode_q5(x, &importance, block);
}

void encode(const float* x, BlockQ6_K& block) noexcept {
  encode_q6(x, nullptr, block);
}
void encode(const float* x, const Importance& importance, BlockQ6_K& block) noexcept {
  encode_q6(x, &importance, block);
}

void encode(const float* x, BlockQ3_K& block) noexcept {
  std::array<int8_t, 256> codes;
  const Q3Scales scales = q3_scales(x, codes);
  store_q3(x, codes, scales, block);
}
void encode(const float* x, const Importance& importance, BlockQ3_K& block) noexcept {
  std::array<int8_t, 256> codes;
  const Q3Scales scales = q3_scales(x, importance, codes);
  store_q3(x, codes, scales, block);
}

}  // namespace qw::ggml
