// Encoders of the k-quants.
//
// Level 2 (quant). Each sub-block's scale (and minimum) is searched: several step sizes are tried,
// for each the codes are rounded and scale and minimum solved by weighted least squares, and the
// one with the least error is kept. The search, its weights and its ranges are those of the
// published quantisers (the idea is I. Kawrakow's), so that files come out as good as theirs; sums
// are in f32.
#include <algorithm>
#include <cmath>
#include <span>

#include "base/half.h"
#include "quant/encode_util.h"
#include "quant/ggml_codecs.h"

namespace qw::ggml {

namespace {

/// Below this magnitude a sub-block counts as zero.
constexpr float kTiny = 1e-15F;

struct ScaleMin {
  float scale = 0.0F;
  float min = 0.0F;  // subtracted: x ~ scale * code - min, min >= 0
};

struct AffineSearch {
  int max_code;
  float first, step;  // step sizes tried: (max_code + first + step * i) per range
  int n_steps;
  bool absolute_error;  // weigh |error| instead of its square
};

struct Sums {
  float code = 0.0F, code2 = 0.0F, code_x = 0.0F;  // weighted
};

/// Scale and minimum for x ~ scale * codes + offset, offset <= 0.
ScaleMin search_affine(std::span<const float> x, std::span<const float> weights,
                       std::span<int8_t> codes, const AffineSearch& search) noexcept {
  float min = x[0], max = x[0], sum_w = weights[0], sum_x = weights[0] * x[0];
  for (size_t i = 1; i < x.size(); ++i) {
    min = std::min(min, x[i]);
    max = std::max(max, x[i]);
    sum_w += weights[i];
    sum_x += weights[i] * x[i];
  }
  min = std::min(min, 0.0F);
  if (max == min) {
    std::fill(codes.begin(), codes.end(), int8_t{0});
    return {0.0F, -min};
  }
  std::array<int8_t, 32> trial{};
  const auto round_codes = [&](float inverse_scale) {
    Sums sums;
    for (size_t i = 0; i < x.size(); ++i) {
      const int code = std::clamp(round_even(inverse_scale * (x[i] - min)), 0, search.max_code);
      trial[i] = static_cast<int8_t>(code);
      const auto level = static_cast<float>(code);
      sums.code += weights[i] * level;
      sums.code2 += weights[i] * level * level;
      sums.code_x += weights[i] * level * x[i];
    }
    return sums;
  };
  const auto error_of = [&](float scale, float offset) {
    float error = 0.0F;
    for (size_t i = 0; i < x.size(); ++i) {
      const float diff = scale * static_cast<float>(trial[i]) + offset - x[i];
      error += weights[i] * (search.absolute_error ? std::fabs(diff) : diff * diff);
    }
    return error;
  };
  // First guess: the whole range over all codes. Each improvement moves `min`, and with it the
  // range that later trials divide.
  const float first_inverse = static_cast<float>(search.max_code) / (max - min);
  float scale = 1.0F / first_inverse;
  round_codes(first_inverse);
  float least_error = error_of(scale, min);
  std::copy_n(trial.begin(), x.size(), codes.begin());
  for (int i = 0; i <= search.n_steps; ++i) {
    const float steps =
        search.first + search.step * static_cast<float>(i) + static_cast<float>(search.max_code);
    const Sums sums = round_codes(steps / (max - min));
    const float determinant = sum_w * sums.code2 - sums.code * sums.code;
    if (!(determinant > 0.0F)) continue;
    float trial_scale = (sum_w * sums.code_x - sum_x * sums.code) / determinant;
    float trial_offset = (sums.code2 * sum_x - sums.code * sums.code_x) / determinant;
    if (trial_offset > 0.0F) {
      trial_offset = 0.0F;
      trial_scale = sums.code_x / sums.code2;
    }
    const float error = error_of(trial_scale, trial_offset);
    if (error < least_error) {
      std::copy_n(trial.begin(), x.size(), codes.begin());
      least_error = error;
      scale = trial_scale;
      min = trial_offset;
    }
  }
  return {scale, -min};
}

/// Scale for x ~ scale * code, code in [-max_code, max_code), weights x^2: nineteen step sizes.
float search_symmetric(std::span<const float> x, int max_code, std::span<int8_t> codes) noexcept {
  const float max = extreme(x);
  if (std::fabs(max) < kTiny) {
    std::fill(codes.begin(), codes.end(), static_cast<int8_t>(-max_code));
    return 0.0F;
  }
  const auto code_of = [&](float inverse_scale, float value) {
    return std::clamp(round_even(inverse_scale * value), -max_code, max_code - 1);
  };
  float scale = 0.0F, best = 0.0F;
  const auto consider = [&](float inverse_scale, bool first) {
    float sum_lx = 0.0F, sum_l2 = 0.0F;
    for (const float value : x) {
      const auto level = static_cast<float>(code_of(inverse_scale, value));
      const float weight = value * value;
      sum_lx += weight * value * level;
      sum_l2 += weight * level * level;
    }
    if (!first && !(sum_l2 > 0.0F && sum_lx * sum_lx > best * sum_l2)) return;
    for (size_t i = 0; i < x.size(); ++i)
      codes[i] = static_cast<int8_t>(code_of(inverse_scale, x[i]));
    scale = sum_l2 != 0.0F ? sum_lx / sum_l2 : 0.0F;
    best = scale * sum_lx;
  };
  consider(static_cast<float>(-max_code) / max, true);
  for (int i = -9; i <= 9; ++i) {
    if (i != 0)
      consider(-(static_cast<float>(max_code) + 0.1F * static_cast<float>(i)) / max, false);
  }
  return scale;
}

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

/// The part that Q4_K and Q5_K share: searches the eight sub-blocks, stores their scales in six
/// bits, then rounds the values again with the scales as stored.
template <typename Block>
std::array<int8_t, 256> encode_k4_scales(const float* x, const AffineSearch& search,
                                         Block& block) noexcept {
  std::array<int8_t, 256> codes;
  std::array<ScaleMin, 8> found;
  float max_scale = 0.0F, max_min = 0.0F;
  for (size_t s = 0; s < 8; ++s) {
    const std::array<float, 32> weights = rms_weights(x + 32 * s);
    found[s] = search_affine({x + 32 * s, 32}, weights, {codes.data() + 32 * s, 32}, search);
    max_scale = std::max(max_scale, found[s].scale);
    max_min = std::max(max_min, found[s].min);
  }
  const float inverse_scale = max_scale > 0.0F ? 63.0F / max_scale : 0.0F;
  const float inverse_min = max_min > 0.0F ? 63.0F / max_min : 0.0F;
  K4Scales scales;
  for (size_t s = 0; s < 8; ++s) {
    scales.scale[s] =
        static_cast<uint8_t>(std::clamp(round_even(inverse_scale * found[s].scale), 0, 63));
    scales.min[s] = static_cast<uint8_t>(std::clamp(round_even(inverse_min * found[s].min), 0, 63));
  }
  block.scales = pack_k4_scales(scales);
  block.d = f32_to_f16(max_scale / 63.0F);
  block.dmin = f32_to_f16(max_min / 63.0F);
  for (size_t s = 0; s < 8; ++s) {
    const float d = f16_to_f32(block.d) * static_cast<float>(scales.scale[s]);
    if (d == 0.0F) continue;
    const float min = f16_to_f32(block.dmin) * static_cast<float>(scales.min[s]);
    for (size_t i = 32 * s; i < 32 * s + 32; ++i) {
      codes[i] = static_cast<int8_t>(std::clamp(round_even((x[i] + min) / d), 0, search.max_code));
    }
  }
  return codes;
}

}  // namespace

void encode(const float* x, BlockQ2_K& block) noexcept {
  constexpr AffineSearch kSearch = {
      .max_code = 3, .first = -0.5F, .step = 0.1F, .n_steps = 15, .absolute_error = true};
  std::array<int8_t, 256> codes;
  std::array<ScaleMin, 16> found;
  float max_scale = 0.0F, max_min = 0.0F;
  for (size_t s = 0; s < 16; ++s) {
    std::array<float, 16> weights;
    for (size_t i = 0; i < 16; ++i)
      weights[i] = std::fabs(x[16 * s + i]);
    found[s] = search_affine({x + 16 * s, 16}, weights, {codes.data() + 16 * s, 16}, kSearch);
    max_scale = std::max(max_scale, found[s].scale);
    max_min = std::max(max_min, found[s].min);
  }
  const float inverse_scale = max_scale > 0.0F ? 15.0F / max_scale : 0.0F;
  const float inverse_min = max_min > 0.0F ? 15.0F / max_min : 0.0F;
  block.d = f32_to_f16(max_scale / 15.0F);
  block.dmin = f32_to_f16(max_min / 15.0F);
  block.qs = {};
  for (size_t s = 0; s < 16; ++s) {
    const int scale = std::clamp(round_even(inverse_scale * found[s].scale), 0, 15);
    const int min = std::clamp(round_even(inverse_min * found[s].min), 0, 15);
    block.scales[s] = static_cast<uint8_t>(scale | min << 4);
    const float d = f16_to_f32(block.d) * static_cast<float>(scale);
    const float offset = f16_to_f32(block.dmin) * static_cast<float>(min);
    for (size_t i = 16 * s; i < 16 * s + 16; ++i) {
      const int code = d == 0.0F ? codes[i] : std::clamp(round_even((x[i] + offset) / d), 0, 3);
      put_two_bits(i, code, block.qs);
    }
  }
}

void encode(const float* x, BlockQ3_K& block) noexcept {
  std::array<int8_t, 256> codes;
  std::array<float, 16> found;
  for (size_t s = 0; s < 16; ++s)
    found[s] = search_q3({x + 16 * s, 16}, {codes.data() + 16 * s, 16});
  const float max_scale = extreme(found);
  std::array<int8_t, 16> scales;
  scales.fill(-32);
  block.d = 0;
  if (max_scale != 0.0F) {
    const float inverse = -32.0F / max_scale;
    for (size_t s = 0; s < 16; ++s) {
      scales[s] = static_cast<int8_t>(std::clamp(round_even(inverse * found[s]), -32, 31));
    }
    block.d = f32_to_f16(1.0F / inverse);
  }
  block.scales = pack_q3_k_scales(scales);
  block.qs = {};
  block.hmask = {};
  for (size_t i = 0; i < 256; ++i) {
    const float d = f16_to_f32(block.d) * static_cast<float>(scales[i / 16]);
    const int code = (d == 0.0F ? codes[i] : std::clamp(round_even(x[i] / d), -4, 3)) + 4;
    put_two_bits(i, code & 3, block.qs);
    block.hmask[i % 32] |= static_cast<uint8_t>(code >> 2 << (i / 32));
  }
}

void encode(const float* x, BlockQ4_K& block) noexcept {
  constexpr AffineSearch kSearch = {
      .max_code = 15, .first = -1.0F, .step = 0.1F, .n_steps = 20, .absolute_error = false};
  const std::array<int8_t, 256> codes = encode_k4_scales(x, kSearch, block);
  for (size_t i = 0; i < 128; ++i) {
    const size_t low = i / 32 * 64 + i % 32;
    block.qs[i] = static_cast<uint8_t>(codes[low] | codes[low + 32] << 4);
  }
}

void encode(const float* x, BlockQ5_K& block) noexcept {
  constexpr AffineSearch kSearch = {
      .max_code = 31, .first = -0.5F, .step = 0.1F, .n_steps = 15, .absolute_error = false};
  const std::array<int8_t, 256> codes = encode_k4_scales(x, kSearch, block);
  for (size_t i = 0; i < 128; ++i) {
    const size_t low = i / 32 * 64 + i % 32;
    block.qs[i] = static_cast<uint8_t>((codes[low] & 15) | (codes[low + 32] & 15) << 4);
  }
  block.qh = {};
  for (size_t i = 0; i < 256; ++i)
    block.qh[i % 32] |= static_cast<uint8_t>(codes[i] >> 4 << (i / 32));
}

void encode(const float* x, BlockQ6_K& block) noexcept {
  block = {};
  std::array<int8_t, 256> codes;
  std::array<float, 16> found;
  for (size_t s = 0; s < 16; ++s) {
    found[s] = search_symmetric({x + 16 * s, 16}, 32, {codes.data() + 16 * s, 16});
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

}  // namespace qw::ggml
