// The vector type of the linear kernels in plain C++: 16 lanes of int32 or f32, or 64 bytes.
//
// Level 3 (kernels). The meaning of every operation, and the path of CPUs without AVX2. The other
// simd_*.h give the same operations by intrinsics; linear_*.h are written against them. Everything
// here has internal linkage: a function compiled for a newer CPU must not replace one for an older.
#pragma once

#include <stdint.h>
#include <string.h>

namespace qw::kernels {
namespace {

struct SimdGeneric {
  struct Bytes {
    uint8_t v[64];
  };
  struct Ints {
    int32_t v[16];
  };
  struct Floats {
    float v[16];
  };

  static constexpr int kTilePanels = 1;  // panels of a tile of floats: all sums stay in registers
  static constexpr int kIntPanels = 1;   // panels of a tile of integers
  static constexpr int kPassPanels = 1;  // of these, panels that a tile of integers takes at a time
  static constexpr int kPassRows = 6;    // ... and rows: all of a group or half of them
  static constexpr int kHalvesPassRows = 6;  // kPassRows where a block has two scales
  static constexpr int kGemvRows = 8;        // rows that a gemv of integers takes at a time
  static constexpr int kFewRows = 40;        // LinearKernel::few_rows of integers
  static constexpr bool kBf16Dot = false;
  static constexpr bool kSignedWide = false;  // see dot_codes, dot_values
  static constexpr int kTileOffset = 128;     // added to activations for dot_values

  // ---- 64 bytes ----
  static Bytes load(const uint8_t* p) {
    Bytes r;
    memcpy(r.v, p, 64);
    return r;
  }
  static void store(uint8_t* p, const Bytes& a) { memcpy(p, a.v, 64); }
  static Bytes splat(uint8_t x) {
    Bytes r;
    memset(r.v, x, 64);
    return r;
  }
  static Bytes splat4(const uint8_t* p) {  // four bytes to every lane
    Bytes r;
    for (int i = 0; i < 16; ++i)
      memcpy(r.v + 4 * i, p, 4);
    return r;
  }
  /// Activations of group j, as dot_codes and dot_values take them.
  static Bytes group(const uint8_t* x, int j) { return splat4(x + 4 * j); }
  static Bytes repeat16(const uint8_t* p) {  // a table for lookup
    Bytes r;
    for (int i = 0; i < 4; ++i)
      memcpy(r.v + 16 * i, p, 16);
    return r;
  }
  static Bytes bit_and(const Bytes& a, const Bytes& b) {
    Bytes r;
    for (int i = 0; i < 64; ++i)
      r.v[i] = static_cast<uint8_t>(a.v[i] & b.v[i]);
    return r;
  }
  static Bytes bit_or(const Bytes& a, const Bytes& b) {
    Bytes r;
    for (int i = 0; i < 64; ++i)
      r.v[i] = static_cast<uint8_t>(a.v[i] | b.v[i]);
    return r;
  }
  static Bytes subtract(const Bytes& a, const Bytes& b) {
    Bytes r;
    for (int i = 0; i < 64; ++i)
      r.v[i] = static_cast<uint8_t>(a.v[i] - b.v[i]);
    return r;
  }
  /// Shifts whose bits from the neighbouring byte the caller masks away.
  template <int kBits>
  static Bytes shift_right(const Bytes& a) {
    Bytes r;
    for (int i = 0; i < 64; ++i)
      r.v[i] = static_cast<uint8_t>(a.v[i] >> kBits);
    return r;
  }
  template <int kBits>
  static Bytes shift_left(const Bytes& a) {
    Bytes r;
    for (int i = 0; i < 64; ++i)
      r.v[i] = static_cast<uint8_t>(a.v[i] << kBits);
    return r;
  }
  static Bytes lookup(const Bytes& table, const Bytes& index) {  // index < 16
    Bytes r;
    for (int i = 0; i < 64; ++i)
      r.v[i] = table.v[index.v[i] & 15];
    return r;
  }

  /// Keeps `a` in its register, where the compiler might load it again for every use.
  static void pin(Bytes&) {}

  /// Makes the compiler forget what it knows of `a` (for measuring).
  static void forget(Bytes& a) { __asm__ volatile("" : "+m"(a)); }
  static void forget(Floats& a) { __asm__ volatile("" : "+m"(a)); }

  // ---- 16 int32 ----
  // Sums and products wrap, as those of instructions do: panels from a file may hold anything.
  static Ints zero_ints() { return Ints{}; }
  static Ints splat_int(int32_t x) {
    Ints r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = x;
    return r;
  }
  static Ints load_ints(const int32_t* p) {
    Ints r;
    memcpy(r.v, p, 64);
    return r;
  }
  static void store_ints(int32_t* p, const Ints& a) { memcpy(p, a.v, 64); }
  static Ints add(const Ints& a, const Ints& b) {
    Ints r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i]));
    return r;
  }
  static Ints subtract(const Ints& a, const Ints& b) {
    Ints r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) - static_cast<uint32_t>(b.v[i]));
    return r;
  }
  static Ints multiply(const Ints& a, const Ints& b) {
    Ints r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) * static_cast<uint32_t>(b.v[i]));
    return r;
  }
  static Ints maximum(const Ints& a, const Ints& b) {
    Ints r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return r;
  }
  static Ints shift_right(const Ints& a, int bits) {  // of unsigned words
    Ints r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> bits);
    return r;
  }
  template <int kBits>
  static Ints shift_left(const Ints& a) {
    Ints r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << kBits);
    return r;
  }
  static Bytes repeat_low_byte(const Ints& a) {  // the lowest byte of a lane in all four
    Bytes r;
    for (int i = 0; i < 64; ++i)
      r.v[i] = static_cast<uint8_t>(a.v[i / 4]);
    return r;
  }
  template <int kByte>
  static Ints byte_of_lane(const Bytes& a) {  // byte kByte of each lane, unsigned
    Ints r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = a.v[4 * i + kByte];
    return r;
  }
  static Bytes as_bytes(const Ints& a) {
    Bytes r;
    memcpy(r.v, a.v, 64);
    return r;
  }
  static Ints as_ints(const Bytes& a) {
    Ints r;
    memcpy(r.v, a.v, 64);
    return r;
  }
  static Ints widen_u8(const uint8_t* p) {
    Ints r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = p[i];
    return r;
  }
  static Ints widen_s8(const uint8_t* p) {
    Ints r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = static_cast<int8_t>(p[i]);  // NOLINT(bugprone-signed-char-misuse): a number
    return r;
  }
  static Ints widen_u16(const uint8_t* p) {
    Ints r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = p[2 * i] | p[2 * i + 1] << 8;
    return r;
  }
  /// Sums of four products per lane, exact: codes are unsigned, at most 127 unless kWide.
  /// With kWide and kSignedWide, codes count as code - 128.
  template <bool kWide>
  static Ints dot_codes(Ints sum, const Bytes& codes, const Bytes& x) {
    for (int i = 0; i < 64; ++i)
      sum.v[i / 4] += codes.v[i] * static_cast<int8_t>(x.v[i]);
    return sum;
  }
  /// As above with signed values, at most 64 in magnitude unless kWide, and unsigned x, or signed x
  /// if kTileOffset is 0. With kWide, kSignedWide and an offset, x counts as x - 128.
  /// A type that has kWideWords says by even_words, odd_words, split_words and dot_words how values
  /// of kWide and x are multiplied in a tile instead (simd_avx2.h).
  template <bool kWide>
  static Ints dot_values(Ints sum, const Bytes& x, const Bytes& values) {
    for (int i = 0; i < 64; ++i)
      sum.v[i / 4] += x.v[i] * static_cast<int8_t>(values.v[i]);
    return sum;
  }

  // ---- 16 floats ----
  static Floats zero_floats() { return Floats{}; }
  static Floats splat_float(float x) {
    Floats r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = x;
    return r;
  }
  static Floats load_floats(const float* p) {
    Floats r;
    memcpy(r.v, p, 64);
    return r;
  }
  static void store_floats(float* p, const Floats& a) { memcpy(p, a.v, 64); }
  static Floats add(const Floats& a, const Floats& b) {
    Floats r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = a.v[i] + b.v[i];
    return r;
  }
  static Floats subtract(const Floats& a, const Floats& b) {
    Floats r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = a.v[i] - b.v[i];
    return r;
  }
  static Floats multiply(const Floats& a, const Floats& b) {
    Floats r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = a.v[i] * b.v[i];
    return r;
  }
  /// a * b + c: two roundings here, one where the CPU fuses.
  static Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
    Floats r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = a.v[i] * b.v[i] + c.v[i];
    return r;
  }
  static Floats to_floats(const Ints& a) {
    Floats r;
    for (int i = 0; i < 16; ++i)
      r.v[i] = static_cast<float>(a.v[i]);
    return r;
  }
  static Floats bits_to_floats(const Ints& a) {
    Floats r;
    memcpy(r.v, a.v, 64);
    return r;
  }
  static Floats widen_f16(const uint8_t* p) {
    Floats r;
    for (int i = 0; i < 16; ++i) {
      uint16_t bits;
      memcpy(&bits, p + 2 * i, 2);
      const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
      const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
      float magnitude = static_cast<float>(mantissa) * 0x1p-24F;  // zero and subnormals
      uint32_t word;
      memcpy(&word, &magnitude, 4);
      if (exponent == 31)
        word = 0x7F800000U | mantissa << 13 | (mantissa != 0 ? 0x400000U : 0U);
      else if (exponent != 0)
        word = (exponent + 112) << 23 | mantissa << 13;
      word |= sign;
      memcpy(&r.v[i], &word, 4);
    }
    return r;
  }
  /// Even and odd elements of bf16 pairs.
  static Floats bf16_even(const Bytes& a) {
    Ints w = as_ints(a);
    for (int i = 0; i < 16; ++i)
      w.v[i] = static_cast<int32_t>(static_cast<uint32_t>(w.v[i]) << 16);
    return bits_to_floats(w);
  }
  static Floats bf16_odd(const Bytes& a) {
    Ints w = as_ints(a);
    for (int i = 0; i < 16; ++i)
      w.v[i] = static_cast<int32_t>(static_cast<uint32_t>(w.v[i]) & 0xFFFF0000U);
    return bits_to_floats(w);
  }

  // ---- rounding of activations ----
  /// The bits of the largest magnitude of 32 floats; NaN counts above infinity.
  static int32_t largest_bits(const Floats& a, const Floats& b) {
    int32_t best = 0;
    for (int i = 0; i < 32; ++i) {
      int32_t bits;
      memcpy(&bits, i < 16 ? &a.v[i] : &b.v[i - 16], 4);
      bits &= 0x7FFFFFFF;
      if (bits > best) best = bits;
    }
    return best;
  }
  /// Nearest integers, ties to even, of |a| < 2^22.
  static Ints nearest(const Floats& a) {
    Ints r;
    for (int i = 0; i < 16; ++i) {
      volatile float shifted = a.v[i] + 0x1.8p23F;  // the sum's last bit is 1
      r.v[i] = static_cast<int32_t>(shifted - 0x1.8p23F);
    }
    return r;
  }
  static int32_t sum(const Ints& a) {
    int32_t r = 0;
    for (int i = 0; i < 16; ++i)
      r += a.v[i];
    return r;
  }
  static void store_low_bytes(uint8_t* p, const Ints& a) {
    for (int i = 0; i < 16; ++i)
      p[i] = static_cast<uint8_t>(a.v[i]);
  }
};

}  // namespace
}  // namespace qw::kernels
