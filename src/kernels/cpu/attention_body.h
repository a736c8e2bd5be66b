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

  struct LoadF32 {
    using T = float;
    static F load(const T* p) { return V::load(p); }
  };
  struct LoadF16 {
    using T = uint16_t;
    static F load(const T* p) { return V::load_f16(p); }
  };
  struct LoadBF16 {
    using T = uint16_t;
    static F load(const T* p) { return V::load_bf16(p); }
  };

  /// c[r, j] = c[r, j] * factor[r] (0 if factor is null) + sum over k in [begin, end) of
  /// a[r, k] * b[k, j].
  template <class T>
  struct Product {
    const float* a;
    int64_t lda;
    const T* b;
    int64_t ldb;
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
      out.b += j;
      out.c += j;
      return out;
    }
  };

  /// Asks for the n elements that lie `ahead` bytes from p.
  template <int n, class T>
  static void fetch(const T* p, int64_t ahead) {
    constexpr int kLineElems = 64 / static_cast<int>(sizeof(T));
    for (int i = 0; i < n; i += kLineElems)
      __builtin_prefetch(reinterpret_cast<const char*>(p + i) + ahead);
  }

  template <class Load, int R, int N>
  static void tile(const Product<typename Load::T>& p) {
    F sum[R][N];
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < N; ++j) {
        sum[r][j] = p.factor == nullptr
                        ? V::set1(0.0F)
                        : V::mul(V::load(p.c + r * p.ldc + j * W), V::set1(p.factor[r]));
      }
    }
    for (int k = p.begin; k < p.end; ++k) {
      F b[N];
      for (int j = 0; j < N; ++j)
        b[j] = Load::load(p.b + k * p.ldb + j * W);
      if (p.ahead != 0) fetch<N * W>(p.b + k * p.ldb, p.ahead);
      for (int r = 0; r < R; ++r) {
        const F a = V::set1(p.a[r * p.lda + k]);
        for (int j = 0; j < N; ++j)
          sum[r][j] = V::fma(a, b[j], sum[r][j]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < N; ++j)
        V::store(p.c + r * p.ldc + j * W, sum[r][j]);
    }
  }

  /// R rows, n columns (a multiple of W): the widest tiles that the registers hold, then narrower.
  template <class Load, int R, int N>
  static void columns(const Product<typename Load::T>& p, int n) {
    int j = 0;
    for (; j + N * W <= n; j += N * W)
      tile<Load, R, N>(p.cols_from(j));
    if constexpr (N > 1) {
      if (j < n) columns<Load, R, N / 2>(p.cols_from(j), n - j);
    }
  }

  static constexpr int widest(int rows) {
    int n = 8;
    while (n > 1 && n * rows > V::kAccumulators)
      n /= 2;
    return n;
  }

  template <class Load, int R = kTileRows>
  static void all_rows(const Product<typename Load::T>& p, int rows, int n) {
    int r = 0;
    for (; r + R <= rows; r += R)
      columns<Load, R, widest(R)>(p.rows_from(r), n);
    if constexpr (R > 1) {
      if (r < rows) all_rows<Load, R - 1>(p.rows_from(r), rows - r, n);
    }
  }

  template <class Load>
  static void product(const float* a, int64_t lda, int rows, const PageMatrix& b, int begin,
                      int end, const float* factor, float* c, int64_t ldc, int n) {
    using T = typename Load::T;
    all_rows<Load>(Product<T>{a, lda, static_cast<const T*>(b.data), b.ld, begin, end, factor, c,
                              ldc, b.ahead},
                   rows, n);
  }

  static void scores(const float* q, int64_t ld_q, int rows, int head_dim, const PageMatrix& k,
                     int n_tokens, float* s) {
    const auto run = k.type == KvType::kF32   ? product<LoadF32>
                     : k.type == KvType::kF16 ? product<LoadF16>
                                              : product<LoadBF16>;
    run(q, ld_q, rows, k, 0, head_dim, nullptr, s, P, n_tokens);
  }

  static void values(const float* s, int rows, int begin, int end, const PageMatrix& v,
                     const float* correction, const SoftmaxRows& state) {
    const auto run = v.type == KvType::kF32   ? product<LoadF32>
                     : v.type == KvType::kF16 ? product<LoadF16>
                                              : product<LoadBF16>;
    run(s, P, rows, v, begin, end, correction, state.o, state.ld_o, v.ld);
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

  static bool softmax_row(float* s, int n_tokens, int begin, int end, float& m, float& l,
                          float& correction) {
    const F none = V::set1(-__builtin_huge_valf()), zero = V::set1(0.0F);
    bool finite = true;
    F top = none;
    for (int t = 0; t < n_tokens; t += W) {
      const F v = V::load(s + t);
      finite &= V::all_finite(V::keep(v, begin - t, end - t, zero));
      top = V::max(top, V::keep(v, begin - t, end - t, none));
    }
    const float page_top = V::reduce_max(top);
    const float new_m = page_top > m ? page_top : m;
    correction = 1.0F;
    if (begin >= end) {
      for (int t = 0; t < n_tokens; t += W)
        V::store(s + t, zero);
      return true;
    }
    F sum = zero;
    for (int t = 0; t < n_tokens; t += W) {
      const F v = V::keep(V::load(s + t), begin - t, end - t, none);
      const F e = exp_lanes<V>(V::sub(v, V::set1(new_m)));
      sum = V::add(sum, e);
      V::store(s + t, e);
    }
    correction = V::first(exp_lanes<V>(V::set1(m - new_m)));
    l = l * correction + V::reduce_add(sum);
    m = new_m;
    return finite;
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
