// The vector type of the linear kernels in NEON: four registers per vector. Operations are those of
// simd_generic.h.
//
// Level 3 (kernels). Included by files compiled for AArch64 only; internal linkage throughout.
#pragma once

#include <arm_neon.h>
#include <stdint.h>

namespace qw::kernels {
namespace {

/// kDot: has SDOT, sums of four products of signed bytes (the dotprod extension).
template <bool kDot>
struct SimdNeon {
  // Lanes 0..3 are in `a`, lanes 12..15 in `d`.
  struct Bytes {
    uint8x16_t a, b, c, d;
  };
  struct Ints {
    int32x4_t a, b, c, d;
  };
  struct Floats {
    float32x4_t a, b, c, d;
  };

  struct Half {
    int16x8_t low, high;
  };
  struct Pairs {  // 16-bit sums of products; neighbours make pairs when they are widened
    Half a, b, c, d;
  };
  /// Activations of four groups, of which `lane` is meant: SDOT multiplies by one lane of a
  /// register.
  struct Lane {
    int8x16_t four;
    int lane;
  };

  static constexpr int kTilePanels = 1;  // floats: 24 sums, 4 weights, 1 activation in 32 registers
  static constexpr int kIntPanels = 1;   // as for floats: more was never measured
  static constexpr int kPassPanels = 1;
  // int8 with SDOT: 12 dots, 12 sums, 4 weights, 3 activations; without: 16 sums in 16 bits, 8
  // sums, 4 weights, 1 activation.
  static constexpr int kPassRows = kDot ? 3 : 2;
  static constexpr int kHalvesPassRows = kPassRows;
  static constexpr int kGemvRows = kDot ? 2 : 1;
  static constexpr int kFewRows = kGemvRows;
  static constexpr bool kBf16Dot = false;
  static constexpr bool kSignedWide = true;  // all products are of signed bytes
  static constexpr int kTileOffset = 0;
  static constexpr bool kSumsPairs = !kDot;

  static Bytes load(const uint8_t* p) {
    return {vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)};
  }
  static void store(uint8_t* p, Bytes x) {
    vst1q_u8(p, x.a);
    vst1q_u8(p + 16, x.b);
    vst1q_u8(p + 32, x.c);
    vst1q_u8(p + 48, x.d);
  }
  static Bytes splat(uint8_t x) { return all<Bytes>(vdupq_n_u8(x)); }
  static Bytes splat4(const uint8_t* p) {
    uint32_t word;
    __builtin_memcpy(&word, p, 4);
    return all<Bytes>(vreinterpretq_u8_u32(vdupq_n_u32(word)));
  }
  static auto group(const uint8_t* x, int j) {
    if constexpr (kDot) {
      return Lane{vreinterpretq_s8_u8(vld1q_u8(x + j / 4 * 16)), j % 4};
    } else {
      return splat4(x + 4 * j);
    }
  }
  static Bytes repeat16(const uint8_t* p) { return all<Bytes>(vld1q_u8(p)); }
  static Bytes bit_and(Bytes x, Bytes y) {
    return each<Bytes>([](auto p, auto q) { return vandq_u8(p, q); }, x, y);
  }
  static Bytes bit_or(Bytes x, Bytes y) {
    return each<Bytes>([](auto p, auto q) { return vorrq_u8(p, q); }, x, y);
  }
  static Bytes subtract(Bytes x, Bytes y) {
    return each<Bytes>([](auto p, auto q) { return vsubq_u8(p, q); }, x, y);
  }
  template <int kBits>
  static Bytes shift_right(Bytes x) {
    if constexpr (kBits == 0) return x;
    return each<Bytes>([](auto p) { return vshrq_n_u8(p, kBits == 0 ? 1 : kBits); }, x);
  }
  template <int kBits>
  static Bytes shift_left(Bytes x) {
    return each<Bytes>([](auto p) { return vshlq_n_u8(p, kBits); }, x);
  }
  static Bytes lookup(Bytes table, Bytes index) {
    return each<Bytes>([](auto t, auto i) { return vqtbl1q_u8(t, i); }, table, index);
  }

  static void pin(Bytes&) {}
  static void forget(Bytes& x) {
    __asm__ volatile("" : "+w"(x.a), "+w"(x.b), "+w"(x.c), "+w"(x.d));
  }
  static void forget(Floats& x) {
    __asm__ volatile("" : "+w"(x.a), "+w"(x.b), "+w"(x.c), "+w"(x.d));
  }

  static Ints zero_ints() { return splat_int(0); }
  static Ints splat_int(int32_t x) { return all<Ints>(vdupq_n_s32(x)); }
  static Ints load_ints(const int32_t* p) {
    return {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)};
  }
  static void store_ints(int32_t* p, Ints x) {
    vst1q_s32(p, x.a);
    vst1q_s32(p + 4, x.b);
    vst1q_s32(p + 8, x.c);
    vst1q_s32(p + 12, x.d);
  }
  static Ints add(Ints x, Ints y) {
    return each<Ints>([](auto p, auto q) { return vaddq_s32(p, q); }, x, y);
  }
  static Ints subtract(Ints x, Ints y) {
    return each<Ints>([](auto p, auto q) { return vsubq_s32(p, q); }, x, y);
  }
  static Ints multiply(Ints x, Ints y) {
    return each<Ints>([](auto p, auto q) { return vmulq_s32(p, q); }, x, y);
  }
  static Ints maximum(Ints x, Ints y) {
    return each<Ints>([](auto p, auto q) { return vmaxq_s32(p, q); }, x, y);
  }
  static Ints shift_right(Ints x, int bits) {
    const int32x4_t down = vdupq_n_s32(-bits);
    return each<Ints>([&](auto p) { return signed_of(vshlq_u32(vreinterpretq_u32_s32(p), down)); },
                      x);
  }
  template <int kBits>
  static Ints shift_left(Ints x) {
    return each<Ints>([](auto p) { return vshlq_n_s32(p, kBits); }, x);
  }
  static Bytes repeat_low_byte(Ints x) {
    const uint8x16_t places = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
    return each<Bytes>([&](auto p) { return vqtbl1q_u8(vreinterpretq_u8_s32(p), places); }, x);
  }
  template <int kByte>
  static Ints byte_of_lane(Bytes x) {
    return each<Ints>(
        [](auto p) {
          const uint32x4_t words = vreinterpretq_u32_u8(p);
          if constexpr (kByte == 0) return signed_of(vandq_u32(words, vdupq_n_u32(255)));
          const uint32x4_t shifted = vshrq_n_u32(words, kByte == 0 ? 8 : 8 * kByte);
          if constexpr (kByte == 3) return signed_of(shifted);
          return signed_of(vandq_u32(shifted, vdupq_n_u32(255)));
        },
        x);
  }
  static Bytes as_bytes(Ints x) {
    return each<Bytes>([](auto p) { return vreinterpretq_u8_s32(p); }, x);
  }
  static Ints as_ints(Bytes x) {
    return each<Ints>([](auto p) { return vreinterpretq_s32_u8(p); }, x);
  }
  static Ints widen_u8(const uint8_t* p) {
    const uint8x16_t bytes = vld1q_u8(p);
    return widen(vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
  }
  static Ints widen_s8(const uint8_t* p) {
    const int8x16_t bytes = vreinterpretq_s8_u8(vld1q_u8(p));
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high)};
  }
  static Ints widen_u16(const uint8_t* p) {
    return widen(vreinterpretq_u16_u8(vld1q_u8(p)), vreinterpretq_u16_u8(vld1q_u8(p + 16)));
  }
  template <bool kWide, class X>
  static Ints dot_codes(Ints sum, Bytes codes, X x) {
    if constexpr (kWide)
      codes = each<Bytes>([](auto p) { return veorq_u8(p, vdupq_n_u8(128)); }, codes);
    return dot(sum, codes, x);
  }
  template <bool kWide, class X>
  static Ints dot_values(Ints sum, X x, Bytes values) {
    return dot(sum, values, x);
  }
  static Pairs pair_products(Bytes x, Bytes y) {
    return each<Pairs>(
        [](auto p, auto q) {
          const int8x16_t a = vreinterpretq_s8_u8(p), b = vreinterpretq_s8_u8(q);
          return Half{vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b)};
        },
        x, y);
  }
  static Pairs add(Pairs x, Pairs y) {
    return each<Pairs>(
        [](auto p, auto q) {
          return Half{vaddq_s16(p.low, q.low), vaddq_s16(p.high, q.high)};
        },
        x, y);
  }
  static Ints add_pairs(Ints sum, Pairs x) {
    return each<Ints>([](auto s, auto p) { return vpadalq_s16(s, vpaddq_s16(p.low, p.high)); }, sum,
                      x);
  }

  static Floats zero_floats() { return splat_float(0.0F); }
  static Floats splat_float(float x) { return all<Floats>(vdupq_n_f32(x)); }
  static Floats load_floats(const float* p) {
    return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
  }
  static void store_floats(float* p, Floats x) {
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
    vst1q_f32(p + 8, x.c);
    vst1q_f32(p + 12, x.d);
  }
  static Floats add(Floats x, Floats y) {
    return each<Floats>([](auto p, auto q) { return vaddq_f32(p, q); }, x, y);
  }
  static Floats subtract(Floats x, Floats y) {
    return each<Floats>([](auto p, auto q) { return vsubq_f32(p, q); }, x, y);
  }
  static Floats multiply(Floats x, Floats y) {
    return each<Floats>([](auto p, auto q) { return vmulq_f32(p, q); }, x, y);
  }
  static Floats multiply_add(Floats x, Floats y, Floats z) {
    return each<Floats>([](auto p, auto q, auto r) { return vfmaq_f32(r, p, q); }, x, y, z);
  }
  static Floats to_floats(Ints x) {
    return each<Floats>([](auto p) { return vcvtq_f32_s32(p); }, x);
  }
  static Floats bits_to_floats(Ints x) {
    return each<Floats>([](auto p) { return vreinterpretq_f32_s32(p); }, x);
  }
  static Floats widen_f16(const uint8_t* p) {
    const float16x8_t low = vreinterpretq_f16_u8(vld1q_u8(p)),
                      high = vreinterpretq_f16_u8(vld1q_u8(p + 16));
    return {vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low),
            vcvt_f32_f16(vget_low_f16(high)), vcvt_high_f32_f16(high)};
  }
  static Floats bf16_even(Bytes x) {
    return each<Floats>(
        [](auto p) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(p), 16)); }, x);
  }
  static Floats bf16_odd(Bytes x) {
    return each<Floats>(
        [](auto p) {
          const uint32x4_t mask = vdupq_n_u32(0xFFFF0000U);
          return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(p), mask));
        },
        x);
  }

  static int32_t largest_bits(Floats x, Floats y) {
    const auto larger = [](auto p, auto q) { return vmaxq_s32(p, q); };
    const Ints m = each<Ints>(larger, magnitude(x), magnitude(y));
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(m.a, m.b), vmaxq_s32(m.c, m.d)));
  }
  static Ints nearest(Floats x) {
    return each<Ints>([](auto p) { return vcvtnq_s32_f32(p); }, x);
  }
  static int32_t sum(Ints x) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d)));
  }
  static void store_low_bytes(uint8_t* p, Ints x) {
    const int16x8_t low = vmovn_high_s32(vmovn_s32(x.a), x.b),
                    high = vmovn_high_s32(vmovn_s32(x.c), x.d);
    vst1q_u8(p, vreinterpretq_u8_s8(vmovn_high_s16(vmovn_s16(low), high)));
  }

 private:
  template <class T, class X>
  static T all(X x) {
    return {x, x, x, x};
  }
  template <class T, class F, class... X>
  static T each(F f, X... x) {
    return {f(x.a...), f(x.b...), f(x.c...), f(x.d...)};
  }
  static int32x4_t signed_of(uint32x4_t x) { return vreinterpretq_s32_u32(x); }
  static Ints widen(uint16x8_t low, uint16x8_t high) {
    return {signed_of(vmovl_u16(vget_low_u16(low))), signed_of(vmovl_high_u16(low)),
            signed_of(vmovl_u16(vget_low_u16(high))), signed_of(vmovl_high_u16(high))};
  }
  static Ints magnitude(Floats x) {
    return each<Ints>(
        [](auto p) { return vandq_s32(vreinterpretq_s32_f32(p), vdupq_n_s32(0x7FFFFFFF)); }, x);
  }
  /// sum + products of signed bytes, four to a lane.
#ifdef __ARM_FEATURE_DOTPROD
  static Ints dot(Ints sum, Bytes x, Bytes y) {
    return each<Ints>(
        [](auto s, auto p, auto q) {
          return vdotq_s32(s, vreinterpretq_s8_u8(p), vreinterpretq_s8_u8(q));
        },
        sum, x, y);
  }
  static Ints dot(Ints sum, Bytes x, Lane y) {
    return each<Ints>([&](auto s, auto p) { return dot_lane(s, vreinterpretq_s8_u8(p), y); }, sum,
                      x);
  }
  static int32x4_t dot_lane(int32x4_t sum, int8x16_t x, Lane y) {
    switch (y.lane) {  // known where loops are unrolled; the instruction wants a constant
      case 0:
        return vdotq_laneq_s32(sum, x, y.four, 0);
      case 1:
        return vdotq_laneq_s32(sum, x, y.four, 1);
      case 2:
        return vdotq_laneq_s32(sum, x, y.four, 2);
      default:
        return vdotq_laneq_s32(sum, x, y.four, 3);
    }
  }
#else
  static Ints dot(Ints sum, Bytes x, Bytes y) {
    static_assert(!kDot);
    return add_pairs(sum, pair_products(x, y));  // at most 2 * 128 * 127 in magnitude each
  }
#endif
};

}  // namespace
}  // namespace qw::kernels
