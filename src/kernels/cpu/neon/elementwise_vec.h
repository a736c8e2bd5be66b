// Four f32 lanes in NEON. See generic/elementwise_vec.h for what each name means.
//
// Level 3 (kernels).
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace qw::kernels::neon {
namespace {

struct Vec {
  using F = float32x4_t;
  static constexpr int kLanes = 4;
  // 6 rows by 4 vectors; beside them 4 of the other matrix and 1 broadcast, in 32 registers.
  static constexpr int kAccumulators = 24;
  static constexpr const char* kName = "neon";

  static F set1(float x) { return vdupq_n_f32(x); }
  static F load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, F x) { vst1q_f32(p, x); }
  static F load_n(const float* p, int64_t n, float fill) {
    if (n >= kLanes) return load(p);
    float lanes[kLanes] = {fill, fill, fill, fill};
    for (int64_t i = 0; i < n; ++i)
      lanes[i] = p[i];
    return load(lanes);
  }
  static void store_n(float* p, int64_t n, F x) {
    if (n >= kLanes) return store(p, x);
    float lanes[kLanes];
    store(lanes, x);
    for (int64_t i = 0; i < n; ++i)
      p[i] = lanes[i];
  }

  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  // FMAX gives NaN where either is; b is wanted there.
  static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static F round(F x) { return vrndnq_f32(x); }
  static F scale_by_power(F x, F n) {
    const int32x4_t whole = vcvtnq_s32_f32(n);
    const int32x4_t half = vshrq_n_s32(whole, 1);
    return mul(mul(x, power(half)), power(vsubq_s32(whole, half)));
  }
  static F scale_by_normal_power(F x, F n) { return mul(x, power(vcvtnq_s32_f32(n))); }
  static F where_less(F a, F b, F x, F y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
  static F keep(F x, int begin, int end, F other) {
    return vbslq_f32(vbicq_u32(below(end), below(begin)), x, other);
  }
  static bool all_finite(F x) {
    const uint32x4_t magnitude = vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x7FFFFFFF));
    return vmaxvq_u32(magnitude) < 0x7F800000;
  }
  static float reduce_add(F x) {
    const float32x2_t v = vadd_f32(vget_low_f32(x), vget_high_f32(x));
    return vget_lane_f32(v, 0) + vget_lane_f32(v, 1);
  }
  static float reduce_max(F x) {
    const F v = max(x, vextq_f32(x, x, 2));
    return vgetq_lane_f32(max(v, vextq_f32(v, v, 1)), 0);
  }
  static float first(F x) { return vgetq_lane_f32(x, 0); }

  static F load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static F load_bf16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
  }
  static void store_f16(uint16_t* p, F x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
  static void store_bf16(uint16_t* p, F x) {  // to nearest, ties to even; NaN stays NaN
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), up, quiet), 16));
  }
  static F load_i8(const int8_t* p) {
    const int8x8_t bytes = vreinterpret_s8_u32(load_word(p));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
  }
  static F load_low4(const uint8_t* p) {
    return widen(vand_u8(vreinterpret_u8_u32(load_word(p)), vdup_n_u8(15)));
  }
  static F load_high4(const uint8_t* p) {
    return widen(vshr_n_u8(vreinterpret_u8_u32(load_word(p)), 4));
  }
  static float widen_f16(uint16_t bits) {
    return first(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))));
  }
  static uint16_t narrow_f16(float x) {
    return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(set1(x))), 0);
  }

 private:
  static uint32x4_t below(int n) {
    const int32x4_t lane = {0, 1, 2, 3};
    return vcltq_s32(lane, vdupq_n_s32(n));
  }
  static F power(int32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
  }
  static uint32x2_t load_word(const void* p) {
    uint32_t word;
    std::memcpy(&word, p, 4);
    return vdup_n_u32(word);
  }
  static F widen(uint8x8_t bytes) {
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
  }
};

}  // namespace
}  // namespace qw::kernels::neon
