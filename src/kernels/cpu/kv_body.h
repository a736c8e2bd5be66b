// Filling and reading KV pages, written once over a vector type; each ISA folder instantiates it.
//
// Level 3 (kernels). Layouts: kernels/kv_pages.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/kv_pages.h"

namespace qw::kernels {

template <class V>
struct KvBody {
  using F = typename V::F;
  static constexpr int W = V::kLanes;
  static constexpr int P = kKvPageTokens;

  /// One block of at most 32 values: its scale as f16 bits and the codes. A block that holds a
  /// value that is not finite gets the scale NaN, so that the fault shows where it is read.
  struct Block {
    uint16_t scale;
    int8_t codes[kKvBlock];  // q8_0: -127..127; q4_0: 0..15
  };

  static Block quantise(const float* x, int n, KvType type) {
    const F zero = V::set1(0.0F);
    F high = zero, low = zero, poison = zero;  // poison: 0, or NaN as soon as a value is not finite
    for (int i = 0; i < n; i += W) {
      const F v = V::load_n(x + i, n - i, 0.0F);
      high = V::max(high, v);
      low = V::min(low, v);
      poison = V::add(poison, V::mul(v, zero));
    }
    const float top = V::reduce_max(high), bottom = -V::reduce_max(V::sub(zero, low));
    const bool four_bits = type == KvType::kQ4_0;
    // ggml's rules: q8_0 maps the largest magnitude to 127, q4_0 the value of largest magnitude to
    // code 0 (-8), whatever its sign.
    const float d = four_bits ? (-bottom > top ? bottom : top) / -8.0F
                              : (-bottom > top ? -bottom : top) / 127.0F;
    Block out;
    out.scale = V::narrow_f16(d + V::reduce_add(poison));
    const bool usable = V::all_finite(V::add(poison, V::set1(d))) && d != 0.0F;
    const F inverse = V::set1(usable ? 1.0F / d : 0.0F);
    const F least = V::set1(four_bits ? 0.0F : -127.0F), most = V::set1(four_bits ? 15.0F : 127.0F);
    const F centre = V::set1(four_bits ? 8.0F : 0.0F);
    float rounded[kKvBlock];
    for (int i = 0; i < n; i += W) {
      const F v = usable ? V::load_n(x + i, n - i, 0.0F) : zero;
      const F code = V::round(V::fma(v, inverse, centre));
      V::store_n(rounded + i, n - i, V::min(V::max(code, least), most));
    }
    for (int i = 0; i < n; ++i)
      out.codes[i] = static_cast<int8_t>(rounded[i]);
    return out;
  }

  /// One row of n floats as 16-bit floats; `out` has room for n rounded up to W.
  static void narrow_row(KvType type, const float* x, int n, uint16_t* out) {
    for (int i = 0; i < n; i += W) {
      const F v = V::load_n(x + i, n - i, 0.0F);
      type == KvType::kF16 ? V::store_f16(out + i, v) : V::store_bf16(out + i, v);
    }
  }

  static void store_k(const KvLayout& layout, std::byte* page, int offset, int n, const float* k,
                      int64_t ld) {
    for (int t = 0; t < n; ++t)
      store_k_token(layout, page, offset + t, k + t * ld);
  }

  static void store_k_token(const KvLayout& layout, std::byte* page, int t, const float* k) {
    const int hd = layout.head_dim;
    if (layout.type == KvType::kF32) {
      auto* out = reinterpret_cast<float*>(page) + t;
      for (int d = 0; d < hd; ++d)
        out[d * P] = k[d];
      return;
    }
    if (layout.type == KvType::kF16 || layout.type == KvType::kBF16) {
      auto* out = reinterpret_cast<uint16_t*>(page) + t;
      uint16_t bits[kKvBlock];
      for (int begin = 0; begin < hd; begin += kKvBlock) {
        const int count = hd - begin < kKvBlock ? hd - begin : kKvBlock;
        narrow_row(layout.type, k + begin, count, bits);
        for (int d = 0; d < count; ++d)
          out[(begin + d) * P] = bits[d];
      }
      return;
    }
    auto* codes = reinterpret_cast<uint8_t*>(page) + t;
    auto* scales = reinterpret_cast<uint16_t*>(page + layout.k_scales) + t;
    for (int b = 0; b < layout.n_blocks; ++b) {
      const int begin = b * kKvBlock, count = hd - begin < kKvBlock ? hd - begin : kKvBlock;
      const Block block = quantise(k + begin, count, layout.type);
      scales[b * P] = block.scale;
      if (layout.type == KvType::kQ8_0) {
        for (int d = 0; d < count; ++d)
          codes[(begin + d) * P] = static_cast<uint8_t>(block.codes[d]);
      } else {
        for (int d = 0; d < count; d += 2)
          codes[(begin + d) / 2 * P] = pack(block.codes[d], block.codes[d + 1]);
      }
    }
  }

  static void store_v(const KvLayout& layout, std::byte* page, int offset, int n, const float* v,
                      int64_t ld) {
    for (int t = 0; t < n; ++t)
      store_v_token(layout, page, offset + t, v + t * ld);
  }

  static void store_v_token(const KvLayout& layout, std::byte* page, int t, const float* v) {
    const int hd = layout.head_dim, stride = layout.v_stride;
    std::byte* rows = page + layout.v_codes;
    if (layout.type == KvType::kF32) {
      float* out = reinterpret_cast<float*>(rows) + t * stride;
      for (int c = 0; c < stride; c += W)
        V::store(out + c, c < hd ? V::load_n(v + c, hd - c, 0.0F) : V::set1(0.0F));
      return;
    }
    if (layout.type == KvType::kF16 || layout.type == KvType::kBF16) {
      uint16_t* out = reinterpret_cast<uint16_t*>(rows) + t * stride;
      std::memset(out, 0, sizeof(uint16_t) * static_cast<size_t>(stride));
      narrow_row(layout.type, v, hd, out);
      return;
    }
    auto* scales = reinterpret_cast<uint16_t*>(page + layout.v_scales) + t * layout.n_blocks;
    const bool four_bits = layout.type == KvType::kQ4_0;
    const int row_bytes = four_bits ? stride / 2 : stride;
    auto* codes = reinterpret_cast<uint8_t*>(rows) + t * row_bytes;
    std::memset(codes, four_bits ? 0x88 : 0, static_cast<size_t>(row_bytes));  // code of 0
    for (int b = 0; b < layout.n_blocks; ++b) {
      const int begin = b * kKvBlock, count = hd - begin < kKvBlock ? hd - begin : kKvBlock;
      const Block block = quantise(v + begin, count, layout.type);
      scales[b] = block.scale;
      for (int i = 0; i < count; ++i) {
        const int c = begin + i;
        if (!four_bits) {
          codes[c] = static_cast<uint8_t>(block.codes[i]);
        } else if (c < row_bytes) {
          codes[c] = static_cast<uint8_t>((codes[c] & 0xF0) | block.codes[i]);
        } else {
          codes[c - row_bytes] =
              static_cast<uint8_t>((codes[c - row_bytes] & 0x0F) | block.codes[i] << 4);
        }
      }
    }
  }

  /// Asks for the n_bytes that lie `ahead` bytes from p.
  static void fetch(const void* p, int n_bytes, int64_t ahead) {
    if (ahead == 0) return;
    for (int i = 0; i < n_bytes; i += 64)
      __builtin_prefetch(static_cast<const char*>(p) + ahead + i);
  }

  static void widen_k(const KvLayout& layout, const std::byte* page, int n, int64_t ahead,
                      float* out) {
    const int hd = layout.head_dim;
    n = (n + 15) / 16 * 16;
    if (layout.n_blocks == 0) {
      for (int d = 0; d < hd; ++d)
        widen_plain(layout.type, page, d * P, n, out + d * P);
      return;
    }
    const auto* codes = reinterpret_cast<const uint8_t*>(page);
    const auto* scales = reinterpret_cast<const uint16_t*>(page + layout.k_scales);
    fetch(scales, 2 * P * layout.n_blocks, ahead);
    for (int block = 0; block < layout.n_blocks; ++block) {
      const int first = block * kKvBlock, last = first + kKvBlock < hd ? first + kKvBlock : hd;
      F scale[P / W];
      for (int t = 0; t < n; t += W)
        scale[t / W] = V::load_f16(scales + block * P + t);
      if (layout.type == KvType::kQ8_0) {
        for (int d = first; d < last; ++d) {
          const auto* row = reinterpret_cast<const int8_t*>(codes) + d * P;
          fetch(row, P, ahead);
          for (int t = 0; t < n; t += W)
            V::store(out + d * P + t, V::mul(scale[t / W], V::load_i8(row + t)));
        }
      } else {
        for (int d = first; d < last; d += 2) {
          const uint8_t* row = codes + d / 2 * P;
          fetch(row, P, ahead);
          for (int t = 0; t < n; t += W) {
            const F low = V::sub(V::load_low4(row + t), V::set1(8.0F));
            const F high = V::sub(V::load_high4(row + t), V::set1(8.0F));
            V::store(out + d * P + t, V::mul(scale[t / W], low));
            V::store(out + (d + 1) * P + t, V::mul(scale[t / W], high));
          }
        }
      }
    }
  }

  static void widen_v(const KvLayout& layout, const std::byte* page, int begin, int end,
                      int64_t ahead, float* out) {
    const int stride = layout.v_stride;
    const std::byte* rows = page + layout.v_codes;
    if (layout.n_blocks == 0)
      return widen_plain(layout.type, rows, begin * stride, (end - begin) * stride,
                         out + begin * stride);
    const auto* scales = reinterpret_cast<const uint16_t*>(page + layout.v_scales);
    const auto* codes = reinterpret_cast<const uint8_t*>(rows);
    fetch(scales, 2 * P * layout.n_blocks, ahead);
    for (int t = begin; t < end; ++t) {
      const uint16_t* scale = scales + t * layout.n_blocks;
      float* row = out + t * stride;
      if (layout.type == KvType::kQ8_0) {
        const auto* row_codes = reinterpret_cast<const int8_t*>(codes) + t * stride;
        fetch(row_codes, stride, ahead);
        for (int c = 0; c < stride; c += W) {
          const F d = V::set1(V::widen_f16(scale[c / kKvBlock]));
          V::store(row + c, V::mul(d, V::load_i8(row_codes + c)));
        }
      } else {
        const int half = stride / 2;
        const uint8_t* pairs = codes + t * half;
        fetch(pairs, half, ahead);
        for (int c = 0; c < half; c += W) {
          const F low = V::sub(V::load_low4(pairs + c), V::set1(8.0F)),
                  high = V::sub(V::load_high4(pairs + c), V::set1(8.0F));
          V::store(row + c, V::mul(V::set1(V::widen_f16(scale[c / kKvBlock])), low));
          V::store(row + half + c,
                   V::mul(V::set1(V::widen_f16(scale[(half + c) / kKvBlock])), high));
        }
      }
    }
  }

  static void widen_scales(const KvLayout& layout, const std::byte* page, int64_t ahead, float* k,
                           float* v) {
    const int n = P * layout.n_blocks;
    const std::byte *k_scales = page + layout.k_scales, *v_scales = page + layout.v_scales;
    fetch(k_scales, 2 * n, ahead);
    fetch(v_scales, 2 * n, ahead);
    widen_plain(KvType::kF16, k_scales, 0, n, k);
    widen_plain(KvType::kF16, v_scales, 0, n, v);
  }

  /// n elements (a multiple of 16) from element `first` of plain rows.
  static void widen_plain(KvType type, const std::byte* rows, int first, int n, float* out) {
    for (int i = 0; i < n; i += W) {
      F v;
      if (type == KvType::kF32) {
        v = V::load(reinterpret_cast<const float*>(rows) + first + i);
      } else if (type == KvType::kF16) {
        v = V::load_f16(reinterpret_cast<const uint16_t*>(rows) + first + i);
      } else {
        v = V::load_bf16(reinterpret_cast<const uint16_t*>(rows) + first + i);
      }
      V::store(out + i, v);
    }
  }

  static uint8_t pack(int8_t low, int8_t high) { return static_cast<uint8_t>(low | high << 4); }

  static constexpr KvOps table() { return {store_k, store_v, widen_k, widen_v, widen_scales}; }
};

}  // namespace qw::kernels
