// The operations of kernels/matrix.h, written once over a vector type; each ISA folder instantiates
// them.
//
// Level 3 (kernels). `V` lives in an anonymous namespace, so every instance has internal linkage.
#pragma once

#include <cstdint>

#include "kernels/matrix.h"

namespace qw::kernels {

template <class V>
struct MatrixBody {
  using F = typename V::F;
  static constexpr int kRows = 6;
  static constexpr int kRegisters = V::kAccumulators / kRows;  // of one row of a tile
  static constexpr int kCols = kRegisters * V::kLanes;
  static_assert(kGridRows % kCols == 0);

  static void multiply_tile(const float* a, const float* b, int64_t b_stride, int64_t depth,
                            float sign, float* c, int64_t c_stride) {
    F sums[kRows][kRegisters];
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kRegisters; ++j)
        sums[i][j] = V::set1(0.0F);
    }
    for (int64_t p = 0; p < depth; ++p, a += kRows, b += b_stride) {
      F columns[kRegisters];
#pragma GCC unroll 4
      for (int j = 0; j < kRegisters; ++j)
        columns[j] = V::load(b + j * V::kLanes);
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) {
        const F x = V::set1(a[i]);
#pragma GCC unroll 4
        for (int j = 0; j < kRegisters; ++j)
          sums[i][j] = V::fma(x, columns[j], sums[i][j]);
      }
    }
    const F s = V::set1(sign);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kRegisters; ++j) {
        float* at = c + i * c_stride + j * V::kLanes;
        V::store(at, V::fma(sums[i][j], s, V::load(at)));  // exact product: nothing to fuse
      }
    }
  }

  static void quantise_columns(const GridColumns& job) {
    // Eight chains hide the latency of a multiply-add; each takes its other operand from L1.
    constexpr int kChains = V::kLanes >= 16 ? kGridRows / V::kLanes : 8;
    constexpr int kStep = kChains * V::kLanes;
    static_assert(kGridRows % kStep == 0);
    const F lowest = V::set1(0.0F), highest = V::set1(job.highest);
    for (int row = 0; row < kGridRows; row += kStep) {
      F loss[kChains];
#pragma GCC unroll 8
      for (int r = 0; r < kChains; ++r)
        loss[r] = V::set1(0.0F);
      for (int64_t i = 0; i < job.n_columns; ++i) {
        const float* u = job.feedback + i * job.feedback_stride;
        F v[kChains];
#pragma GCC unroll 8
        for (int r = 0; r < kChains; ++r)
          v[r] = V::load(job.w + i * kGridRows + row + r * V::kLanes);
        const float* errors = job.errors + row;
        for (int64_t j = 0; j < i; ++j, errors += kGridRows) {
          const F x = V::set1(u[j]);
#pragma GCC unroll 8
          for (int r = 0; r < kChains; ++r)
            v[r] = V::fma(V::load(errors + r * V::kLanes), x, v[r]);
        }
        const F pivot = V::set1(u[i]);
#pragma GCC unroll 8
        for (int r = 0; r < kChains; ++r) {
          const int64_t at = row + r * V::kLanes;
          const F scale = V::load(job.scale + i * job.grid_stride + at);
          const F zero = V::load(job.zero + i * job.grid_stride + at);
          const F code =
              V::min(V::max(V::add(V::round(V::div(v[r], scale)), zero), lowest), highest);
          const F error = V::div(V::sub(V::mul(scale, V::sub(code, zero)), v[r]), pivot);
          V::store(job.errors + i * kGridRows + at, error);
          if (job.codes != nullptr) V::store(job.codes + i * kGridRows + at, code);
          loss[r] = V::fma(error, error, loss[r]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kChains; ++r)
        V::store(job.loss + row + r * V::kLanes, loss[r]);
    }
  }

  static constexpr MatrixOps table() {
    return {V::kName, kRows, kCols, multiply_tile, quantise_columns};
  }
};

}  // namespace qw::kernels
