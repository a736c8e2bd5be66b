// Elementwise and row-wise operations on f32 activations: one table of functions per ISA.
//
// Level 3 (kernels). Pure functions on raw pointers; they check nothing but finiteness. Every
// sum runs in a lane order that depends on the row length only, so a row's bits depend neither on
// its neighbours nor on alignment. No static initialisers: the tables are constants.
#pragma once

#include <cstdint>

namespace qw::kernels {

struct Isa;  // kernels/isa.h

struct ElementwiseOps {
  const char* name;  // of the instruction set

  /// out[i] = exp(x[i]), relative error at most 2^-22; 0 below -87.33, infinity above 88.72.
  void (*exp)(const float* x, int64_t n, float* out);

  /// x += y (unless y is null), h = x * (1 / sqrt(mean(x^2) + eps)) * w, one row of n.
  /// Returns false if the mean square is not finite (h is then unspecified). Source: RMSNorm,
  /// Zhang and Sennrich 2019, with the order of products of Qwen2RMSNorm.
  bool (*add_rms_norm)(const float* y, float* x, const float* w, float eps, int64_t n, float* h);

  /// gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i]. Returns false if a result is not finite.
  bool (*silu_mul)(float* gate, const float* up, int64_t n);

  /// Half-split rotation of one head, in place, with h = head_dim / 2:
  ///   (x[i], x[i + h]) = (x[i] cos[i] - x[i + h] sin[i], x[i + h] cos[i] + x[i] sin[i]).
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half);

  /// y[i] += scale * x[i], product rounded into the sum once where the ISA has fused multiply-add.
  void (*add_scaled)(const float* x, float scale, float* y, int64_t n);

  /// y[i] += (f[i] - 1) * wx[i] + f[i] * scale * u[i]: DoRA's addition, see backend/backend.h.
  void (*add_dora)(const float* f, const float* wx, const float* u, float scale, float* y,
                   int64_t n);

  /// x = exp(x - max(x)) / sum, in place, one row of n >= 1. Returns false if not finite.
  bool (*softmax)(float* x, int64_t n);
};

/// The best table that `isa` allows.
const ElementwiseOps& elementwise_ops(const Isa& isa) noexcept;

}  // namespace qw::kernels
