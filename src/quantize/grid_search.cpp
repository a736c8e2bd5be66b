#include "quantize/grid_search.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/half.h"

namespace qw::quantize {

namespace {

constexpr int kRows = kernels::kGridRows;
using Lanes = std::array<float, kRows>;

/// The largest and smallest weight of every row, and 0.
struct Range {
  Lanes low{}, high{};
  void take(const float* column) {
    for (int r = 0; r < kRows; ++r) {
      low[static_cast<size_t>(r)] = std::min(low[static_cast<size_t>(r)], column[r]);
      high[static_cast<size_t>(r)] = std::max(high[static_cast<size_t>(r)], column[r]);
    }
  }
};

/// How far grids are narrowed: outliers are worth less the fewer levels there are. The steps are
/// coarse over the whole range, then fine around the best.
struct Narrowing {
  float least;
  int steps;
};
Narrowing narrowing_of(int bits) {
  switch (bits) {
    case 2:
      return {0.30F, 10};
    case 3:
      return {0.45F, 10};
    case 4:
      return {0.55F, 10};
    default:
      return {0.85F, 6};
  }
}
constexpr int kFineSteps = 4;  // on either side

float as_f16(float scale) {
  const float out = f16_to_f32(f32_to_f16(scale));
  return out != 0 ? out : std::copysign(0x1p-24F, scale);
}

class Search {
 public:
  Search(const GridKind& kind, const kernels::MatrixOps& ops, std::span<const GridChunk> chunks,
         float* errors, Grid& best)
      : kind_(kind), ops_(ops), chunks_(chunks), errors_(errors), best_(best) {
    best_loss_.fill(std::numeric_limits<float>::infinity());
  }

  /// Tries width[r] * factor[r] as scales.
  void consider(const Lanes& width, const Lanes& factor, const Lanes& zero) {
    Grid grid;
    for (int r = 0; r < kRows; ++r) {
      const auto i = static_cast<size_t>(r);
      grid.scale[r] = as_f16(width[i] * factor[i]);
      grid.zero[r] = zero[i];
    }
    Lanes loss{};
    for (const GridChunk& chunk : chunks_) {
      Lanes part;
      ops_.quantise_columns({chunk.n_columns, chunk.w, chunk.feedback, chunk.n_columns, grid.scale,
                             grid.zero, 0, kind_.highest(), nullptr, errors_, part.data()});
      for (size_t i = 0; i < kRows; ++i)
        loss[i] += part[i];
    }
    for (size_t i = 0; i < kRows; ++i) {
      if (!(loss[i] < best_loss_[i])) continue;
      best_loss_[i] = loss[i];
      best_.scale[i] = grid.scale[i];
      best_.zero[i] = grid.zero[i];
      width_[i] = width[i];
      factor_[i] = factor[i];
    }
  }

  /// Factors from 1 down.
  void coarse(const Lanes& width, const Lanes& zero) {
    const Narrowing n = narrowing_of(kind_.bits);
    for (int step = 0; step < n.steps; ++step) {
      Lanes factor;
      factor.fill(1 - (1 - n.least) * static_cast<float>(step) / static_cast<float>(n.steps - 1));
      consider(width, factor, zero);
    }
  }

  /// Factors between the best and its neighbours.
  void fine() {
    const Narrowing n = narrowing_of(kind_.bits);
    const float step = (1 - n.least) / static_cast<float>(n.steps - 1) / (kFineSteps + 1);
    const Lanes width = width_, center = factor_;
    Lanes zero;
    std::copy_n(best_.zero, kRows, zero.begin());
    for (int i = -kFineSteps; i <= kFineSteps; ++i) {
      if (i == 0) continue;
      Lanes factor;
      for (size_t r = 0; r < kRows; ++r)
        factor[r] = center[r] + step * static_cast<float>(i);
      consider(width, factor, zero);
    }
  }

 private:
  const GridKind& kind_;
  const kernels::MatrixOps& ops_;
  std::span<const GridChunk> chunks_;
  float* errors_;
  Grid& best_;
  Lanes best_loss_;
  Lanes width_{}, factor_{};  // of the best
};

}  // namespace

void reference_grid(const GridKind& kind, std::span<const float* const> columns, Grid& out) {
  Range range;
  for (const float* column : columns)
    range.take(column);
  for (int r = 0; r < kRows; ++r) {
    float low = range.low[static_cast<size_t>(r)], high = range.high[static_cast<size_t>(r)];
    if (kind.sym) {
      high = std::max(-low, high);
      if (low < 0) low = -high;
    }
    if (low == 0 && high == 0) {
      low = -1;
      high = 1;
    }
    out.scale[r] = (high - low) / kind.highest();
    out.zero[r] = kind.sym ? (kind.highest() + 1) / 2 : std::nearbyint(-low / out.scale[r]);
  }
}

bool search_grid(const GridKind& kind, const kernels::MatrixOps& ops,
                 std::span<const GridChunk> chunks, float* errors, Grid& out) {
  constexpr float kLargest = 65504;
  Range range;
  for (const GridChunk& chunk : chunks) {
    for (int64_t i = 0; i < chunk.n_columns; ++i)
      range.take(chunk.w + i * kRows);
  }
  Search search(kind, ops, chunks, errors, out);
  const float highest = kind.highest();
  const auto usable = [&](float scale) {  // rows of zeros: any grid is exact
    return scale != 0 ? scale : 1.0F;
  };
  if (kind.sym) {
    const float middle = (highest + 1) / 2, above = highest - middle;
    Lanes zero, upright, reversed;
    zero.fill(middle);
    for (size_t r = 0; r < kRows; ++r) {
      const float low = -range.low[r], high = range.high[r];
      upright[r] = usable(std::max(low / middle, high / above));
      reversed[r] = -usable(std::max(high / middle, low / above));
      if (!(upright[r] <= kLargest && reversed[r] >= -kLargest)) return false;
    }
    search.coarse(upright, zero);
    search.coarse(reversed, zero);
  } else {
    Lanes width, zero;
    for (size_t r = 0; r < kRows; ++r) {
      width[r] = usable((range.high[r] - range.low[r]) / highest);
      if (!(width[r] <= kLargest)) return false;
    }
    for (int shift = -1; shift <= 1; ++shift) {
      for (size_t r = 0; r < kRows; ++r) {
        const float exact = std::nearbyint(-range.low[r] / width[r]);
        zero[r] = std::clamp(exact + static_cast<float>(shift), kind.lowest_zero, highest);
      }
      search.coarse(width, zero);
    }
  }
  search.fine();
  return true;
}

}  // namespace qw::quantize
