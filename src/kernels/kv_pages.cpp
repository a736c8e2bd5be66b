#include "kernels/kv_pages.h"

#include "base/checked.h"

namespace qw::kernels {

namespace {

constexpr int64_t kCacheLine = 64;

/// Bits of a code.
int code_bits(KvType type) noexcept {
  switch (type) {
    case KvType::kF32:
      return 32;
    case KvType::kF16:
    case KvType::kBF16:
      return 16;
    case KvType::kQ8_0:
      return 8;
    case KvType::kQ4_0:
      return 4;
  }
  return 0;
}

}  // namespace

KvLayout kv_layout(KvType type, int head_dim) noexcept {
  const bool quantised = type == KvType::kQ8_0 || type == KvType::kQ4_0;
  KvLayout out{};
  out.type = type;
  out.head_dim = head_dim;
  out.v_stride = round_up(head_dim, type == KvType::kQ4_0 ? 32 : 16);
  out.n_blocks = quantised ? ceil_div(head_dim, kKvBlock) : 0;
  const int64_t scale_bytes = int64_t{2} * out.n_blocks * kKvPageTokens;
  const int bits = code_bits(type);
  out.k_scales = int64_t{head_dim} * kKvPageTokens * bits / 8;
  out.v_codes = round_up(out.k_scales + scale_bytes, kCacheLine);
  out.v_scales = out.v_codes + int64_t{out.v_stride} * kKvPageTokens * bits / 8;
  out.head_bytes = round_up(out.v_scales + scale_bytes, kCacheLine);
  return out;
}

}  // namespace qw::kernels
