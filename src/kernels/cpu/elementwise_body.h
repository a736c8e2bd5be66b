// Elementwise operations, written once over a vector type; each ISA folder instantiates them.
//
// Level 3 (kernels). `V` lives in an anonymous namespace, so every instance has internal linkage.
// Tails run the same vector code on partly filled registers: bits never depend on alignment.
#pragma once

#include <cstdint>

#include "kernels/elementwise.h"

namespace qw::kernels {

/// e^x. Argument reduction x = n ln 2 + r with ln 2 in two parts (Cody and Waite 1980) and the
/// degree-5 polynomial of Cephes expf (Moshier). NaN stays NaN; subnormal results become 0.
///
/// kNonPositive: x <= 0 (or NaN), so that nothing overflows and 2^n is a normal number wherever the
/// result is not 0: the same bits in fewer steps.
template <class V, bool kNonPositive = false>
inline typename V::F exp_lanes(typename V::F x) {
  using F = typename V::F;
  const F lowest = V::set1(-87.33654F), highest = V::set1(88.72283F);
  const F n = V::round(V::mul(x, V::set1(1.44269504F)));
  F r = V::fma(n, V::set1(-0.693359375F), x);
  r = V::fma(n, V::set1(2.12194440e-4F), r);
  F p = V::set1(1.9875691500e-4F);
  p = V::fma(p, r, V::set1(1.3981999507e-3F));
  p = V::fma(p, r, V::set1(8.3334519073e-3F));
  p = V::fma(p, r, V::set1(4.1665795894e-2F));
  p = V::fma(p, r, V::set1(1.6666665459e-1F));
  p = V::fma(p, r, V::set1(5.0000001201e-1F));
  p = V::fma(p, V::mul(r, r), V::add(r, V::set1(1.0F)));
  if constexpr (kNonPositive)
    return V::where_less(x, lowest, V::set1(0.0F), V::scale_by_normal_power(p, n));
  const F out = V::where_less(x, lowest, V::set1(0.0F), V::scale_by_power(p, n));
  return V::where_less(highest, x, V::set1(__builtin_huge_valf()), out);
}

template <class V>
struct ElementwiseBody {
  using F = typename V::F;
  static constexpr int64_t W = V::kLanes;

  static void exp(const float* x, int64_t n, float* out) {
    for (int64_t i = 0; i < n; i += W)
      V::store_n(out + i, n - i, exp_lanes<V>(V::load_n(x + i, n - i, 0.0F)));
  }

  static bool add_rms_norm(const float* y, float* x, const float* w, float eps, int64_t n,
                           float* h) {
    // Four chains of sums; which one an element joins depends on its index only.
    F sum[4] = {V::set1(0.0F), V::set1(0.0F), V::set1(0.0F), V::set1(0.0F)};
    for (int64_t i = 0; i < n; i += W) {
      F v = V::load_n(x + i, n - i, 0.0F);
      if (y != nullptr) {
        v = V::add(v, V::load_n(y + i, n - i, 0.0F));
        V::store_n(x + i, n - i, v);
      }
      F& chain = sum[(i / W) % 4];
      chain = V::fma(v, v, chain);
    }
    const float squares = V::reduce_add(V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3])));
    const float mean = squares / static_cast<float>(n);
    const F inverse = V::set1(1.0F / __builtin_sqrtf(mean + eps));
    for (int64_t i = 0; i < n; i += W) {
      const F v = V::mul(V::load_n(x + i, n - i, 0.0F), inverse);
      V::store_n(h + i, n - i, V::mul(v, V::load_n(w + i, n - i, 0.0F)));
    }
    return squares <= __FLT_MAX__;
  }

  static bool silu_mul(float* gate, const float* up, int64_t n) {
    bool finite = true;
    for (int64_t i = 0; i < n; i += W) {
      const F g = V::load_n(gate + i, n - i, 0.0F);
      const F denominator = V::add(V::set1(1.0F), exp_lanes<V>(V::sub(V::set1(0.0F), g)));
      const F out = V::mul(V::div(g, denominator), V::load_n(up + i, n - i, 0.0F));
      finite &= V::all_finite(out);
      V::store_n(gate + i, n - i, out);
    }
    return finite;
  }

  static void rope(float* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; i += W) {
      const int64_t left = half - i;
      const F a = V::load_n(x + i, left, 0.0F), b = V::load_n(x + half + i, left, 0.0F);
      const F c = V::load_n(cos + i, left, 0.0F), s = V::load_n(sin + i, left, 0.0F);
      V::store_n(x + i, left, V::sub(V::mul(a, c), V::mul(b, s)));
      V::store_n(x + half + i, left, V::add(V::mul(b, c), V::mul(a, s)));
    }
  }

  static void add_scaled(const float* x, float scale, float* y, int64_t n) {
    for (int64_t i = 0; i < n; i += W) {
      const F old = V::load_n(y + i, n - i, 0.0F);
      V::store_n(y + i, n - i, V::fma(V::set1(scale), V::load_n(x + i, n - i, 0.0F), old));
    }
  }

  static void add_dora(const float* f, const float* wx, const float* u, float scale, float* y,
                       int64_t n) {
    for (int64_t i = 0; i < n; i += W) {
      const F factor = V::load_n(f + i, n - i, 0.0F);
      F out = V::load_n(y + i, n - i, 0.0F);
      out = V::fma(V::sub(factor, V::set1(1.0F)), V::load_n(wx + i, n - i, 0.0F), out);
      out = V::fma(V::mul(factor, V::set1(scale)), V::load_n(u + i, n - i, 0.0F), out);
      V::store_n(y + i, n - i, out);
    }
  }

  static bool softmax(float* x, int64_t n) {
    constexpr float kNone = -__builtin_huge_valf();
    bool finite = true;
    F top = V::set1(kNone);
    for (int64_t i = 0; i < n; i += W) {
      finite &= V::all_finite(V::load_n(x + i, n - i, 0.0F));
      top = V::max(top, V::load_n(x + i, n - i, kNone));
    }
    const F highest = V::set1(V::reduce_max(top));
    F sum = V::set1(0.0F);
    for (int64_t i = 0; i < n; i += W) {
      const F e = exp_lanes<V>(V::sub(V::load_n(x + i, n - i, kNone), highest));
      sum = V::add(sum, e);
      V::store_n(x + i, n - i, e);
    }
    const F total = V::set1(V::reduce_add(sum));
    for (int64_t i = 0; i < n; i += W)
      V::store_n(x + i, n - i, V::div(V::load_n(x + i, n - i, 0.0F), total));
    return finite;
  }

  static constexpr ElementwiseOps table() {
    return {V::kName, exp, add_rms_norm, silu_mul, rope, add_scaled, add_dora, softmax};
  }
};

}  // namespace qw::kernels
