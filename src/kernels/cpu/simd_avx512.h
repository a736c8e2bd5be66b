// The vector type of the linear kernels in AVX-512: one register per vector. Operations are those
// of simd_generic.h.
//
// Level 3 (kernels). Included by files compiled for AVX-512 only; internal linkage throughout.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/linear_kernel.h"

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
  static constexpr int kHalvesPassRows = 3;  // 6 products more, and 12 dots of both halves at once
  static constexpr int kGemvRows = 8;        // 8 codes, 8 sums, 2 dots
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

  static void pin(Bytes& a) { __asm__("" : "+v"(a.v)); }
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

  /// quantize_row for four blocks at once, whose largest values and sums are found together: x, 128
  /// floats, to blocks `stride` apart. offset: added to the codes.
  static constexpr int kRoundBlocks = 4;
  static void round_blocks(const float* x, int offset, ActBlock* out, int64_t stride) {
    __m512 low[4], high[4];
    __m512i top[4];
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      low[b] = _mm512_loadu_ps(x + b * kBlock);
      high[b] = _mm512_loadu_ps(x + b * kBlock + kLanes);
      top[b] = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(low[b]), magnitude),
                                _mm512_and_si512(_mm512_castps_si512(high[b]), magnitude));
    }
    const __m128i bits = largest_of(top);
    const __m128 largest = _mm_castsi128_ps(bits), most = _mm_set1_ps(127.0F);
    const __mmask8 finite = _mm_cmplt_epi32_mask(bits, _mm_set1_epi32(0x7F800000));
    const __mmask8 usable = static_cast<__mmask8>(
        finite & _mm_cmp_ps_mask(largest, _mm_set1_ps(0x1p-100F), _CMP_GE_OQ));
    const __m128 inverse = _mm_maskz_div_ps(usable, most, largest);
    const __m128 scale = _mm_mask_mov_ps(_mm_set1_ps(__builtin_nanf("")), finite,
                                         _mm_maskz_div_ps(usable, largest, most));
    __m256i sums[4];
    const __m512 inverses = _mm512_broadcast_f32x4(inverse);
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(offset));
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      const __m512 by = _mm512_permutexvar_ps(_mm512_set1_epi32(b), inverses);
      const auto kept = static_cast<__mmask16>((finite >> b & 1) != 0 ? 0xFFFF : 0);
      const __m128i first = _mm512_cvtepi32_epi8(rounded(kept, _mm512_mul_ps(low[b], by))),
                    second = _mm512_cvtepi32_epi8(rounded(kept, _mm512_mul_ps(high[b], by)));
      const __m256i codes = _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[b * stride].codes),
                          _mm256_add_epi8(codes, flip));
      sums[b] =
          _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), codes), _mm256_set1_epi16(1));
    }
    // Each 128-bit part of these holds the sums of a half in four numbers.
    const __m512i even = both(sums[0], sums[2]), odd = both(sums[1], sums[3]);
    const __m512i pairs =
        _mm512_add_epi32(_mm512_unpacklo_epi32(even, odd), _mm512_unpackhi_epi32(even, odd));
    const __m512i halves = _mm512_add_epi32(pairs, _mm512_shuffle_epi32(pairs, _MM_PERM_BADC));
    // halves: blocks 0, 1 of the first half, of the second; then blocks 2, 3.
    const __m512i at_first = _mm512_setr_epi32(0, 4, 0, 0, 1, 5, 1, 0, 8, 12, 8, 0, 9, 13, 9, 0),
                  at_second = _mm512_setr_epi32(0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 12, 0, 0, 0, 13, 0);
    const __m512i totals =
        _mm512_add_epi32(_mm512_maskz_permutexvar_epi32(0x7777, at_first, halves),
                         _mm512_maskz_permutexvar_epi32(0x4444, at_second, halves));
    const __m512 scales =
        _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                              _mm512_castps128_ps512(scale));
    const __m512 scaled = _mm512_mul_ps(scales, _mm512_cvtepi32_ps(totals));
    const __m512 head = _mm512_mask_mov_ps(
        _mm512_castsi512_ps(_mm512_shuffle_epi32(_mm512_castps_si512(scaled), _MM_PERM_CBAA)),
        0x1111, scales);
    put_parts(head, totals, out, stride);
  }

 private:
  /// Lane b: the largest of top[b].
  static __m128i largest_of(const __m512i (&top)[4]) {
    const __m512i a = _mm512_max_epi32(_mm512_unpacklo_epi32(top[0], top[1]),
                                       _mm512_unpackhi_epi32(top[0], top[1]));
    const __m512i b = _mm512_max_epi32(_mm512_unpacklo_epi32(top[2], top[3]),
                                       _mm512_unpackhi_epi32(top[2], top[3]));
    const __m512i all = _mm512_max_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m256i half =
        _mm256_max_epi32(_mm512_castsi512_si256(all), _mm512_extracti32x8_epi32(all, 1));
    return _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  }
  static __m512i rounded(__mmask16 kept, __m512 x) {
    return _mm512_maskz_cvt_roundps_epi32(kept, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static __m512i both(__m256i low, __m256i high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  /// Scale and scaled sums, and sums, of four blocks.
  static void put_parts(__m512 head, __m512i totals, ActBlock* out, int64_t stride) {
    put_part<0>(head, totals, out);
    put_part<1>(head, totals, out + stride);
    put_part<2>(head, totals, out + 2 * stride);
    put_part<3>(head, totals, out + 3 * stride);
  }
  template <int kPart>
  static void put_part(__m512 head, __m512i totals, ActBlock* out) {
    _mm_storeu_ps(&out->scale, _mm512_extractf32x4_ps(head, kPart));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out->sum),
                     _mm512_extracti32x4_epi32(totals, kPart));
  }
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
