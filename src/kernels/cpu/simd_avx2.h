// The vector type of the linear kernels in AVX2: two registers per vector. Operations are those of
// simd_generic.h.
//
// Level 3 (kernels). Included by files compiled for AVX2 or AVX-VNNI only; internal linkage
// throughout.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace qw::kernels {
namespace {

/// kVnni: has the VEX form of vpdpbusd.
template <bool kVnni>
struct SimdAvx2 {
  // Lanes 0..7 are in `a`, lanes 8..15 in `b`.
  struct Bytes {
    __m256i a, b;
  };
  struct Ints {
    __m256i a, b;
  };
  struct Floats {
    __m256 a, b;
  };
  struct Pairs {  // 16-bit sums of two products each
    __m256i a, b;
  };

  static constexpr int kTilePanels = 1;  // 12 sums, 2 weights, 1 activation in 16 registers
  static constexpr int kIntPanels = 4;   // activations come from L1 for three of four
  static constexpr int kPassPanels = 1;
  static constexpr int kPassRows = 6;
  static constexpr int kHalvesPassRows = 6;
  static constexpr int kGemvRows = 8;
  static constexpr int kFewRows =
      kVnni ? 40 : 16;  // equal to a tile at 16 rows on Zen 3, November 2026
  static constexpr bool kBf16Dot = false;
  static constexpr bool kSignedWide = !kVnni;
  static constexpr int kTileOffset = 128;
  static constexpr bool kSumsPairs = !kVnni;
  static constexpr bool kWideWords = !kVnni;
  static constexpr int kWordPanels = 2;  // 16 KiB, half of L1

  static Bytes load(const uint8_t* p) { return {ints(p), ints(p + 32)}; }
  static void store(uint8_t* p, Bytes x) {
    put(p, x.a);
    put(p + 32, x.b);
  }
  static Bytes splat(uint8_t x) { return both<Bytes>(_mm256_set1_epi8(static_cast<char>(x))); }
  static Bytes splat4(const uint8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return both<Bytes>(_mm256_set1_epi32(word));
  }
  static Bytes group(const uint8_t* x, int j) { return splat4(x + 4 * j); }
  static Bytes repeat16(const uint8_t* p) {
    return both<Bytes>(_mm256_broadcastsi128_si256(half(p)));
  }
  static Bytes bit_and(Bytes x, Bytes y) {
    return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)};
  }
  static Bytes bit_or(Bytes x, Bytes y) {
    return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
  }
  static Bytes subtract(Bytes x, Bytes y) {
    return {_mm256_sub_epi8(x.a, y.a), _mm256_sub_epi8(x.b, y.b)};
  }
  template <int kBits>
  static Bytes shift_right(Bytes x) {
    return {_mm256_srli_epi16(x.a, kBits), _mm256_srli_epi16(x.b, kBits)};
  }
  template <int kBits>
  static Bytes shift_left(Bytes x) {
    return {_mm256_slli_epi16(x.a, kBits), _mm256_slli_epi16(x.b, kBits)};
  }
  static Bytes lookup(Bytes table, Bytes index) {
    return {_mm256_shuffle_epi8(table.a, index.a), _mm256_shuffle_epi8(table.b, index.b)};
  }

  static void pin(Bytes&) {}  // too few registers
  static void forget(Bytes& x) { __asm__ volatile("" : "+x"(x.a), "+x"(x.b)); }
  static void forget(Floats& x) { __asm__ volatile("" : "+x"(x.a), "+x"(x.b)); }

  static Ints zero_ints() { return both<Ints>(_mm256_setzero_si256()); }
  static Ints splat_int(int32_t x) { return both<Ints>(_mm256_set1_epi32(x)); }
  static Ints load_ints(const int32_t* p) { return {ints(p), ints(p + 8)}; }
  static void store_ints(int32_t* p, Ints x) {
    put(p, x.a);
    put(p + 8, x.b);
  }
  static Ints add(Ints x, Ints y) {
    return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
  }
  static Ints subtract(Ints x, Ints y) {
    return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
  }
  static Ints multiply(Ints x, Ints y) {
    return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)};
  }
  static Ints maximum(Ints x, Ints y) {
    return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)};
  }
  static Ints shift_right(Ints x, int bits) {
    const __m128i count = _mm_cvtsi32_si128(bits);
    return {_mm256_srl_epi32(x.a, count), _mm256_srl_epi32(x.b, count)};
  }
  template <int kBits>
  static Ints shift_left(Ints x) {
    return {_mm256_slli_epi32(x.a, kBits), _mm256_slli_epi32(x.b, kBits)};
  }
  static Bytes repeat_low_byte(Ints x) {
    const __m256i places =
        _mm256_broadcastsi128_si256(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0C0C0C0C));
    return {_mm256_shuffle_epi8(x.a, places), _mm256_shuffle_epi8(x.b, places)};
  }
  template <int kByte>
  static Ints byte_of_lane(Bytes x) {
    const __m256i mask = _mm256_set1_epi32(255);
    return {_mm256_and_si256(_mm256_srli_epi32(x.a, 8 * kByte), mask),
            _mm256_and_si256(_mm256_srli_epi32(x.b, 8 * kByte), mask)};
  }
  static Bytes as_bytes(Ints x) { return {x.a, x.b}; }
  static Ints as_ints(Bytes x) { return {x.a, x.b}; }
  static Ints widen_u8(const uint8_t* p) {
    return {_mm256_cvtepu8_epi32(half(p)), _mm256_cvtepu8_epi32(_mm_srli_si128(half(p), 8))};
  }
  static Ints widen_s8(const uint8_t* p) {
    return {_mm256_cvtepi8_epi32(half(p)), _mm256_cvtepi8_epi32(_mm_srli_si128(half(p), 8))};
  }
  static Ints widen_u16(const uint8_t* p) {
    return {_mm256_cvtepu16_epi32(half(p)), _mm256_cvtepu16_epi32(half(p + 16))};
  }
  template <bool kWide>
  static Ints dot_codes(Ints sum, Bytes codes, Bytes x) {
    return {dot_codes_half<kWide>(sum.a, codes.a, x.a), dot_codes_half<kWide>(sum.b, codes.b, x.b)};
  }
  template <bool kWide>
  static Ints dot_values(Ints sum, Bytes x, Bytes values) {
    return {dot_values_half<kWide>(sum.a, x.a, values.a),
            dot_values_half<kWide>(sum.b, x.b, values.b)};
  }
  /// The first and third byte of every lane as signed words of 16 bits; the second and fourth.
  static Bytes even_words(Bytes x) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(x.a, 8), 8),
            _mm256_srai_epi16(_mm256_slli_epi16(x.b, 8), 8)};
  }
  static Bytes odd_words(Bytes x) { return {_mm256_srai_epi16(x.a, 8), _mm256_srai_epi16(x.b, 8)}; }
  /// Of 32 codes + 128: the even ones of each four as words of code, 32 bytes behind them the odd.
  static void split_words(const uint8_t* codes, uint8_t* words) {
    const __m256i x = _mm256_xor_si256(ints(codes), _mm256_set1_epi8(-128));
    put(words, _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    put(words + 32, _mm256_srai_epi16(x, 8));
  }
  static Ints dot_words(Ints sum, Bytes x, Bytes words) {
    sum = {_mm256_add_epi32(sum.a, _mm256_madd_epi16(x.a, words.a)),
           _mm256_add_epi32(sum.b, _mm256_madd_epi16(x.b, words.b))};
    __asm__("" : "+x"(sum.a), "+x"(sum.b));  // one after the other, as add(Pairs)
    return sum;
  }
  /// Unsigned by signed. Whoever adds Pairs sees to it that none exceeds 16 bits.
  static Pairs pair_products(Bytes u, Bytes s) {
    return {_mm256_maddubs_epi16(u.a, s.a), _mm256_maddubs_epi16(u.b, s.b)};
  }
  /// One after the other: compilers would make trees of long sums, and have too few registers then.
  static Pairs add(Pairs x, Pairs y) {
    Pairs sum{_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)};
    __asm__("" : "+x"(sum.a), "+x"(sum.b));
    return sum;
  }
  static Ints add_pairs(Ints sum, Pairs x) {
    return {add_pairs(sum.a, x.a), add_pairs(sum.b, x.b)};
  }

  static Floats zero_floats() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Floats splat_float(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static Floats load_floats(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store_floats(float* p, Floats x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
  }
  static Floats add(Floats x, Floats y) {
    return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
  }
  static Floats subtract(Floats x, Floats y) {
    return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
  }
  static Floats multiply(Floats x, Floats y) {
    return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
  }
  static Floats multiply_add(Floats x, Floats y, Floats z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
  }
  static Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static Floats bits_to_floats(Ints x) {
    return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)};
  }
  static Floats widen_f16(const uint8_t* p) {
    return {_mm256_cvtph_ps(half(p)), _mm256_cvtph_ps(half(p + 16))};
  }
  static Floats bf16_even(Bytes x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))};
  }
  static Floats bf16_odd(Bytes x) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xFFFF0000U));
    return {_mm256_castsi256_ps(_mm256_and_si256(x.a, mask)),
            _mm256_castsi256_ps(_mm256_and_si256(x.b, mask))};
  }

  static int32_t largest_bits(Floats x, Floats y) {
    const __m256i m = _mm256_max_epi32(_mm256_max_epi32(magnitude(x.a), magnitude(x.b)),
                                       _mm256_max_epi32(magnitude(y.a), magnitude(y.b)));
    __m128i r = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    r = _mm_max_epi32(r, _mm_shuffle_epi32(r, 0x4E));
    r = _mm_max_epi32(r, _mm_shuffle_epi32(r, 0xB1));
    return _mm_cvtsi128_si32(r);
  }
  static Ints nearest(Floats x) { return {nearest_half(x.a), nearest_half(x.b)}; }
  static int32_t sum(Ints x) {
    const __m256i s = _mm256_add_epi32(x.a, x.b);
    __m128i r = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    r = _mm_add_epi32(r, _mm_shuffle_epi32(r, 0x4E));
    r = _mm_add_epi32(r, _mm_shuffle_epi32(r, 0xB1));
    return _mm_cvtsi128_si32(r);
  }
  static void store_low_bytes(uint8_t* p, Ints x) {
    const __m256i low = _mm256_set1_epi32(255);
    const __m256i words =
        _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xD8);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(p),
        _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
  }

 private:
  template <class T>
  static T both(__m256i x) {
    return {x, x};
  }
  static __m256i ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void put(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
  static __m128i half(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static __m256i magnitude(__m256 x) {
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7FFFFFFF));
  }
  static __m256i nearest_half(__m256 x) {
    return _mm256_cvttps_epi32(_mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static __m256i add_pairs(__m256i sum, __m256i pairs) {  // one after the other, as add(Pairs)
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    __asm__("" : "+x"(sum));
    return sum;
  }
  /// Signed by signed: |w| * (x with w's sign); at most 128 * 127 * 2, so nothing saturates.
  static __m256i dot_signed(__m256i sum, __m256i w, __m256i x) {
    return add_pairs(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)));
  }
  template <bool kWide>
  static __m256i dot_codes_half(__m256i sum, __m256i codes, __m256i x) {
    if constexpr (kVnni) {
      return dot_vnni(sum, codes, x);
    } else if constexpr (kWide) {
      return dot_signed(sum, _mm256_xor_si256(codes, _mm256_set1_epi8(-128)), x);
    } else {
      return add_pairs(sum, _mm256_maddubs_epi16(codes, x));
    }
  }
  template <bool kWide>
  static __m256i dot_values_half(__m256i sum, __m256i x, __m256i values) {
    if constexpr (kVnni) {
      return dot_vnni(sum, x, values);
    } else if constexpr (kWide) {
      return dot_signed(sum, values, _mm256_xor_si256(x, _mm256_set1_epi8(-128)));
    } else {
      return add_pairs(sum, _mm256_maddubs_epi16(x, values));
    }
  }
  static __m256i dot_vnni(__m256i sum, __m256i u, __m256i s) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sum, u, s);
#else
    return dot_signed(sum, s, u);  // never instantiated
#endif
  }
};

}  // namespace
}  // namespace qw::kernels
