// The loops behind kernels/limits.h, for any vector type.
//
// Level 3 (kernels). Templates, internal linkage. Twelve chains (six of two registers with AVX2)
// cover the latency of a multiply-add on two ports; more would not fit the registers.
#pragma once

#include "kernels/limits.h"

namespace qw::kernels {
namespace {

template <class V>
constexpr int kChains = V::kTilePanels >= 4 ? 12 : 6;

template <class V>
uint64_t probe_read(const uint8_t* bytes, int64_t n_bytes) noexcept {
  typename V::Bytes seen[4] = {V::splat(0), V::splat(0), V::splat(0), V::splat(0)};
  for (int64_t at = 0; at < n_bytes; at += 1024) {
#pragma GCC unroll 16
    for (int line = 0; line < 16; ++line) {
      __builtin_prefetch(bytes + at + 64 * line + 4096, 0, 2);
      seen[line % 4] = V::bit_or(seen[line % 4], V::load(bytes + at + 64 * line));
    }
  }
  uint8_t all[64];
  V::store(all, V::bit_or(V::bit_or(seen[0], seen[1]), V::bit_or(seen[2], seen[3])));
  uint64_t result = 0;
  for (int i = 0; i < 64; ++i)
    result = result * 31 + all[i];
  return result;
}

template <class V>
int64_t probe_int8(int64_t n) noexcept {
  typename V::Ints sums[kChains<V>];
  for (auto& sum : sums)
    sum = V::zero_ints();
  auto codes = V::splat(3), x = V::splat(1);
  for (int64_t i = 0; i < n; ++i) {
    V::forget(codes);
    V::forget(x);
#pragma GCC unroll 12
    for (int c = 0; c < kChains<V>; ++c)
      sums[c] = V::template dot_codes<false>(sums[c], codes, x);
  }
  for (auto& sum : sums) {
    auto bytes = V::as_bytes(sum);
    V::forget(bytes);
  }
  return n * kChains<V> * 64 * 2;
}

template <class V>
int64_t probe_f32(int64_t n) noexcept {
  typename V::Floats sums[kChains<V>];
  for (auto& sum : sums)
    sum = V::zero_floats();
  auto a = V::splat_float(0.5F), b = V::splat_float(0.25F);
  for (int64_t i = 0; i < n; ++i) {
    V::forget(a);
    V::forget(b);
#pragma GCC unroll 12
    for (int c = 0; c < kChains<V>; ++c)
      sums[c] = V::multiply_add(a, b, sums[c]);
  }
  for (auto& sum : sums)
    V::forget(sum);
  return n * kChains<V> * 16 * 2;
}

#ifdef __AVX512BF16__
template <class V>
int64_t probe_bf16(int64_t n) noexcept {
  typename V::Floats sums[kChains<V>];
  for (auto& sum : sums)
    sum = V::zero_floats();
  auto a = V::splat(0x3F), b = V::splat(0x3F);
  for (int64_t i = 0; i < n; ++i) {
    V::forget(a);
    V::forget(b);
#pragma GCC unroll 12
    for (int c = 0; c < kChains<V>; ++c)
      sums[c] = V::dot_bf16(sums[c], a, b);
  }
  for (auto& sum : sums)
    V::forget(sum);
  return n * kChains<V> * 32 * 2;
}
#endif

template <class V>
LimitProbes probes_of() noexcept {
#ifdef __AVX512BF16__
  return {probe_read<V>, probe_int8<V>, probe_bf16<V>, probe_f32<V>};
#else
  return {probe_read<V>, probe_int8<V>, nullptr, probe_f32<V>};
#endif
}

}  // namespace
}  // namespace qw::kernels
