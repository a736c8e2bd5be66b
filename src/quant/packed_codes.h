// Shared by the GPTQ and AWQ readers: fields of 2, 3, 4 or 8 bits in little-endian words, lowest
// field first, spread to one byte each; and the small tensors beside them.
//
// Level 2 (quant), private to this folder. No SIMD: eight codes at a time in a 64-bit register
// (divide-and-conquer bit deposits, after Hacker's Delight 7-2 and 7-3).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>

#include "base/error.h"
#include "base/half.h"
#include "tensor/raw_tensor.h"

namespace qw::packed {

static_assert(std::endian::native == std::endian::little, "byte i of a word is its bits 8i..8i+7");

inline uint32_t load_u32(const std::byte* bytes, int64_t index) noexcept {
  uint32_t word;
  std::memcpy(&word, bytes + index * 4, sizeof word);
  return word;
}

/// Eight fields of kBits bits in the low 8 * kBits bits of `packed` -> byte j is field j.
template <int kBits>
uint64_t spread(uint64_t packed) noexcept {
  static_assert(kBits == 2 || kBits == 3 || kBits == 4);
  constexpr uint64_t kOne = 0x0101010101010101u, kHalf = 0x0001000100010001u;
  constexpr uint64_t kFour = 0x0000000100000001u;
  uint64_t x = packed;
  x = (x | x << (32 - 4 * kBits)) & kFour * ((1u << 4 * kBits) - 1);
  x = (x | x << (16 - 2 * kBits)) & kHalf * ((1u << 2 * kBits) - 1);
  x = (x | x << (8 - kBits)) & kOne * ((1u << kBits) - 1);
  return x;
}

inline void store_codes(uint8_t* out, uint64_t eight) noexcept {
  std::memcpy(out, &eight, 8);
}

/// The 32 codes in kBits words that lie `stride` words apart.
template <int kBits>
void spread_32(const std::byte* words, int64_t stride, uint8_t* out) noexcept {
  const auto word = [&](int64_t i) -> uint64_t { return load_u32(words, i * stride); };
  if constexpr (kBits == 8) {
    for (int64_t i = 0; i < 8; i += 2)
      store_codes(out + 4 * i, word(i) | word(i + 1) << 32);
  } else if constexpr (kBits == 4) {
    for (int64_t i = 0; i < 4; ++i)
      store_codes(out + 8 * i, spread<4>(word(i)));
  } else if constexpr (kBits == 3) {
    const uint64_t low = word(0) | word(1) << 32, high = word(2);
    store_codes(out, spread<3>(low & 0xFFFFFF));
    store_codes(out + 8, spread<3>(low >> 24 & 0xFFFFFF));
    store_codes(out + 16, spread<3>((low >> 48 | high << 16) & 0xFFFFFF));
    store_codes(out + 24, spread<3>(high >> 8));
  } else {
    for (int64_t i = 0; i < 2; ++i) {
      store_codes(out + 16 * i, spread<2>(word(i) & 0xFFFF));
      store_codes(out + 16 * i + 8, spread<2>(word(i) >> 16));
    }
  }
}

/// A tensor of floats beside the codes: element `index`, widened exactly.
struct FloatTensor {
  const std::byte* data = nullptr;
  DType dtype = DType::kF16;
  std::shared_ptr<const void> owner;

  float operator[](int64_t index) const noexcept {
    if (dtype == DType::kF32) return std::bit_cast<float>(load_u32(data, index));
    uint16_t bits;
    std::memcpy(&bits, data + index * 2, sizeof bits);
    return dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
  }
};

/// Rows [row, row + n_rows) of a tensor stored by group, [n_groups, n]: out[r * n_groups + g].
inline void gather_by_group(const FloatTensor& tensor, int64_t n, int64_t n_groups, int64_t row,
                            int64_t n_rows, float* out) noexcept {
  for (int64_t g = 0; g < n_groups; ++g) {
    for (int64_t r = 0; r < n_rows; ++r)
      out[r * n_groups + g] = tensor[g * n + row + r];
  }
}

/// Checks of one published tensor. `module` and `suffix` name it in messages.
/// Errors: corrupt (null, type, rank, or a byte count that is not the shape's).
const RawTensor& require(const RawTensor* tensor, std::string_view module, std::string_view suffix,
                         int rank, DType dtype);
/// The same for f16, bf16 or f32, as a FloatTensor.
FloatTensor require_floats(const RawTensor* tensor, std::string_view module,
                           std::string_view suffix, int rank);
/// Errors: corrupt when axis `axis` is not in [least, most].
void require_size(const RawTensor& tensor, std::string_view module, std::string_view suffix,
                  int axis, int64_t least, int64_t most);

/// Columns per group and their number from a configured group size (-1: one group of all k).
/// Errors: corrupt, for 0 or a negative size other than -1.
struct Grouping {
  int64_t size = 0, count = 0;
};
Grouping group_columns(int64_t k, int64_t group_size, std::string_view module);

}  // namespace qw::packed
