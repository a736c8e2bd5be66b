#include "quant/scale_search.h"

#include <algorithm>
#include <cmath>

#include "quant/encode_util.h"

namespace qw::ggml {

namespace {

struct Sums {
  float code = 0.0F, code2 = 0.0F, code_x = 0.0F;  // weighted
};

}  // namespace

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
  std::array<int8_t, kSearchValues> trial{};
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

float search_symmetric(std::span<const float> x, std::span<const float> weights, int max_code,
                       std::span<int8_t> codes) noexcept {
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
    for (size_t i = 0; i < x.size(); ++i) {
      const auto level = static_cast<float>(code_of(inverse_scale, x[i]));
      sum_lx += weights[i] * x[i] * level;
      sum_l2 += weights[i] * level * level;
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

float search_by_descent(std::span<const float> x, std::span<int8_t> codes) noexcept {
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

float search_positive(std::span<const float> x, std::span<const float> weights, int max_code,
                      std::span<int8_t> codes) noexcept {
  float max = 0.0F;
  for (const float value : x)
    max = std::max(max, value);
  if (max < kTiny) {
    std::fill(codes.begin(), codes.end(), int8_t{0});
    return 0.0F;
  }
  const auto code_of = [&](float inverse_scale, float value) {
    return std::min(max_code, round_even(inverse_scale * value));
  };
  const auto error_of = [&](float inverse_scale) {
    const float scale = 1.0F / inverse_scale;
    float error = 0.0F;
    for (size_t i = 0; i < x.size(); ++i) {
      const float diff = x[i] - scale * static_cast<float>(code_of(inverse_scale, x[i]));
      error += weights[i] * diff * diff;
    }
    return error;
  };
  float best_inverse = static_cast<float>(max_code) / max, least = error_of(best_inverse);
  for (int i = -4; i <= 4; ++i) {
    if (i == 0) continue;
    const float inverse_scale = (0.1F * static_cast<float>(i) + static_cast<float>(max_code)) / max;
    const float error = error_of(inverse_scale);
    if (error < least) {
      least = error;
      best_inverse = inverse_scale;
    }
  }
  float sum_lx = 0.0F, sum_l2 = 0.0F;
  for (size_t i = 0; i < x.size(); ++i) {
    codes[i] = static_cast<int8_t>(code_of(best_inverse, x[i]));
    const auto level = static_cast<float>(codes[i]);
    sum_lx += weights[i] * x[i] * level;
    sum_l2 += weights[i] * level * level;
  }
  for (int round = 0; round < 5; ++round) {
    bool changed = false;
    for (size_t i = 0; i < x.size(); ++i) {
      const auto level = static_cast<float>(codes[i]);
      float without_lx = sum_lx - weights[i] * x[i] * level;
      float without_l2 = sum_l2 - weights[i] * level * level;
      if (!(without_lx > 0.0F && without_l2 > 0.0F)) continue;
      const int better = std::min(max_code, round_even(x[i] * without_l2 / without_lx));
      if (better == codes[i]) continue;
      without_lx += weights[i] * x[i] * static_cast<float>(better);
      without_l2 += weights[i] * static_cast<float>(better) * static_cast<float>(better);
      if (without_lx * without_lx * sum_l2 > sum_lx * sum_lx * without_l2) {
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

float sum_of_squares(std::span<const float> x) noexcept {
  float sum = 0.0F;
  for (const float value : x)
    sum += value * value;
  return sum;
}

}  // namespace qw::ggml

namespace qw {

namespace {

using ggml::ScaleMin;

/// One group of several.
struct Group {
  std::array<float, kSearchValues> x{}, weights{};
  std::array<int8_t, kSearchValues> codes{};
  size_t n = 0;

  Group(const SearchGroups& groups, int g) : n(static_cast<size_t>(groups.n_values)) {
    for (size_t i = 0; i < n; ++i) {
      const size_t at = i * kSearchGroups + static_cast<size_t>(g);
      x[i] = groups.x[at];
      if (groups.weights != nullptr) weights[i] = groups.weights[at];
    }
  }
  std::span<const float> values() const { return {x.data(), n}; }
  std::span<const float> value_weights() const { return {weights.data(), n}; }
  std::span<int8_t> value_codes() { return {codes.data(), n}; }
  void put_codes(const SearchGroups& groups, int g) const {
    for (size_t i = 0; i < n; ++i)
      groups.codes[i * kSearchGroups + static_cast<size_t>(g)] = static_cast<float>(codes[i]);
  }
};

void search_affine_groups(const SearchGroups& groups, const AffineSearch& search) {
  for (int g = 0; g < kSearchGroups; ++g) {
    Group group(groups, g);
    const ScaleMin found =
        ggml::search_affine(group.values(), group.value_weights(), group.value_codes(), search);
    groups.scale[g] = found.scale;
    groups.min[g] = found.min;
    group.put_codes(groups, g);
  }
}

void search_symmetric_groups(const SearchGroups& groups, int max_code) {
  for (int g = 0; g < kSearchGroups; ++g) {
    Group group(groups, g);
    groups.scale[g] = ggml::search_symmetric(group.values(), group.value_weights(), max_code,
                                             group.value_codes());
    group.put_codes(groups, g);
  }
}

void search_groups_by_descent(const SearchGroups& groups) {
  for (int g = 0; g < kSearchGroups; ++g) {
    Group group(groups, g);
    groups.scale[g] = ggml::search_by_descent(group.values(), group.value_codes());
    group.put_codes(groups, g);
  }
}

void round_groups(const SearchGroups& groups, const GroupGrid& grid) {
  for (int g = 0; g < kSearchGroups; ++g) {
    if (grid.scale[g] == 0.0F) continue;
    for (int i = 0; i < groups.n_values; ++i) {
      const int at = i * kSearchGroups + g;
      const int code = ggml::round_even((groups.x[at] + grid.offset[g]) / grid.scale[g]);
      groups.codes[at] = static_cast<float>(std::clamp(code, grid.lowest, grid.highest));
    }
  }
}

/// Calls encode(values, codes, b) for each block.
template <class Encode>
void for_each_block(const NearestBlocks& blocks, const Encode& encode) {
  for (int64_t b = 0; b < blocks.n_blocks; ++b) {
    const int64_t at = b * kNearestBlock;
    encode(std::span<const float, kNearestBlock>(blocks.x + at, kNearestBlock), blocks.codes + at,
           b);
  }
}

void nearest_symmetric(const NearestBlocks& blocks, int half) {
  const auto levels = static_cast<float>(half);
  for_each_block(blocks, [&](std::span<const float> x, uint8_t* codes, int64_t b) {
    const float d = ggml::extreme(x) / -levels, id = ggml::inverse(d);
    blocks.scale[b] = d;
    for (const float value : x) {
      const int code = ggml::to_int(value * id + (levels + 0.5F));
      *codes++ = static_cast<uint8_t>(std::min(2 * half - 1, code));
    }
  });
}

void nearest_affine(const NearestBlocks& blocks, int max_code) {
  for_each_block(blocks, [&](std::span<const float> x, uint8_t* codes, int64_t b) {
    const auto [min, max] = std::ranges::minmax_element(x);
    const float d = (*max - *min) / static_cast<float>(max_code), id = ggml::inverse(d);
    blocks.scale[b] = d;
    blocks.min[b] = *min;
    for (const float value : x) {
      const int code = ggml::to_int((value - *min) * id + 0.5F);
      *codes++ = static_cast<uint8_t>(std::min(max_code, code));
    }
  });
}

void nearest_magnitude(const NearestBlocks& blocks) {
  for_each_block(blocks, [&](std::span<const float> x, uint8_t* codes, int64_t b) {
    const float d = ggml::largest_magnitude(x) / 127.0F, id = ggml::inverse(d);
    blocks.scale[b] = d;
    for (const float value : x)
      *codes++ = static_cast<uint8_t>(ggml::round_away(value * id));
  });
}

}  // namespace

const ScaleSearchOps& scalar_search_ops() noexcept {
  static constexpr ScaleSearchOps kOps = {
      "scalar",     search_affine_groups, search_symmetric_groups, search_groups_by_descent,
      round_groups, nearest_symmetric,    nearest_affine,          nearest_magnitude};
  return kOps;
}

}  // namespace qw
