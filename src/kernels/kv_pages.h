// One page of one KV head of one layer: how its bytes lie, and functions that fill and read it.
//
// Level 3 (kernels). K is stored transposed, [head_dim][64 tokens], so that a vector lane is a
// token and q . k needs no horizontal sum; V is stored [64 tokens][v_stride]. Plain header: ISA
// files include it, so it has no inline functions and no std templates.
//
// Why 64 tokens: the width of the AVX-512 score tile (4 registers), whole cache lines for every
// type in the transposed layout, and at most 63 tokens of slack per sequence.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qw::kernels {

struct Isa;  // kernels/isa.h

inline constexpr int kKvPageTokens = 64;
inline constexpr int kKvBlock = 32;  // elements along head_dim that share a scale (q8_0, q4_0)

/// f32, f16, bf16: plain. q8_0: x = d * q, q in -127..127. q4_0: x = d * (q - 8), q in 0..15.
/// d is f16, one per token and block of 32 along head_dim (the last block may be shorter). d * q
/// is exact in f32, so it does not matter for the result where a value is widened.
enum class KvType { kF32, kF16, kBF16, kQ8_0, kQ4_0 };

/// Byte offsets from the start of the page of one head. Codes of K: [head_dim][64] (q4_0:
/// [head_dim / 2][64], low nibble even, high nibble odd dimension). Scales of K: [n_blocks][64].
/// Codes of V: [64][v_stride] (q4_0: [64][v_stride / 2], low nibble column c, high nibble column
/// c + v_stride / 2). Scales of V: [64][n_blocks].
struct KvLayout {
  KvType type;
  int head_dim;
  int v_stride;  // columns of a row of V: head_dim rounded up to 16 (q4_0: 32)
  int n_blocks;  // ceil(head_dim / 32); 0 for plain types
  int64_t k_scales, v_codes, v_scales;
  int64_t head_bytes;  // a multiple of 64
};

/// The layout for a head_dim that is even and at least 2.
KvLayout kv_layout(KvType type, int head_dim) noexcept;

struct KvOps {
  /// Writes n tokens at places [offset, offset + n) of a page. k, v: rows [n, head_dim], ld apart.
  void (*store_k)(const KvLayout& layout, std::byte* page, int offset, int n, const float* k,
                  int64_t ld);
  void (*store_v)(const KvLayout& layout, std::byte* page, int offset, int n, const float* v,
                  int64_t ld);
  /// out[d * 64 + t] = K of tokens [0, n) (n rounded up to 16: what lies behind is unspecified).
  /// ahead: bytes to the page that will be read next, which is fetched meanwhile; 0: none.
  void (*widen_k)(const KvLayout& layout, const std::byte* page, int n, int64_t ahead, float* out);
  /// out[t * v_stride + c] = V of tokens [begin, end); columns past head_dim are 0.
  void (*widen_v)(const KvLayout& layout, const std::byte* page, int begin, int end, int64_t ahead,
                  float* out);
  /// The scales of a quantised page as f32, laid out as they are: of keys [n_blocks][64], of values
  /// [64][n_blocks].
  void (*widen_scales)(const KvLayout& layout, const std::byte* page, int64_t ahead, float* k,
                       float* v);
};

const KvOps& kv_ops(const Isa& isa) noexcept;

}  // namespace qw::kernels
