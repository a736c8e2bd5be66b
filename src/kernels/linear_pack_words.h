// Words of 16 rows side by side: what packing permutes, and how bits of codes become planes.
//
// Level 3 (kernels), private to packing. Written with the compilers' 16-byte vectors, which every
// 64-bit instruction set has: packing is bound by memory, and needs no kernel per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/linear_kernel.h"

namespace qw::kernels {

/// Entry i is a word of four bytes of row i, for kLanes rows.
struct Words {
  using Quad = uint32_t __attribute__((vector_size(16)));
  Quad quads[4];

  friend Words operator&(const Words& a, uint32_t mask) noexcept {
    return a.map([&](const Quad& q) { return q & mask; });
  }
  friend Words operator^(const Words& a, uint32_t mask) noexcept {
    return a.map([&](const Quad& q) { return q ^ mask; });
  }
  friend Words operator<<(const Words& a, int bits) noexcept {
    return a.map([&](const Quad& q) { return q << bits; });
  }
  friend Words operator>>(const Words& a, int bits) noexcept {
    return a.map([&](const Quad& q) { return q >> bits; });
  }
  friend Words operator|(const Words& a, const Words& b) noexcept {
    return {{a.quads[0] | b.quads[0], a.quads[1] | b.quads[1], a.quads[2] | b.quads[2],
             a.quads[3] | b.quads[3]}};
  }

 private:
  template <class F>
  Words map(F f) const noexcept {
    return {{f(quads[0]), f(quads[1]), f(quads[2]), f(quads[3])}};
  }
};
static_assert(sizeof(Words) == 4 * kLanes);

/// kLanes rows of bytes.
struct Rows {
  const std::byte* first;
  int64_t stride;  // bytes from one to the next
  const std::byte* operator[](int lane) const noexcept { return first + lane * stride; }
};

/// Words at `offset` of every row: out[j] is word j. kWords: a multiple of 4.
template <int kWords>
inline void read_words(const Rows& rows, size_t offset, Words* out) noexcept {
  static_assert(kWords % 4 == 0);
  for (int j = 0; j < kWords; j += 4) {
    for (int q = 0; q < 4; ++q) {
      Words::Quad row[4];
      for (int i = 0; i < 4; ++i)
        std::memcpy(&row[i], rows[4 * q + i] + offset + 4 * j, 16);
      const Words::Quad low01 = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5),
                        high01 = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7),
                        low23 = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5),
                        high23 = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
      out[j].quads[q] = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
      out[j + 1].quads[q] = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
      out[j + 2].quads[q] = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
      out[j + 3].quads[q] = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
    }
  }
}

/// One word at `offset` of every row.
inline Words read_word(const Rows& rows, size_t offset) noexcept {
  Words out;
  for (int lane = 0; lane < kLanes; ++lane)
    std::memcpy(reinterpret_cast<std::byte*>(&out) + 4 * lane, rows[lane] + offset, 4);
  return out;
}

/// out[16 s + i] is byte s of entry i. Seen as one row of 64 bytes, a byte's place has the bits of
/// i and then of s; interleaving the two halves of the row turns the place left by one bit.
inline void put_bytes(const Words& words, uint8_t* out) noexcept {
  using Bytes = uint8_t __attribute__((vector_size(16)));
  Bytes row[4];
  std::memcpy(row, &words, sizeof row);
  for (int turn = 0; turn < 4; ++turn) {
    const Bytes a = row[0], b = row[1], c = row[2], d = row[3];
    const auto low = [](const Bytes& x, const Bytes& y) {
      return __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    };
    const auto high = [](const Bytes& x, const Bytes& y) {
      return __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                     31);
    };
    row[0] = low(a, c), row[1] = high(a, c), row[2] = low(b, d), row[3] = high(b, d);
  }
  std::memcpy(out, row, sizeof row);
}

/// The bits `mask` of each of four codes.
template <class W>
inline W bits_of(const W& codes, uint32_t mask) noexcept {
  return codes & mask * 0x01010101U;
}

/// The planes of linear_layouts.h of eight groups of four codes below 2^kBits. W: a word of one
/// row, or Words.
template <int kBits, class W>
inline void make_planes(const W* g, W* planes) noexcept {
  if constexpr (kBits == 1) {
    planes[0] = g[0];
    for (int j = 1; j < 8; ++j)
      planes[0] = planes[0] | g[j] << j;
  } else if constexpr (kBits == 2) {
    for (int v = 0; v < 2; ++v)
      planes[v] = g[4 * v] | g[4 * v + 1] << 2 | (g[4 * v + 2] << 4 | g[4 * v + 3] << 6);
  } else if constexpr (kBits == 3) {
    planes[0] = g[0] | g[3] << 3 | bits_of(g[6], 3) << 6;
    planes[1] = g[1] | g[4] << 3 | bits_of(g[7], 3) << 6;
    planes[2] = g[2] | g[5] << 3 | (bits_of(g[6], 4) << 4 | bits_of(g[7], 4) << 5);
  } else if constexpr (kBits == 4) {
    for (int v = 0; v < 4; ++v)
      planes[v] = g[v] | g[v + 4] << 4;
  } else if constexpr (kBits == 5) {
    planes[0] = g[0] | bits_of(g[5], 7) << 5;
    planes[1] = g[1] | bits_of(g[6], 7) << 5;
    planes[2] = g[2] | bits_of(g[7], 7) << 5;
    planes[3] = g[3] | bits_of(g[5], 24) << 2 | bits_of(g[7], 8) << 4;
    planes[4] = g[4] | bits_of(g[6], 24) << 2 | bits_of(g[7], 16) << 3;
  } else if constexpr (kBits == 6) {
    for (int v = 0; v < 6; ++v)
      planes[v] = g[v] | bits_of(g[6 + v / 3] >> (2 * (v % 3)), 3) << 6;
  } else {
    static_assert(kBits == 8);
    for (int v = 0; v < 8; ++v)
      planes[v] = g[v];
  }
}

/// Writes 32 codes of every row, eight groups of four, as a block's planes.
template <int kBits>
inline void put_planes(const Words* groups, uint8_t* block) noexcept {
  Words planes[kBits];
  make_planes<kBits>(groups, planes);
  std::memcpy(block, planes, sizeof planes);
}

}  // namespace qw::kernels
