// Sixteen f32 lanes in AVX-512 F, BW, DQ, VL. See generic/elementwise_vec.h for what each name
// means.
//
// Level 3 (kernels).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace qw::kernels::avx512 {
namespace {

struct Vec {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kAccumulators = 24;
  static constexpr const char* kName = "avx512";

  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F load_n(const float* p, int64_t n, float fill) {
    return _mm512_mask_loadu_ps(set1(fill), below(static_cast<int>(n < kLanes ? n : kLanes)), p);
  }
  static void store_n(float* p, int64_t n, F x) {
    _mm512_mask_storeu_ps(p, below(static_cast<int>(n < kLanes ? n : kLanes)), x);
  }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F round(F x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F scale_by_power(F x, F n) { return _mm512_scalef_ps(x, n); }
  static F scale_by_normal_power(F x, F n) { return scale_by_power(x, n); }
  static F where_less(F a, F b, F x, F y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }
  static F keep(F x, int begin, int end, F other) {
    const auto mask = static_cast<__mmask16>(below(clamp(end)) & ~below(clamp(begin)));
    return _mm512_mask_blend_ps(mask, other, x);
  }
  static bool all_finite(F x) {
    constexpr int kNanOrInfinity = 0x01 | 0x08 | 0x10 | 0x80;
    return _mm512_fpclass_ps_mask(x, kNanOrInfinity) == 0;
  }
  static float reduce_add(F x) {
    const __m256 low = _mm512_castps512_ps256(x), high = _mm512_extractf32x8_ps(x, 1);
    const __m256 half = _mm256_add_ps(low, high);
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
  }
  static float reduce_max(F x) {
    const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 v = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)));
  }
  static float first(F x) { return _mm512_cvtss_f32(x); }

  static F load_f16(const uint16_t* p) { return _mm512_cvtph_ps(load_256(p)); }
  static F load_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_256(p)), 16));
  }
  static void store_f16(uint16_t* p, F x) {
    store_256(p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store_bf16(uint16_t* p, F x) {  // not VCVTNEPS2BF16: that flushes subnormals
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    store_256(p, _mm512_cvtepi32_epi16(
                     _mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan, up, quiet), 16)));
  }
  static F load_i8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_128(p)));
  }
  static F load_low4(const uint8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_and_si512(_mm512_cvtepu8_epi32(load_128(p)), _mm512_set1_epi32(15)));
  }
  static F load_high4(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_cvtepu8_epi32(load_128(p)), 4));
  }
  static float widen_f16(uint16_t bits) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
  }
  static uint16_t narrow_f16(float x) {
    return static_cast<uint16_t>(
        _mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT)));
  }

 private:
  static int clamp(int n) { return n < 0 ? 0 : n > kLanes ? kLanes : n; }
  static __mmask16 below(int n) { return static_cast<__mmask16>((1U << n) - 1U); }
  static __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m256i load_256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static void store_256(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
};

}  // namespace
}  // namespace qw::kernels::avx512
