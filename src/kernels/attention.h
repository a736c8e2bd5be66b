// Attention of a block of query rows over one page of keys and values: the only arithmetic that
// prefill and decoding have, so that both give the same bits.
//
// Level 3 (kernels). Online softmax (Milakov and Gimelshein 2018, FlashAttention): per row the
// running maximum m, the sum l of exp(s - m) and o = sum of exp(s - m) v. A row's arithmetic does
// not depend on how many rows are computed together. A masked token has weight exactly 0, and
// finish() turns -0 into +0, so that skipping it or not makes no difference.
#pragma once

#include <cstdint>

#include "kernels/kv_pages.h"

namespace qw::kernels {

struct Isa;  // kernels/isa.h

/// b [k, n] of a product: KV bytes of a page, or widened to f32. Not q4_0, which must be widened.
struct PageMatrix {
  const void* data;
  KvType type;
  int ld;  // elements between rows; quantised keys: 64, quantised values: v_stride
  /// Bytes from here to the same place of the page that will be read next, to be fetched meanwhile;
  /// 0: none. Pages lie anywhere, hardware cannot foresee them.
  int64_t ahead = 0;
  /// q8_0: KvOps::widen_scales, and the layout's n_blocks.
  const float* scales = nullptr;
  int n_blocks = 0;
};

/// The rows of online softmax in progress. o has `ld_o` elements between rows.
struct SoftmaxRows {
  float* m;  // [rows], -infinity at first
  float* l;  // [rows], 0 at first
  float* o;  // [rows, ld_o], 0 at first
  int64_t ld_o;
};

struct AttentionOps {
  const char* name;

  /// s[r * 64 + t] = sum over d (ascending) of q[r * ld_q + d] * k[d, t], for t in [0, n_tokens);
  /// n_tokens is a multiple of 16. The scale is already in q.
  void (*scores)(const float* q, int64_t ld_q, int rows, int head_dim, const PageMatrix& k,
                 int n_tokens, float* s);

  /// Takes the scores of tokens [begin[r], end[r]) of each row into m and l: s becomes
  /// exp(s - new m), 0 outside that range up to n_tokens; correction[r] = exp(old m - new m).
  /// Returns -1, or the first row in which a score is not finite.
  int (*softmax)(float* s, int rows, int n_tokens, const int* begin, const int* end,
                 const SoftmaxRows& state, float* correction);

  /// o[r] = o[r] * correction[r] + sum over t in [begin, end) (ascending) of s[r * 64 + t] * v[t].
  /// Columns [0, v.ld).
  void (*values)(const float* s, int rows, int begin, int end, const PageMatrix& v,
                 const float* correction, const SoftmaxRows& state);

  /// total = total joined with part, row by row; a part without tokens (m = -infinity) changes
  /// nothing. Columns [0, total.ld_o).
  void (*merge)(int rows, const SoftmaxRows& part, const SoftmaxRows& total);

  /// out[0 .. head_dim) = o / l + 0. Returns false if a result is not finite.
  bool (*finish)(const float* o, float l, int head_dim, float* out);
};

const AttentionOps& attention_ops(const Isa& isa) noexcept;

}  // namespace qw::kernels
