// Encoders of IQ4_NL and IQ4_XS: sixteen uneven levels, a searched scale per 32 elements.
//
// Level 2 (quant). Search and weights are those of the published quantiser: x^2, or importance *
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

constexpr int kTrials = 7;  // scales tried on each side of the one that fits the extreme value

/// Index of the level nearest to x; the upper one when two are equally near.
size_t nearest_level(float x) noexcept {
  const auto level = [](size_t i) { return static_cast<float>(kIq4Values[i]); };
  if (x <= level(0)) return 0;
  if (x >= level(15)) return 15;
  size_t upper = 1;
  while (x >= level(upper))
    ++upper;
  return x - level(upper - 1) < level(upper) - x ? upper - 1 : upper;
}

/// Scale for x ~ scale * level, least squares. 0 for a sub-block of zeros.
float search_scale(std::span<const float> x, std::span<const float> weights) noexcept {
  const float max = extreme(x);
  if (std::fabs(max) < kTiny) return 0.0F;
  float scale = 0.0F, best = 0.0F;
  const auto consider = [&](float inverse_scale, bool first) {
    float sum_qx = 0.0F, sum_q2 = 0.0F;
    for (size_t i = 0; i < x.size(); ++i) {
      const auto level = static_cast<float>(kIq4Values[nearest_level(inverse_scale * x[i])]);
      sum_qx += weights[i] * level * x[i];
      sum_q2 += weights[i] * level * level;
    }
    if (!(sum_q2 > 0.0F) || (!first && !(sum_qx * sum_qx > best * sum_q2))) return;
    scale = sum_qx / sum_q2;
    best = scale * sum_qx;
  };
  const auto lowest = static_cast<float>(kIq4Values[0]);
  consider(1.0F / (-max / lowest), true);
  for (int i = -kTrials; i <= kTrials; ++i)
    consider((static_cast<float>(i) + lowest) / max, false);
  return scale;
}

void put_codes(const float* x, float inverse_scale, uint8_t* qs) noexcept {
  for (size_t j = 0; j < 16; ++j) {
    qs[j] = static_cast<uint8_t>(nearest_level(inverse_scale * x[j]) |
                                 nearest_level(inverse_scale * x[j + 16]) << 4);
  }
}

/// Of 32 elements; without importance x^2.
std::array<float, 32> weights_of(const float* x, const float* importance,
                                 float mean_square) noexcept {
  if (importance != nullptr) return weigh<32>(x, importance, mean_square);
  std::array<float, 32> out;
  for (size_t i = 0; i < 32; ++i)
    out[i] = x[i] * x[i];
  return out;
}

void encode_nl(const float* x, const float* importance, BlockIQ4_NL& block) noexcept {
  const float mean_square = 2.0F / 32.0F * sum_of_squares({x, 32});
  const float scale = search_scale({x, 32}, weights_of(x, importance, mean_square));
  block.d = f32_to_f16(scale);
  put_codes(x, inverse(scale), block.qs.data());
}

void encode_xs(const float* x, const float* importance, BlockIQ4_XS& block) noexcept {
  block = {};
  const float mean_square = 2.0F / 256.0F * sum_of_squares({x, 256});
  std::array<float, 8> found;
  for (size_t s = 0; s < 8; ++s) {
    const float* own = importance != nullptr ? importance + 32 * s : nullptr;
    found[s] = search_scale({x + 32 * s, 32}, weights_of(x + 32 * s, own, mean_square));
  }
  const float d = -extreme(found) / 32.0F, id = inverse(d);
  block.d = f32_to_f16(d);
  for (size_t s = 0; s < 8; ++s) {
    const int code = std::clamp(round_even(id * found[s]), -32, 31);
    put_codes(x + 32 * s, inverse(d * static_cast<float>(code)), block.qs.data() + 16 * s);
    const int six = code + 32;
    block.scales_l[s / 2] |= static_cast<uint8_t>((six & 15) << (4 * (s % 2)));
    block.scales_h |= static_cast<uint16_t>(six >> 4 << (2 * s));
  }
}

}  // namespace

void encode(const float* x, BlockIQ4_NL& block) noexcept {
  encode_nl(x, nullptr, block);
}
void encode(const float* x, const Importance& importance, BlockIQ4_NL& block) noexcept {
  encode_nl(x, importance.weights, block);
}
void encode(const float* x, BlockIQ4_XS& block) noexcept {
  encode_xs(x, nullptr, block);
}
void encode(const float* x, const Importance& importance, BlockIQ4_XS& block) noexcept {
  encode_xs(x, importance.weights, block);
}

}  // namespace qw::ggml
