// Four f32 lanes in GCC and Clang vector extensions: any CPU, no intrinsics.
//
// Level 3 (kernels). The vocabulary that elementwise_body.h, attention_body.h and kv_body.h are
// written in; the same names exist once per ISA. In an anonymous namespace, so that nothing an ISA
// file instantiates can be merged with another's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/half.h"

namespace qw::kernels::generic {
namespace {

struct Vec {
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kAccumulators = 8;  // registers that a tile of sums may take
  static constexpr const char* kName = "generic";

  static F set1(float x) { return F{x, x, x, x}; }
  static F load(const float* p) {
    F out;
    std::memcpy(&out, p, sizeof out);
    return out;
  }
  static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  /// The first n lanes (0 < n <= kLanes) from p, the others `fill`.
  static F load_n(const float* p, int64_t n, float fill) {
    F out = set1(fill);
    for (int64_t i = 0; i < n && i < kLanes; ++i)
      out[i] = p[i];
    return out;
  }
  static void store_n(float* p, int64_t n, F x) {
    for (int64_t i = 0; i < n && i < kLanes; ++i)
      p[i] = x[i];
  }

  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return a * b + c; }  // two roundings here
  /// As the machine's max: b where either is NaN.
  static F max(F a, F b) { return select(a > b, a, b); }
  static F min(F a, F b) { return select(a < b, a, b); }
  static F round(F x) {  // to nearest, ties to even, for |x| < 2^22
    const F magic = set1(12582912.0F);
    return (x + magic) - magic;
  }
  /// x * 2^n for integral n in [-126, 128], in two exact steps unless the result overflows.
  static F scale_by_power(F x, F n) {
    const I whole = (I)(n + set1(12582912.0F)) - (I)set1(12582912.0F);
    const I half = whole >> 1;
    return x * (F)((half + 127) << 23) * (F)((whole - half + 127) << 23);
  }
  /// The same where neither the result nor 2^n is subnormal or overflows.
  static F scale_by_normal_power(F x, F n) {
    const I whole = (I)(n + set1(12582912.0F)) - (I)set1(12582912.0F);
    return x * (F)((whole + 127) << 23);
  }
  /// a < b ? x : y in each lane; y where a or b is NaN.
  static F where_less(F a, F b, F x, F y) { return select(a < b, x, y); }
  /// x in lanes [begin, end), `other` elsewhere.
  static F keep(F x, int begin, int end, F other) {
    const I lane = {0, 1, 2, 3};
    return select((lane >= begin) & (lane < end), x, other);
  }
  static bool all_finite(F x) {
    const I exponent = (I)x & 0x7F800000;
    for (int i = 0; i < kLanes; ++i) {
      if (exponent[i] == 0x7F800000) return false;
    }
    return true;
  }
  static float reduce_add(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static float reduce_max(F x) { return lane_max(lane_max(x[0], x[2]), lane_max(x[1], x[3])); }
  static float first(F x) { return x[0]; }

  static F load_f16(const uint16_t* p) {
    return F{f16_to_f32(p[0]), f16_to_f32(p[1]), f16_to_f32(p[2]), f16_to_f32(p[3])};
  }
  static F load_bf16(const uint16_t* p) {
    return F{bf16_to_f32(p[0]), bf16_to_f32(p[1]), bf16_to_f32(p[2]), bf16_to_f32(p[3])};
  }
  static void store_f16(uint16_t* p, F x) {
    for (int i = 0; i < kLanes; ++i)
      p[i] = f32_to_f16(x[i]);
  }
  static void store_bf16(uint16_t* p, F x) {
    for (int i = 0; i < kLanes; ++i)
      p[i] = f32_to_bf16(x[i]);
  }
  static F load_i8(const int8_t* p) {
    return F{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
             static_cast<float>(p[3])};
  }
  /// Low and high nibbles of kLanes bytes.
  static F load_low4(const uint8_t* p) {
    return F{static_cast<float>(p[0] & 15), static_cast<float>(p[1] & 15),
             static_cast<float>(p[2] & 15), static_cast<float>(p[3] & 15)};
  }
  static F load_high4(const uint8_t* p) {
    return F{static_cast<float>(p[0] >> 4), static_cast<float>(p[1] >> 4),
             static_cast<float>(p[2] >> 4), static_cast<float>(p[3] >> 4)};
  }
  static float widen_f16(uint16_t bits) { return f16_to_f32(bits); }
  static uint16_t narrow_f16(float x) { return f32_to_f16(x); }

 private:
  static F select(I mask, F a, F b) { return (F)((mask & (I)a) | (~mask & (I)b)); }
  static float lane_max(float a, float b) { return a > b ? a : b; }
};

}  // namespace
}  // namespace qw::kernels::generic
