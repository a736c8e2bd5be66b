#include "quantize/awq_search.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/checked.h"
#include "base/half.h"

namespace qw::quantize {

namespace {

constexpr float kHighest = 15;

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

float half(float value) {
  return f16_to_f32(f32_to_f16(value));
}

int64_t group_of(int64_t group_size, int64_t k) {
  return group_size == -1 ? k : group_size;
}

std::pair<float, float> range_of(const float* w, int64_t size) {
  const auto [low, high] = std::minmax_element(w, w + size);
  return {*low, *high};
}

void round_group(float* w, int64_t size) {
  const auto [low, high] = range_of(w, size);
  const float scale = std::max(high - low, 1e-5F) / kHighest;
  const float zero = std::clamp(-std::nearbyint(low / scale), 0.0F, kHighest);
  for (int64_t i = 0; i < size; ++i) {
    const float code = std::clamp(std::nearbyint(w[i] / scale) + zero, 0.0F, kHighest);
    w[i] = (code - zero) * scale;
  }
}

/// d^T G d of a lower triangle G [size, size].
double quadratic(const float* gram, const float* d, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) {
    float dot = 0;
    for (int64_t j = 0; j < i; ++j)
      dot += gram[i * size + j] * d[j];
    sum += static_cast<double>(d[i]) *
           (2 * static_cast<double>(dot) + static_cast<double>(gram[i * size + i] * d[i]));
  }
  return sum;
}

}  // namespace

AwqInputs::AwqInputs(std::string name, int64_t k, const MatrixTeam& team, int64_t n_tokens,
                     int64_t n_kept)
    : moments_(std::move(name), k, team),
      sizes_(at(k)),
      step_(n_kept == 0 ? 0 : std::max<int64_t>(1, n_tokens / n_kept)) {}

void AwqInputs::add(const float* x, int64_t n_tokens) {
  const int64_t k = moments_.k(), before = moments_.n_tokens();
  moments_.add(x, n_tokens, k);
  for (int64_t t = 0; t < n_tokens; ++t) {
    const float* row = x + t * k;
    for (int64_t i = 0; i < k; ++i)
      sizes_[at(i)] += static_cast<double>(std::abs(row[i]));
    if (step_ > 0 && (before + t) % step_ == 0) kept_.insert(kept_.end(), row, row + k);
  }
}

std::vector<float> AwqInputs::mean_sizes() const {
  std::vector<float> out(sizes_.size());
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<float>(sizes_[i] / static_cast<double>(moments_.n_tokens()));
  return out;
}

std::vector<float> awq_weight_sizes(std::span<const LinearSource> parts, int64_t group_size,
                                    const MatrixTeam& team) {
  constexpr int64_t kRows = 64;
  const int64_t k = parts.front().k, group = group_of(group_size, k);
  std::vector<double> sums(at(k));
  int64_t n = 0;
  for (const LinearSource& part : parts) {
    n += part.n;
    const int64_t n_blocks = ceil_div(part.n, kRows);
    std::vector<std::vector<double>> of_blocks(at(n_blocks));
    team.for_each(n_blocks, [&](int64_t block) {
      const int64_t row = block * kRows, n_rows = std::min(kRows, part.n - row);
      std::vector<float> w(at(n_rows * k));
      part.decode_rows(row, n_rows, w.data());
      std::vector<double>& sum = of_blocks[at(block)];
      sum.resize(at(k));
      for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t begin = 0; begin < k; begin += group) {
          const float* from = w.data() + r * k + begin;
          const auto [low, high] = range_of(from, group);
          const float largest = std::max(-low, high) + 1e-6F;
          for (int64_t i = 0; i < group; ++i)
            sum[at(begin + i)] += static_cast<double>(std::abs(from[i]) / largest);
        }
      }
    });
    for (const std::vector<double>& sum : of_blocks)
      std::transform(sums.begin(), sums.end(), sum.begin(), sums.begin(), std::plus<>());
  }
  std::vector<float> out(at(k));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<float>(sums[i] / static_cast<double>(n));
  return out;
}

std::vector<float> awq_scales(std::span<const float> x_sizes, std::span<const float> w_sizes,
                              double ratio) {
  const auto power = static_cast<float>(ratio), rest = static_cast<float>(1 - ratio);
  std::vector<float> out(x_sizes.size());
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = std::max(std::pow(x_sizes[i], power) / (std::pow(w_sizes[i], rest) + 1e-4F), 1e-4F);
  }
  const auto [low, high] = std::ranges::minmax_element(out);
  const float middle = std::sqrt(*high * *low);
  for (float& scale : out) {
    scale /= middle;
    if (!std::isfinite(scale)) scale = 1;
  }
  return out;
}

std::vector<float> scaled_rows(const LinearSource& w, int64_t row, int64_t n_rows,
                               std::span<const float> scales, std::span<const float> divisors) {
  std::vector<float> out(at(n_rows * w.k));
  w.decode_rows(row, n_rows, out.data());
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t i = 0; i < w.k; ++i) {
      float& value = out[at(r * w.k + i)];
      value *= scales[at(i)];
      if (!divisors.empty()) value /= divisors[at(row + r)];
    }
  }
  return out;
}

LinearSource scaled_source(const LinearSource& w, std::span<const float> scales,
                           std::span<const float> divisors) {
  return LinearSource::of_floats(
      w.name, w.n, w.k,
      std::make_shared<const std::vector<float>>(scaled_rows(w, 0, w.n, scales, divisors)));
}

void awq_round(float* w, int64_t n, int64_t k, int64_t group_size) {
  const int64_t group = group_of(group_size, k);
  for (int64_t begin = 0; begin < n * k; begin += group)
    round_group(w + begin, group);
}

double output_error(const MatrixTeam& team, const Hessian& moments, const float* d, int64_t n) {
  const kernels::MatrixOps& ops = *team.ops;
  const int64_t k = moments.k(), n_blocks = ceil_div(k, kBlockCols);
  std::vector<float> rows(at(packed_floats(ops.tile_rows, n, k)));
  pack_tiles(ops.tile_rows, d, k, 1, n, k, rows.data());
  std::vector<double> sums(at(n_blocks));
  team.for_each(n_blocks, [&](int64_t block) {
    const int64_t col = block * kBlockCols, n_cols = std::min(kBlockCols, k - col);
    std::vector<float> square(at(n_cols * k));
    for (int64_t j = 0; j < n_cols; ++j) {
      for (int64_t p = 0; p < k; ++p)
        square[at(j * k + p)] = moments.at(col + j, p);
    }
    std::vector<float> columns(at(packed_floats(ops.tile_cols, n_cols, k)));
    pack_tiles(ops.tile_cols, square.data(), k, 1, n_cols, k, columns.data());
    std::vector<float> product(at(kBlockRows * kBlockCols));
    double sum = 0;
    for (int64_t row = 0; row < n; row += kBlockRows) {
      const int64_t n_rows = std::min(kBlockRows, n - row);
      std::ranges::fill(product, 0.0F);
      multiply_block(ops, rows.data() + row * k, n_rows, columns.data(), n_cols, k, 1,
                     product.data(), kBlockCols, kWholeBlock);
      for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t j = 0; j < n_cols; ++j) {
          sum += static_cast<double>(product[at(r * kBlockCols + j)]) *
                 static_cast<double>(d[(row + r) * k + col + j]);
        }
      }
    }
    sums[at(block)] = sum;
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

std::vector<float> awq_clip(const MatrixTeam& team, const float* w, int64_t n, int64_t k,
                            int64_t group_size, const std::vector<float>& x) {
  constexpr int kSteps = 10;  // of kAwqRatios: half of the way down to 0
  const int64_t group = group_of(group_size, k), n_groups = k / group;
  const int64_t n_tokens = std::ssize(x) / k;
  std::vector<float> out(at(n * n_groups));
  PackedPair scratch;
  std::vector<float> gram(at(group * group));
  for (int64_t g = 0; g < n_groups; ++g) {
    std::ranges::fill(gram, 0.0F);
    add_gram(team, x.data() + g * group, k, n_tokens, group, gram.data(), scratch);
    team.for_each(n, [&](int64_t row) {
      const float* from = w + row * k + g * group;
      const auto [low, high] = range_of(from, group);
      const float largest = std::max(-low, high);
      std::vector<float> tried(at(group));
      float best = largest;
      double least = 1e9 * static_cast<double>(n_tokens);
      for (int step = 0; step < kSteps; ++step) {
        const float bound =
            largest * static_cast<float>(1 - static_cast<double>(step) / kAwqRatios);
        for (int64_t i = 0; i < group; ++i)
          tried[at(i)] = std::clamp(from[i], -bound, bound);
        round_group(tried.data(), group);
        for (int64_t i = 0; i < group; ++i)
          tried[at(i)] -= from[i];
        const double error = quadratic(gram.data(), tried.data(), group);
        if (!(error < least)) continue;
        least = error;
        best = bound;
      }
      out[at(row * n_groups + g)] = best;
    });
  }
  return out;
}

void apply_clip(float* w, int64_t n, int64_t k, int64_t group_size,
                const std::vector<float>& bounds) {
  const int64_t group = group_of(group_size, k);
  for (int64_t i = 0; i < n * k; ++i) {
    const float bound = bounds[at(i / group)];
    w[i] = std::clamp(w[i], -bound, bound);
  }
}

std::shared_ptr<const AffineMatrix> awq_publish_rounding(const float* w, int64_t n, int64_t k,
                                                         int64_t group_size) {
  const int64_t group = group_of(group_size, k);
  auto out = std::make_shared<AffineMatrix>();
  out->n = n;
  out->k = k;
  out->bits = 4;
  out->group_size = group;
  out->n_groups = k / group;
  out->code_values.resize(at(n * k));
  std::vector<float> halves(at(group));
  for (int64_t begin = 0; begin < n * k; begin += group) {
    std::transform(w + begin, w + begin + group, halves.begin(), half);
    const auto [low, high] = range_of(halves.data(), group);
    const float scale = half(std::max(half(high - low), half(1e-5F)) / kHighest);
    const float zero = std::clamp(-std::nearbyint(half(low / scale)), 0.0F, kHighest);
    const float shift = half(zero * scale);
    for (int64_t i = 0; i < group; ++i) {
      const float code = std::clamp(std::nearbyint(half(halves[at(i)] / scale)) + zero, 0.0F,
                                    kHighest);
      const float value = half((code - zero) * scale);
      out->code_values[at(begin + i)] =
          static_cast<uint8_t>(std::nearbyint(half(half(value + shift) / scale)));
    }
    out->scale_values.push_back(scale);
    out->zero_values.push_back(zero);
  }
  return out;
}

}  // namespace qw::quantize
