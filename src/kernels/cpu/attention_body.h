// Attention over one page, written once over a vector type; each ISA folder instantiates it.
//
// Level 3 (kernels). Both products are one register tile: R rows by N vectors of columns, summed
// over k in ascending order. The shape of the tile never changes what is added in which order.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cpu/elementwise_body.h"

namespace qw::kernels {

template <class V>
struct AttentionBody {
  using F = typename V::F;
  static constexpr int W = V::kLanes;
  static constexpr int P = kKvPageTokens;
  static constexpr int kTileRows = 6;

  // What a product multiplies by: row k of a matrix b, W columns from column + offset on, and where
  // the same place of the page that is read next lies. `column` is where a tile begins.
  template <class Element>
  struct Plain {
    const Element* data;
    int64_t ld;

    explicit Plain(const PageMatrix& b) : data(static_cast<const Element*>(b.data)), ld(b.ld) {}
    const Element* place(int k, int64_t j) const { return data + k * ld + j; }
    template <int n>
    void fetch(int k, int64_t j, int64_t ahead) const {
      fetch_lines<n* static_cast<int>(sizeof(Element))>(place(k, j), ahead);
    }
  };
  struct PlainF32 : Plain<float> {
    using Plain<float>::Plain;
    F load(int k, int64_t column, int offset) const {
      return V::load(this->place(k, column + offset));
    }
  };
  struct PlainF16 : Plain<uint16_t> {
    using Plain<uint16_t>::Plain;
    F load(int k, int64_t column, int offset) const {
      return V::load_f16(this->place(k, column + offset));
    }
  };
  struct PlainBf16 : Plain<uint16_t> {
    using Plain<uint16_t>::Plain;
    F load(int k, int64_t column, int offset) const {
      return V::load_bf16(this->place(k, column + offset));
    }
  };

  /// Codes of q8_0 with scales, widened where they are used: d * q, the same product as
  /// KvOps::widen_k. kKeys: k runs along head_dim, which shares scales in blocks, and columns are
  /// tokens; otherwise (values) the other way round. Codes of q4_0 take more work than is saved by
  /// not widening them first.
  template <bool kKeys>
  struct Quantised {
    const int8_t* codes;
    const float* scales;
    int64_t ld;
    int n_blocks;

    explicit Quantised(const PageMatrix& b)
        : codes(static_cast<const int8_t*>(b.data)),
          scales(b.scales),
          ld(b.ld),
          n_blocks(b.n_blocks) {}
    F load(int k, int64_t column, int offset) const {
      return V::mul(scale(k, column, offset), V::load_i8(codes + k * ld + column + offset));
    }
    F scale(int k, int64_t column, int offset) const {
      if constexpr (kKeys) return V::load(scales + k / kKvBlock * P + column + offset);
      // A tile that is wider than a block begins with one, so that its vectors share what they
      // load.
      return V::set1(scales[k * n_blocks + column / kKvBlock + offset / kKvBlock]);
    }
    template <int n>
    void fetch(int k, int64_t column, int64_t ahead) const {
      fetch_lines<n>(codes + k * ld + column, ahead);
    }
  };

  /// Asks for n_bytes that lie `ahead` bytes from p, into L2: see kPrefetchBytes in
  /// linear_kernel.h.
  template <int n_bytes>
  static void fetch_lines(const void* p, int64_t ahead) {
    for (int i = 0; i < n_bytes; i += 64)
      __builtin_prefetch(static_cast<const char*>(p) + ahead + i, 0, 2);
  }

  /// c[r, j] = c[r, j] * factor[r] (0 if factor is null) + sum over k in [begin, end) of
  /// a[r, k] * b[k, j], for the rows from a, c and factor and the columns from `column` on.
  template <class B>
  struct Product {
    const float* a;
    int64_t lda;
    B b;
    int64_t column;
    int begin, end;
    const float* factor;
    float* c;
    int64_t ldc;
    int64_t ahead;

    Product rows_from(int r) const {
      Product out = *this;
      out.a += r * lda;
      out.c += r * ldc;
      if (factor != nullptr) out.factor += r;
      return out;
    }
    Product cols_from(int j) const {
      Product out = *this;
      out.column += j;
      out.c += j;
      return out;
    }
  };

  template <class B, int R, int N>
  static void tile(const Product<B>& p) {
    F sum[R][N];
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < N; ++j) {
        sum[r][j] = p.factor == nullptr
                        ? V::set1(0.0F)
                        : V::mul(V::load(p.c + r * p.ldc + j * W), V::set1(p.factor[r]));
      }
    }
    const auto step = [&](int k) {
      F b[N];
      for (int j = 0; j < N; ++j)
        b[j] = p.b.load(k, p.column, j * W);
      for (int r = 0; r < R; ++r) {
        const F a = V::set1(p.a[r * p.lda + k]);
        for (int j = 0; j < N; ++j)
          sum[r][j] = V::fma(a, b[j], sum[r][j]);
      }
    };
    if (p.ahead == 0) {
#pragma GCC unroll 4
      for (int k = p.begin; k < p.end; ++k)
        step(k);
    } else {
      for (int k = p.begin; k < p.end; ++k) {
        p.b.template fetch<N * W>(k, p.column, p.ahead);
        step(k);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < N; ++j)
        V::store(p.c + r * p.ldc + j * W, sum[r][j]);
    }
  }

  /// R rows, n columns (a multiple of W): the widest tiles that the registers hold, then narrower.
  template <class B, int R, int N>
  static void columns(const Product<B>& p, int n) {
    int j = 0;
    for (; j + N * W <= n; j += N * W)
      tile<B, R, N>(p.cols_from(j));
    if constexpr (N > 1) {
      if (j < n) columns<B, R, N / 2>(p.cols_from(j), n - j);
    }
  }

  static constexpr int widest(int rows) {
    int n = 8;
    while (n > 1 && n * rows > V::kAccumulators)
      n /= 2;
    return n;
  }

  template <class B, int R = kTileRows>
  static void all_rows(const Product<B>& p, int rows, int n) {
    int r = 0;
    for (; r + R <= rows; r += R)
      columns<B, R, widest(R)>(p.rows_from(r), n);
    if constexpr (R > 1) {
      if (r < rows) all_rows<B, R - 1>(p.rows_from(r), rows - r, n);
    }
  }

  template <class B>
  static void product(const float* a, int64_t lda, int rows, const PageMatrix& b, int begin,
                      int end, const float* factor, float* c, int64_t ldc, int n) {
    all_rows<B>(Product<B>{a, lda, B(b), 0, begin, end, factor, c, ldc, b.ahead}, rows, n);
  }

  using ProductFn = void (*)(const float*, int64_t, int, const PageMatrix&, int, int, const float*,
                             float*, int64_t, int);

  template <bool kKeys>
  static ProductFn product_of(KvType type) {
    switch (type) {
      case KvType::kF32:
        return product<PlainF32>;
      case KvType::kF16:
        return product<PlainF16>;
      case KvType::kBF16:
        return product<PlainBf16>;
      case KvType::kQ8_0:
        return product<Quantised<kKeys>>;
      case KvType::kQ4_0:
        return nullptr;  // widened first
    }
    return nullptr;
  }

  static void scores(const float* q, int64_t ld_q, int rows, int head_dim, const PageMatrix& k,
                     int n_tokens, float* s) {
    product_of<true>(k.type)(q, ld_q, rows, k, 0, head_dim, nullptr, s, P, n_tokens);
  }

  static void values(const float* s, int rows, int begin, int end, const PageMatrix& v,
                     const float* correction, const SoftmaxRows& state) {
    product_of<false>(v.type)(s, P, rows, v, begin, end, correction, state.o, state.ld_o, v.ld);
  }

  static int softmax(float* s, int rows, int n_tokens, const int* begin, const int* end,
                     const SoftmaxRows& state, float* correction) {
    int bad = -1;
    for (int r = 0; r < rows; ++r) {
      if (!softmax_row(s + r * P, n_tokens, begin[r], end[r], state.m[r], state.l[r],
                       correction[r]) &&
          bad < 0) {
        bad = r;
      }
    }
    return bad;
  }

  /// Masked: only tokens [begin, end) count; otherwise all n_tokens do.
  template <bool kMasked>
  static bool softmax_tokens(float* s, int n_tokens, int begin, int end, float& m, float& l,
                             float& correction) {
    const F none = V::set1(-__builtin_huge_valf()), zero = V::set1(0.0F);
    const auto load = [&](int t, F other) {
      const F v = V::load(s + t);
      return kMasked ? V::keep(v, begin - t, end - t, other) : v;
    };
    F top = none, poison = zero;  // poison: 0, or NaN as soon as a score is not finite
    for (int t = 0; t < n_tokens; t += W) {
      poison = V::fma(load(t, zero), zero, poison);
      top = V::max(top, load(t, none));
    }
    const float page_top = V::reduce_max(top);
    const float new_m = page_top > m ? page_top : m;
    F sum = zero;
    for (int t = 0; t < n_tokens; t += W) {
      const F e = exp_lanes<V, true>(V::sub(load(t, none), V::set1(new_m)));
      sum = V::add(sum, e);
      V::store(s + t, e);
    }
    correction = V::first(exp_lanes<V, true>(V::set1(m - new_m)));
    l = l * correction + V::reduce_add(sum);
    m = new_m;
    return V::all_finite(poison);
  }

  static bool softmax_row(float* s, int n_tokens, int begin, int end, float& m, float& l,
                          float& correction) {
    if (begin <= 0 && end >= n_tokens)
      return softmax_tokens<false>(s, n_tokens, begin, end, m, l, correction);
    if (begin < end) return softmax_tokens<true>(s, n_tokens, begin, end, m, l, correction);
    correction = 1.0F;
    for (int t = 0; t < n_tokens; t += W)
      V::store(s + t, V::set1(0.0F));
    return true;
  }

  static void merge(int rows, const SoftmaxRows& part, const SoftmaxRows& total) {
    for (int r = 0; r < rows; ++r) {
      const float a_m = total.m[r], b_m = part.m[r];
      if (b_m == -__builtin_huge_valf()) continue;
      const float m = b_m > a_m ? b_m : a_m;
      const F a = exp_lanes<V>(V::set1(a_m - m)), b = exp_lanes<V>(V::set1(b_m - m));
      total.m[r] = m;
      total.l[r] = total.l[r] * V::first(a) + part.l[r] * V::first(b);
      float* to = total.o + r * total.ld_o;
      const float* from = part.o + r * part.ld_o;
      for (int64_t c = 0; c < total.ld_o; c += W) {
        V::store(to + c, V::fma(V::load(to + c), a, V::mul(V::load(from + c), b)));
      }
    }
  }

  static bool finish(const float* o, float l, int head_dim, float* out) {
    const F inverse = V::set1(1.0F / l);
    bool finite = true;
    for (int c = 0; c < head_dim; c += W) {
      const F v = V::add(V::mul(V::load_n(o + c, head_dim - c, 0.0F), inverse), V::set1(0.0F));
      finite &= V::all_finite(v);
      V::store_n(out + c, head_dim - c, v);
    }
    return finite;
  }

  static constexpr AttentionOps table() {
    return {V::kName, scores, softmax, values, merge, finish};
  }
};

}  // namespace qw::kernels
