// What the tests of this folder share.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "kernels/isa.h"
#include "quant/linear_source.h"
#include "quantize/blocked_matrix.h"
#include "quantize/hessian.h"

namespace qw::quantize::test {

using Floats = std::vector<float>;

inline size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

/// A team of n_threads with the best kernels of this CPU.
class Team {
 public:
  explicit Team(int n_threads = 2) : pool_(n_threads) {}
  operator const MatrixTeam&() const { return team_; }  // NOLINT(google-explicit-constructor)

 private:
  ThreadPool pool_;
  MatrixTeam team_{&pool_, &kernels::matrix_ops(kernels::detect_isa())};
};

inline Floats normals(int64_t n, uint64_t stream, double scale = 1) {
  Floats out(at(n));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<float>(scale * random_normal(5, stream, i));
  return out;
}

/// Inputs [n_tokens, k] that go together, as activations do: noise and a few common directions, and
/// columns of different size.
inline Floats inputs(int64_t n_tokens, int64_t k, uint64_t stream) {
  constexpr int64_t kDirections = 6;
  const Floats noise = normals(n_tokens * k, stream), direction = normals(kDirections * k, 77);
  const Floats amount = normals(n_tokens * kDirections, stream + 1), size = normals(k, 78, 0.7);
  Floats out(noise.size());
  for (int64_t t = 0; t < n_tokens; ++t) {
    for (int64_t i = 0; i < k; ++i) {
      float sum = 0.5F * noise[at(t * k + i)];
      for (int64_t d = 0; d < kDirections; ++d)
        sum += amount[at(t * kDirections + d)] * direction[at(d * k + i)];
      out[at(t * k + i)] = sum * std::exp(size[at(i)]);
    }
  }
  return out;
}

inline LinearSource matrix(int64_t n, int64_t k, Floats values) {
  return LinearSource::of_floats("layers.0.q_proj.weight", n, k,
                                 std::make_shared<const Floats>(std::move(values)));
}

inline Floats decode(const LinearSource& source) {
  Floats out(at(source.n * source.k));
  source.decode_rows(0, source.n, out.data());
  return out;
}

/// The mean over outputs and tokens of ((W - Q) X)^2.
inline double out_mse(const LinearSource& w, const LinearSource& q, const Floats& x) {
  const Floats a = decode(w), b = decode(q);
  const int64_t k = w.k, n_tokens = static_cast<int64_t>(x.size()) / k;
  double sum = 0;
  for (int64_t o = 0; o < w.n; ++o) {
    for (int64_t t = 0; t < n_tokens; ++t) {
      double y = 0;
      for (int64_t i = 0; i < k; ++i) {
        y += (static_cast<double>(a[at(o * k + i)]) - static_cast<double>(b[at(o * k + i)])) *
             static_cast<double>(x[at(t * k + i)]);
      }
      sum += y * y;
    }
  }
  return sum / static_cast<double>(w.n * n_tokens);
}

}  // namespace qw::quantize::test
