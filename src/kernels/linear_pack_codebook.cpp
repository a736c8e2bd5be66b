// Level 3 (kernels): see the header. Types whose codes are looked up or are digits: row by row.
#include "kernels/linear_pack_codebook.h"

#include <array>
#include <tuple>

#include "base/half.h"
#include "kernels/cpu/linear_layouts.h"
#include "quant/ggml_grids.h"

namespace qw::kernels {

namespace {

uint32_t word(const uint8_t* p) noexcept {
  uint32_t w;
  std::memcpy(&w, p, 4);
  return w;
}

template <class L>
void put_block(const uint8_t* codes, int lane, int64_t block, uint8_t* unit) noexcept {
  put_codes<L::kBits>(codes, lane, unit + L::kHeader + block * 64 * L::kBits);
}

void put_f32(uint8_t* header, int lane, float value) noexcept {
  std::memcpy(header + 4 * lane, &value, 4);
}

/// Sets four bits of entry `lane` of 16 words: nibble `index`. They must have been zero.
void put_nibble(uint8_t* words, int lane, size_t index, unsigned bits) noexcept {
  const size_t byte = 4 * static_cast<size_t>(lane) + index / 2;
  words[byte] = static_cast<uint8_t>(words[byte] | bits << (4 * (index % 2)));
}
unsigned get_nibble(const uint8_t* bytes, size_t index) noexcept {
  return bytes[index / 2] >> (4 * (index % 2)) & 15U;
}

// ---- one published block into lane `lane` of a unit; false: a scale is not finite ---------------

/// The codes of a grid's points, a byte each: one word for each point.
template <class Word, size_t kPoints>
using PointCodes = std::array<Word, kPoints>;

/// code(v) for every coordinate v of a grid.
template <class Word, class Grid, class Code>
auto codes_of(const Grid& grid, Code code) noexcept {
  PointCodes<Word, std::tuple_size_v<Grid>> out{};
  for (size_t i = 0; i < grid.size(); ++i) {
    for (size_t j = 0; j < sizeof(Word); ++j)
      out[i] |= static_cast<Word>(static_cast<uint8_t>(code(grid[i][j]))) << (8 * j);
  }
  return out;
}
int iq2_code(int magnitude) noexcept {  // of 8, 25, 43
  return (magnitude > 8) + (magnitude > 25);
}

/// The codes of a point whose coordinate j is negative where bit j of `signs` is set: that turns
/// the bits `minus` of its code over.
template <class Word>
void put_point(Word codes, unsigned signs, unsigned minus, uint8_t* out) noexcept {
  const auto spread = [](unsigned four) { return (four & 15U) * 0x00204081U & 0x01010101U; };
  Word negative = spread(signs);
  if constexpr (sizeof(Word) == 8) negative |= static_cast<Word>(spread(signs >> 4)) << 32;
  codes ^= negative * minus;
  std::memcpy(out, &codes, sizeof codes);
}
constexpr unsigned kIq2Minus = 4, kIq3XxsMinus = 8;
constexpr unsigned kIq3SMinus = 15;  // (15 - m) / 2 = 15 - (15 + m) / 2 for odd m

bool put_in(const BlockIQ2_XXS& in, int lane, uint8_t* unit) noexcept {
  static const auto codes_of_point = codes_of<uint64_t>(kIq2XxsGrid, iq2_code);
  put_f32(unit, lane, f16_to_f32(in.d) * 0.125F);  // d (0.5 + s) / 4 = d / 8 (2 s + 1)
  for (size_t b = 0; b < 8; ++b) {
    const uint8_t* indices = in.qs.data() + 8 * b;
    const uint32_t signs_and_scale = word(indices + 4);
    put_nibble(unit + 64, lane, b, signs_and_scale >> 28);
    uint8_t codes[32];
    for (size_t g = 0; g < 4; ++g) {
      put_point(codes_of_point[indices[g]], iq_signs(signs_and_scale >> (7 * g)), kIq2Minus,
                codes + 8 * g);
    }
    put_block<LayoutIq2<1>>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}

/// IQ2_XS and IQ2_S; put_group(g, codes) for each eight columns.
template <class PutGroup>
void put_iq2(F16Bits d, const uint8_t* scales, PutGroup put_group, int lane,
             uint8_t* unit) noexcept {
  put_f32(unit, lane, f16_to_f32(d) * 0.125F);
  for (size_t s = 0; s < 16; ++s)
    put_nibble(unit + 64 + 64 * (s % 2), lane, s / 2, get_nibble(scales, s));
  for (size_t b = 0; b < 8; ++b) {
    uint8_t codes[32];
    for (size_t g = 0; g < 4; ++g)
      put_group(4 * b + g, codes + 8 * g);
    put_block<LayoutIq2<2>>(codes, lane, static_cast<int64_t>(b), unit);
  }
}
bool put_in(const BlockIQ2_XS& in, int lane, uint8_t* unit) noexcept {
  static const auto codes_of_point = codes_of<uint64_t>(kIq2XsGrid, iq2_code);
  const auto put_group = [&](size_t g, uint8_t* codes) {
    put_point(codes_of_point[in.qs[g] & 511U], iq_signs(in.qs[g] >> 9), kIq2Minus, codes);
  };
  put_iq2(in.d, in.scales.data(), put_group, lane, unit);
  return is_finite(in.d);
}
bool put_in(const BlockIQ2_S& in, int lane, uint8_t* unit) noexcept {
  static const auto codes_of_point = codes_of<uint64_t>(kIq2SGrid, iq2_code);
  const auto put_group = [&](size_t g, uint8_t* codes) {
    const unsigned high = in.qh[g / 4] >> (2 * (g % 4)) & 3U;
    put_point(codes_of_point[in.qs[g] | high << 8], in.signs[g], kIq2Minus, codes);
  };
  put_iq2(in.d, in.scales.data(), put_group, lane, unit);
  return is_finite(in.d);
}

bool put_in(const BlockIQ3_XXS& in, int lane, uint8_t* unit) noexcept {
  static const auto codes_of_point =
      codes_of<uint32_t>(kIq3XxsGrid, [](int magnitude) { return magnitude / 8; });  // 4, 12 .. 62
  put_f32(unit, lane, f16_to_f32(in.d) * 0.25F);  // d (0.5 + s) / 2 = d / 4 (2 s + 1)
  for (size_t b = 0; b < 8; ++b) {
    const uint32_t signs_and_scale = word(in.scales_and_signs.data() + 4 * b);
    put_nibble(unit + 64, lane, b, signs_and_scale >> 28);
    uint8_t codes[32];
    for (size_t g = 0; g < 8; ++g) {
      const unsigned signs = iq_signs(signs_and_scale >> (7 * (g / 2))) >> (4 * (g % 2));
      put_point(codes_of_point[in.qs[8 * b + g]], signs, kIq3XxsMinus, codes + 4 * g);
    }
    put_block<LayoutIq3Xxs>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}
bool put_in(const BlockIQ3_S& in, int lane, uint8_t* unit) noexcept {
  static const auto codes_of_point = codes_of<uint32_t>(
      kIq3SGrid, [](int magnitude) { return (15 + magnitude) / 2; });  // 1, 3 .. 15
  put_f32(unit, lane, f16_to_f32(in.d));
  for (size_t b = 0; b < 8; ++b) {
    put_nibble(unit + 64, lane, b, get_nibble(in.scales.data(), b));
    uint8_t codes[32];
    for (size_t g = 0; g < 8; ++g) {
      const unsigned high = in.qh[b] >> g & 1U;
      put_point(codes_of_point[in.qs[8 * b + g] | high << 8],
                get_nibble(in.signs.data(), 8 * b + g), kIq3SMinus, codes + 4 * g);
    }
    put_block<LayoutIq3S>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}

const PointCodes<uint64_t, 2048>& iq1_codes() noexcept {
  static const auto codes = codes_of<uint64_t>(kIq1Grid, [](int level) { return level + 1; });
  return codes;
}
bool put_in(const BlockIQ1_S& in, int lane, uint8_t* unit) noexcept {
  const auto& codes_of_point = iq1_codes();
  put_f32(unit, lane, f16_to_f32(in.d) * 0.125F);
  for (size_t b = 0; b < 8; ++b) {
    const unsigned qh = in.qh[b];
    put_nibble(unit + 64, lane, b, (qh >> 12 & 7U) | (~qh >> 15 & 1U) << 3);
    uint8_t codes[32];
    for (size_t g = 0; g < 4; ++g)
      std::memcpy(codes + 8 * g, &codes_of_point[in.qs[4 * b + g] | (qh >> (3 * g) & 7U) << 8], 8);
    put_block<LayoutIq1<1>>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(in.d);
}
bool put_in(const BlockIQ1_M& in, int lane, uint8_t* unit) noexcept {
  const auto& codes_of_point = iq1_codes();
  const F16Bits d = iq1_m_scale(in);
  put_f32(unit, lane, f16_to_f32(d) * 0.125F);
  for (size_t s = 0; s < 16; ++s)
    put_nibble(unit + 64 + 64 * (s % 2), lane, s / 2, in.scales[s / 4] >> (3 * (s % 4)) & 7U);
  for (size_t b = 0; b < 8; ++b) {
    uint8_t codes[32];
    unsigned shifts = 0;
    for (size_t g = 0; g < 4; ++g) {
      const unsigned qh = get_nibble(in.qh.data(), 4 * b + g);
      std::memcpy(codes + 8 * g, &codes_of_point[in.qs[4 * b + g] | (qh & 7U) << 8], 8);
      shifts |= (~qh >> 3 & 1U) << g;
    }
    put_nibble(unit + 192, lane, b, shifts);
    put_block<LayoutIq1<2>>(codes, lane, static_cast<int64_t>(b), unit);
  }
  return is_finite(d);
}

bool put_in(const BlockTQ1_0& in, int lane, uint8_t* unit) noexcept {
  put_f32(unit, lane, f16_to_f32(in.d));
  uint8_t codes[kSuperBlock];
  uint8_t* next = codes;
  // A byte is a fraction of 256 in base 3: times 3, the next digit stands above its eight bits.
  const auto digits = [&](const uint8_t* bytes, size_t n_bytes, size_t n_digits) {
    for (size_t i = 0; i < n_bytes; ++i) {
      unsigned rest = bytes[i];
      for (size_t digit = 0; digit < n_digits; ++digit) {
        next[digit * n_bytes + i] = static_cast<uint8_t>(3 * rest >> 8);
        rest = 3 * rest & 255;
      }
    }
    next += n_bytes * n_digits;
  };
  digits(in.qs.data(), 32, 5);
  digits(in.qs.data() + 32, 16, 5);
  digits(in.qh.data(), 4, 4);
  for (int64_t b = 0; b < 8; ++b)
    put_block<LayoutTernary>(codes + 32 * b, lane, b, unit);
  return is_finite(in.d);
}

template <class Block>
bool pack_panel(const BlockPanel& in, uint8_t* panel) noexcept {
  return pack_units<Block>(in, panel, [](const Rows& rows, int64_t, uint8_t* unit) {
    bool finite = true;
    for (int lane = 0; lane < kLanes; ++lane)
      finite &= put_in(load_block<Block>(rows[lane]), lane, unit);
    return finite;
  });
}

}  // namespace

std::optional<BlockPacking> codebook_packing_of(DType dtype) {
  switch (dtype) {
    case DType::kIQ1_S:
      return BlockPacking{LinearLayout::kIq1S, pack_panel<BlockIQ1_S>};
    case DType::kIQ1_M:
      return BlockPacking{LinearLayout::kIq1M, pack_panel<BlockIQ1_M>};
    case DType::kIQ2_XXS:
      return BlockPacking{LinearLayout::kIq2Xxs, pack_panel<BlockIQ2_XXS>};
    case DType::kIQ2_XS:
      return BlockPacking{LinearLayout::kIq2Xs, pack_panel<BlockIQ2_XS>};
    case DType::kIQ2_S:
      return BlockPacking{LinearLayout::kIq2Xs, pack_panel<BlockIQ2_S>};
    case DType::kIQ3_XXS:
      return BlockPacking{LinearLayout::kIq3Xxs, pack_panel<BlockIQ3_XXS>};
    case DType::kIQ3_S:
      return BlockPacking{LinearLayout::kIq3S, pack_panel<BlockIQ3_S>};
    case DType::kTQ1_0:
      return BlockPacking{LinearLayout::kTernary, pack_panel<BlockTQ1_0>};
    default:
      return std::nullopt;
  }
}

}  // namespace qw::kernels
