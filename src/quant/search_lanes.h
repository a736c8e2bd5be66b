// Sixteen sub-blocks side by side, as the searches of scale_search_ops.h take them.
//
// Level 2 (quant), private to this folder. Sums run over the values of a sub-block in order, all
// sub-blocks at a time, which compilers turn into lanes.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "quant/scale_search.h"
#include "quant/scale_search_ops.h"

namespace qw::ggml {

/// kSize values in each sub-block, kSearchGroups of them; those that are not loaded are zeros.
template <size_t kSize>
struct SearchLanes {
  static constexpr size_t kLanes = kSearchGroups;
  using Values = std::array<float, kSize * kLanes>;  // value i of sub-block s at [i * kLanes + s]
  using PerLane = std::array<float, kLanes>;

  alignas(64) Values x{}, weights{}, codes{};
  alignas(64) PerLane scale{}, min{}, grid_scale{}, grid_offset{};

  SearchGroups groups() noexcept {
    return {
        static_cast<int>(kSize), x.data(), weights.data(), codes.data(), scale.data(), min.data()};
  }
  /// grid_scale and grid_offset with these bounds of the codes.
  GroupGrid grid(int lowest, int highest) const noexcept {
    return {grid_scale.data(), grid_offset.data(), lowest, highest};
  }

  void load(const float* from, size_t n_sub_blocks) noexcept { spread(from, n_sub_blocks, x); }
  void load_weights(const float* from, size_t n_sub_blocks) noexcept {
    spread(from, n_sub_blocks, weights);
  }
  template <class Weight>
  void weigh_by(Weight weight) noexcept {
    for (size_t at = 0; at < x.size(); ++at)
      weights[at] = weight(x[at]);
  }
  /// |x| plus the root mean square of the sub-block.
  void weigh_by_rms() noexcept {
    PerLane sums{};
    for (size_t i = 0; i < kSize; ++i) {
      for (size_t s = 0; s < kLanes; ++s)
        sums[s] += x[i * kLanes + s] * x[i * kLanes + s];
    }
    for (float& sum : sums)
      sum = std::sqrt(sum / static_cast<float>(kSize));
    for (size_t i = 0; i < kSize; ++i) {
      for (size_t s = 0; s < kLanes; ++s)
        weights[i * kLanes + s] = sums[s] + std::fabs(x[i * kLanes + s]);
    }
  }
  /// importance * sqrt(mean_square(sub-block) + x^2): larger values count more.
  template <class MeanSquare>
  void weigh(const Importance* importance, size_t n_sub_blocks, MeanSquare mean_square) noexcept {
    load_weights(importance->weights, n_sub_blocks);
    PerLane squares{};
    for (size_t s = 0; s < n_sub_blocks; ++s)
      squares[s] = mean_square(s);
    for (size_t i = 0; i < kSize; ++i) {
      for (size_t s = 0; s < kLanes; ++s) {
        const size_t at = i * kLanes + s;
        weights[at] *= std::sqrt(squares[s] + x[at] * x[at]);
      }
    }
  }
  PerLane weight_sums() const noexcept {
    PerLane sums{};
    for (size_t i = 0; i < kSize; ++i) {
      for (size_t s = 0; s < kLanes; ++s)
        sums[s] += weights[i * kLanes + s];
    }
    return sums;
  }
  /// Codes as distances from the lowest, sub-block after sub-block.
  std::array<uint8_t, kSize * kLanes> codes_from(int lowest) const noexcept {
    std::array<uint8_t, kSize * kLanes> out;
    for (size_t s = 0; s < kLanes; ++s) {
      for (size_t i = 0; i < kSize; ++i)
        out[s * kSize + i] = static_cast<uint8_t>(static_cast<int>(codes[i * kLanes + s]) - lowest);
    }
    return out;
  }

 private:
  static void spread(const float* from, size_t n_sub_blocks, Values& to) noexcept {
    for (size_t s = 0; s < n_sub_blocks; ++s) {
      for (size_t i = 0; i < kSize; ++i)
        to[i * kLanes + s] = from[s * kSize + i];
    }
  }
};

}  // namespace qw::ggml
