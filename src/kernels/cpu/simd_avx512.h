// The vector type of the linear kernels in AVX-512: one register per vector. Operations are those
// of simd_generic.h.
//
// Level 3 (kernels). Included by files compiled for AVX-512 only; internal linkage throughout.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace qw::kernels {
namespace {

/// kVnni: has vpdpbusd; kBf16: has vdpbf16ps.
template <bool kVnni, bool kBf16>
struct SimdAvx512 {
  // Distinct types over one register, so that overloads and mistakes are told apart.
  struct Bytes {
    __m512i v;
  };
  struct Ints {
    __m512i v;
  };
  struct Floats {
    __m512 v;
  };

  static constexpr int kTilePanels = 4;  // floats: 24 sums, 4 weights, 1 activation in 32 registers
  static constexpr int kIntPanels = 4;   // 32 KiB of values
  static constexpr int kPassPanels = 2;  // int8: 12 dots, 12 sums, 2 weights, 1 activation
  static constexpr int kPassRows = 6;
  static constexpr int kGemvRows = 8;  // 8 codes, 8 sums, 2 dots
  static constexpr int kFewRows = 40;
  static constexpr bool kBf16Dot = kBf16;
  static constexpr bool kSignedWide = !kVnni;
  static constexpr int kTileOffset = 128;

  static Bytes load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  static void store(uint8_t* p, Bytes a) { _mm512_storeu_si512(p, a.v); }
  static Bytes splat(uint8_t x) { return {_mm512_set1_epi8(static_cast<char>(x))}; }
  static Bytes splat4(const uint8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return {_mm512_set1_epi32(word)};
  }
  static Bytes group(const uint8_t* x, int j) { return splat4(x + 4 * j); }
  static Bytes repeat16(const uint8_t* p) {
    return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static Bytes bit_and(Bytes a, Bytes b) { return {_mm512_and_si512(a.v, b.v)}; }
  static Bytes bit_or(Bytes a, Bytes b) { return {_mm512_or_si512(a.v, b.v)}; }
  static Bytes subtract(Bytes a, Bytes b) { return {_mm512_sub_epi8(a.v, b.v)}; }
  template <int kBits>
  static Bytes shift_right(Bytes a) {
    return {_mm512_srli_epi16(a.v, kBits)};
  }
  template <int kBits>
  static Bytes shift_left(Bytes a) {
    return {_mm512_slli_epi16(a.v, kBits)};
  }
  static Bytes lookup(Bytes table, Bytes index) { return {_mm512_shuffle_epi8(table.v, index.v)}; }

  static void forget(Bytes& a) { __asm__ volatile("" : "+v"(a.v)); }
  static void forget(Floats& a) { __asm__ volatile("" : "+v"(a.v)); }

  static Ints zero_ints() { return {_mm512_setzero_si512()}; }
  static Ints splat_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
  static Ints load_ints(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
  static void store_ints(int32_t* p, Ints a) { _mm512_storeu_si512(p, a.v); }
  static Ints add(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
  static Ints subtract(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
  static Ints multiply(Ints a, Ints b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
  static Ints maximum(Ints a, Ints b) { return {_mm512_max_epi32(a.v, b.v)}; }
  static Ints shift_right(Ints a, int bits) {
    return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(bits))};
  }
  template <int kBits>
  static Ints shift_left(Ints a) {
    return {_mm512_slli_epi32(a.v, kBits)};
  }
  static Bytes repeat_low_byte(Ints a) {
    return {_mm512_shuffle_epi8(
        a.v, _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0C0C0C0C)))};
  }
  template <int kByte>
  static Ints byte_of_lane(Bytes a) {
    return {_mm512_and_si512(_mm512_srli_epi32(a.v, 8 * kByte), _mm512_set1_epi32(255))};
  }
  static Bytes as_bytes(Ints a) { return {a.v}; }
  static Ints as_ints(Bytes a) { return {a.v}; }
  static Ints widen_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(half(p))}; }
  static Ints widen_s8(const uint8_t* p) { return {_mm512_cvtepi8_epi32(half(p))}; }
  static Ints widen_u16(const uint8_t* p) {
    return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  template <bool kWide>
  static Ints dot_codes(Ints sum, Bytes codes, Bytes x) {
    if constexpr (kVnni) {
      return {_mm512_dpbusd_epi32(sum.v, codes.v, x.v)};
    } else if constexpr (kWide) {
      return dot_signed(sum, _mm512_xor_si512(codes.v, _mm512_set1_epi8(-128)), x.v);
    } else {
      return add_pairs(sum, _mm512_maddubs_epi16(codes.v, x.v));
    }
  }
  template <bool kWide>
  static Ints dot_values(Ints sum, Bytes x, Bytes values) {
    if constexpr (kVnni) {
      return {_mm512_dpbusd_epi32(sum.v, x.v, values.v)};
    } else if constexpr (kWide) {
      return dot_signed(sum, values.v, _mm512_xor_si512(x.v, _mm512_set1_epi8(-128)));
    } else {
      return add_pairs(sum, _mm512_maddubs_epi16(x.v, values.v));
    }
  }

  static Floats zero_floats() { return {_mm512_setzero_ps()}; }
  static Floats splat_float(float x) { return {_mm512_set1_ps(x)}; }
  static Floats load_floats(const float* p) { return {_mm512_loadu_ps(p)}; }
  static void store_floats(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
  static Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
  static Floats subtract(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
  static Floats multiply(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static Floats multiply_add(Floats a, Floats b, Floats c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
  }
  static Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
  static Floats bits_to_floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
  static Floats widen_f16(const uint8_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Floats bf16_even(Bytes a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))}; }
  static Floats bf16_odd(Bytes a) {
    return {_mm512_castsi512_ps(
        _mm512_and_si512(a.v, _mm512_set1_epi32(static_cast<int>(0xFFFF0000U))))};
  }
#ifdef __AVX512BF16__
  /// sum + w[even] * x[even] + w[odd] * x[odd], as the instruction rounds.
  static Floats dot_bf16(Floats sum, Bytes w, Bytes x) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)w.v, (__m512bh)x.v)};
  }
#endif

  static int32_t largest_bits(Floats a, Floats b) {
    const __m512i mask = _mm512_set1_epi32(0x7FFFFFFF);
    return _mm512_reduce_max_epi32(
        _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a.v), mask),
                         _mm512_and_si512(_mm512_castps_si512(b.v), mask)));
  }
  static Ints nearest(Floats a) {
    return {_mm512_cvt_roundps_epi32(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  static int32_t sum(Ints a) {
    return _mm512_reduce_add_epi32(a.v);
  }
  static void store_low_bytes(uint8_t* p, Ints a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
  }

 private:
  static __m128i half(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static Ints add_pairs(Ints sum, __m512i pairs) {
    return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
  }
  /// Signed by signed: |w| * (x with w's sign); at most 128 * 127 * 2, so nothing saturates.
  static Ints dot_signed(Ints sum, __m512i w, __m512i x) {
    const __mmask64 negative = _mm512_movepi8_mask(w);
    const __m512i signed_x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
    return add_pairs(sum, _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_x));
  }
};

}  // namespace
}  // namespace qw::kernels
