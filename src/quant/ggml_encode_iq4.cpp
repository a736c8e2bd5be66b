// Encoders of IQ4_NL and IQ4_XS: sixteen uneven levels, a searched scale per 32 elements.
//
// Level 2 (quant). Search and weights (x^2) are those of the published quantiser without
// importances.
#include <algorithm>
#include <cmath>
#include <span>

#include "base/half.h"
#include "quant/encode_util.h"
#include "quant/ggml_codecs.h"

namespace qw::ggml {

namespace {

constexpr int kTrials = 7;       // scales tried on each side of the one that fits the extreme value
constexpr float kTiny = 1e-15F;  // below this magnitude a sub-block counts as zero

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

/// Scale for x ~ scale * level, least squares with weights x^2. 0 for a sub-block of zeros.
float search_scale(std::span<const float> x) noexcept {
  const float max = extreme(x);
  if (std::fabs(max) < kTiny) return 0.0F;
  float scale = 0.0F, best = 0.0F;
  const auto consider = [&](float inverse_scale, bool first) {
    float sum_qx = 0.0F, sum_q2 = 0.0F;
    for (const float value : x) {
      const auto level = static_cast<float>(kIq4Values[nearest_level(inverse_scale * value)]);
      const float weight = value * value;
      sum_qx += weight * level * value;
      sum_q2 += weight * level * level;
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

}  // namespace

void encode(const float* x, BlockIQ4_NL& block) noexcept {
  const float scale = search_scale({x, 32});
  block.d = f32_to_f16(scale);
  put_codes(x, inverse(scale), block.qs.data());
}

void encode(const float* x, BlockIQ4_XS& block) noexcept {
  block = {};
  std::array<float, 8> found;
  for (size_t s = 0; s < 8; ++s)
    found[s] = search_scale({x + 32 * s, 32});
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

}  // namespace qw::ggml
