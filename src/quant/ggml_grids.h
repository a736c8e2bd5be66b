// The codebooks of the IQ types: points of eight or four small integers that an index picks.
//
// Level 2 (quant). What each index selects and how it is scaled: ggml_blocks_layout.h.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace qw {

template <size_t kPoints>
using Grid8 = std::array<std::array<int8_t, 8>, kPoints>;
template <size_t kPoints>
using Grid4 = std::array<std::array<int8_t, 4>, kPoints>;

extern const Grid8<2048> kIq1Grid;    // IQ1_S, IQ1_M: -1, 0, 1
extern const Grid8<256> kIq2XxsGrid;  // magnitudes 8, 25, 43
extern const Grid8<512> kIq2XsGrid;
extern const Grid8<1024> kIq2SGrid;
extern const Grid4<256> kIq3XxsGrid;  // magnitudes 4, 12, ... 52, 62
extern const Grid4<512> kIq3SGrid;    // magnitudes 1, 3, ... 15

/// IQ1 adds this, or its negative, to every grid element of a group.
inline constexpr float kIq1Delta = 0.125F;

/// The eight sign bits of a 7-bit sign index: the eighth makes the number of minus signs even.
constexpr uint8_t iq_signs(unsigned index) noexcept {
  const unsigned seven = index & 127;
  return static_cast<uint8_t>(seven | (std::popcount(seven) & 1u) << 7);
}

}  // namespace qw
