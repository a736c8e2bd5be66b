// Level 2 (quant): see bitsandbytes.h. Choosing codes, and the published tensors of them.
#include <algorithm>
#include <bit>
#include <cmath>
#include <span>

#include "base/checked.h"
#include "base/error.h"
#include "quant/bitsandbytes.h"

namespace qw {

namespace {

/// The least scale that values are divided by; below it bitsandbytes' reciprocal is not finite.
constexpr float kLeastScale = 1e-38F;

/// Midpoints of neighbouring levels: a value on one belongs to the lower level.
template <size_t kCount>
std::array<float, kCount - 1> midpoints(const std::array<float, kCount>& levels) {
  std::array<float, kCount - 1> out;
  for (size_t i = 0; i + 1 < kCount; ++i)
    out[i] = (levels[i] + levels[i + 1]) / 2;
  return out;
}

template <size_t kCount>
uint8_t nearest(const std::array<float, kCount>& bounds, float x) {
  return static_cast<uint8_t>(std::lower_bound(bounds.begin(), bounds.end(), x) - bounds.begin());
}

float largest_of(std::span<const float> x) {
  float largest = 0;
  for (const float value : x)
    largest = std::max(largest, std::abs(value));
  return largest;
}

/// Codes of a block under a scale, as bitsandbytes chooses them: by a product with the reciprocal,
/// in a block that is not full by a quotient.
void code_block(std::span<const float> x, float scale, bool is_full, uint8_t* out) {
  static const std::array<float, 15> bounds = midpoints(bnb4_levels("nf4"));
  const float divisor = std::max(scale, kLeastScale), inverse = 1.0F / divisor;
  for (size_t i = 0; i < x.size(); ++i) {
    const float scaled = is_full ? x[i] * inverse : x[i] / divisor;
    // Beyond -1 and 1 the outermost levels are the nearest, too. Counting takes fewer steps than a
    // search, since it has no branches.
    int code = 0;
    for (const float bound : bounds)
      code += scaled > bound ? 1 : 0;
    out[i] = static_cast<uint8_t>(code);
  }
}

/// sum (x - scale * level)^2, and the scale that makes it least with these codes.
struct Fit {
  double error = 0, best_scale = 0;
};
Fit fit_of(std::span<const float> x, std::span<const uint8_t> codes, float scale) {
  const std::array<float, 16>& levels = bnb4_levels("nf4");
  double cross = 0, square = 0;
  Fit out;
  for (size_t i = 0; i < x.size(); ++i) {
    const double level = levels[codes[i]], value = x[i];
    const double difference = value - level * scale;
    cross += value * level;
    square += level * level;
    out.error += difference * difference;
  }
  out.best_scale = square > 0 ? cross / square : scale;
  return out;
}

/// The scale with the least squared error of those between 0.7 and 1.1 of the largest magnitude,
/// each improved by least squares of its own codes.
float search_scale(std::span<const float> x, bool is_full, std::span<uint8_t> codes) {
  constexpr int kSteps = 20, kRounds = 2;
  constexpr float kFirst = 0.7F, kStep = 0.02F;
  const float largest = largest_of(x);
  float best = largest;
  code_block(x, best, is_full, codes.data());
  double least = fit_of(x, codes, best).error;
  for (int step = 0; step <= kSteps; ++step) {
    float scale = largest * (kFirst + kStep * static_cast<float>(step));
    for (int round = 0; round <= kRounds; ++round) {
      if (!(scale > kLeastScale) || !std::isfinite(scale)) break;
      code_block(x, scale, is_full, codes.data());
      const Fit fit = fit_of(x, codes, scale);
      if (fit.error < least) {
        least = fit.error;
        best = scale;
      }
      scale = static_cast<float>(fit.best_scale);
    }
  }
  return best;
}

/// Lanes of a register of PyTorch's sums, and registers that it adds side by side.
constexpr size_t kLanes = 8, kRegisters = 4, kWidth = kLanes * kRegisters;
using Sums = std::array<float, kWidth>;

void add_to(Sums& sums, const float* x) {
  for (size_t i = 0; i < kWidth; ++i)
    sums[i] += x[i];
}

/// Rows of kWidth floats, added in the order of PyTorch's cascade of four levels.
Sums cascade_sum(const float* x, size_t n_rows) {
  constexpr size_t kLevels = 4;
  const size_t log = n_rows <= 1 ? 0 : std::bit_width(n_rows - 1);
  const size_t power = std::max<size_t>(4, log / kLevels);
  const size_t step = size_t{1} << power, mask = step - 1;
  std::array<Sums, kLevels> levels{};
  size_t row = 0;
  while (row + step <= n_rows) {
    for (size_t i = 0; i < step; ++i, ++row)
      add_to(levels[0], x + row * kWidth);
    for (size_t level = 1; level < kLevels; ++level) {
      add_to(levels[level], levels[level - 1].data());
      levels[level - 1].fill(0);
      if ((row & mask << (level * power)) != 0) break;
    }
  }
  for (; row < n_rows; ++row)
    add_to(levels[0], x + row * kWidth);
  for (size_t level = 1; level < kLevels; ++level)
    add_to(levels[0], levels[level].data());
  return levels[0];
}

/// The mean as PyTorch's CPU code computes it on one thread
/// (aten/src/ATen/native/cpu/SumKernel.cpp, vectorized_inner_sum with registers of eight f32).
float torch_mean(std::span<const float> x) {
  const size_t n_rows = x.size() / kWidth;
  Sums sums = cascade_sum(x.data(), n_rows);
  size_t i = n_rows * kWidth;
  for (; i + kLanes <= x.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane)
      sums[lane] += x[i + lane];
  }
  for (size_t other = 1; other < kRegisters; ++other) {
    for (size_t lane = 0; lane < kLanes; ++lane)
      sums[lane] += sums[other * kLanes + lane];
  }
  float sum = 0;
  for (; i < x.size(); ++i)
    sum += x[i];
  for (size_t lane = 0; lane < kLanes; ++lane)
    sum += sums[lane];
  return sum / static_cast<float>(x.size());
}

/// absmax becomes bytes with a scale for each block of them, around their mean.
void quantise_scales(Bnb4File& file) {
  static const std::array<float, 255> bounds = midpoints(bnb_dynamic_map());
  Bnb4State& state = file.state;
  const std::vector<float> scales = std::move(file.absmax);
  file.absmax.clear();
  state.is_nested = true;
  state.nested_offset = torch_mean(scales);
  const auto size = static_cast<size_t>(state.nested_block_size);
  for (size_t begin = 0; begin < scales.size(); begin += size) {
    const size_t count = std::min(size, scales.size() - begin);
    std::vector<float> centred(count);
    for (size_t i = 0; i < count; ++i)
      centred[i] = scales[begin + i] - state.nested_offset;
    const float largest = largest_of(centred);
    file.absmax.push_back(largest);
    const float inverse = 1.0F / std::max(largest, kLeastScale);
    for (const float value : centred)
      file.absmax_codes.push_back(nearest(bounds, std::clamp(value * inverse, -1.0F, 1.0F)));
  }
}

/// As open_bnb4 reads it.
float scale_of(const Bnb4File& file, size_t block) {
  if (!file.state.is_nested) return file.absmax[block];
  const float product = bnb_dynamic_map()[file.absmax_codes[block]] *
                        file.absmax[block / static_cast<size_t>(file.state.nested_block_size)];
  return product + file.state.nested_offset;
}

std::vector<float> values_of(const LinearSource& source, DType dtype) {
  std::vector<float> out(static_cast<size_t>(checked_mul(source.n, source.k, source.name)));
  source.decode_rows(0, source.n, out.data());
  for (float& value : out) {
    value = rounded_to(dtype, value);
    if (!std::isfinite(value)) {
      fail(ErrorKind::kInvalidArgument, "bitsandbytes",
           "{}: expected values that {} can hold, got {}", printable(source.name), name_of(dtype),
           value);
    }
  }
  return out;
}

template <typename T>
RawTensor view_of(std::string name, DType dtype, const T& values) {
  RawTensor out;
  out.name = std::move(name);
  out.dtype = dtype;
  out.bytes = std::as_bytes(std::span(values));
  out.shape = Shape{std::ssize(values)};
  return out;
}

}  // namespace

Bnb4File encode_nf4(const LinearSource& source, const Nf4Options& options, Nf4ForEach for_each) {
  check_nf4_sizes(source.n, source.k, options.block_size, source.name);
  const std::vector<float> values = values_of(source, options.dtype);
  Bnb4File file;
  file.state = {.quant_type = "nf4",
                .block_size = options.block_size,
                .dtype = options.dtype,
                .n = source.n,
                .k = source.k};
  const bool is_better = options.mode == Nf4Options::Mode::kBetter;
  const auto size = static_cast<size_t>(options.block_size);
  const size_t n_blocks = ceil_div(values.size(), size);
  std::vector<uint8_t> codes(values.size());
  const auto for_blocks = [&](const auto& visit) {
    constexpr size_t kBatch = 1024;
    for_each(static_cast<int64_t>(ceil_div(n_blocks, kBatch)), [&](int64_t batch) {
      const size_t first = static_cast<size_t>(batch) * kBatch;
      for (size_t block = first; block < std::min(first + kBatch, n_blocks); ++block) {
        const size_t begin = block * size, count = std::min(size, values.size() - begin);
        visit(block, std::span(values).subspan(begin, count), count == size,
              std::span(codes).subspan(begin, count));
      }
    });
  };
  file.absmax.resize(n_blocks);
  for_blocks([&](size_t block, auto x, bool is_full, auto out) {
    float& scale = file.absmax[block];
    scale = is_better ? search_scale(x, is_full, out) : largest_of(x);
    if (!is_better && !is_full) scale = std::max(scale, kLeastScale);
    code_block(x, scale, is_full, out.data());
  });
  if (options.double_quant) {
    quantise_scales(file);
    // What was found for a scale need not be the best for what became of it.
    for_blocks([&](size_t block, auto x, bool is_full, auto out) {
      if (is_better) code_block(x, scale_of(file, block), is_full, out.data());
    });
  }
  file.codes = pack_bnb4_codes(codes);
  return file;
}

std::vector<uint8_t> pack_bnb4_codes(const std::vector<uint8_t>& codes) {
  std::vector<uint8_t> out((codes.size() + 1) / 2);
  for (size_t i = 0; i < codes.size(); ++i)
    out[i / 2] |= static_cast<uint8_t>(i % 2 == 0 ? codes[i] << 4 : codes[i]);
  // bitsandbytes fills the pair up with a zero.
  if (codes.size() % 2 != 0) out.back() |= 7;
  return out;
}

Bnb4File encode_nf4(const LinearSource& source, const Nf4Options& options) {
  return encode_nf4(source, options, [](int64_t n, FunctionRef<void(int64_t)> body) {
    for (int64_t i = 0; i < n; ++i)
      body(i);
  });
}

void check_nf4_sizes(int64_t n, int64_t k, int64_t block_size, std::string_view module) {
  if (!is_bnb4_block_size(block_size)) {
    fail(ErrorKind::kInvalidArgument, "bitsandbytes",
         "block size: expected 32, 64, 128, 256, 512, 1024, 2048 or 4096, got {}", block_size);
  }
  checked_mul(n, k, module);
}

int64_t nf4_bytes(int64_t n, int64_t k, int64_t block_size, bool double_quant) {
  const int64_t blocks = ceil_div(n * k, block_size);
  const int64_t scales =
      double_quant ? blocks + 4 * ceil_div<int64_t>(blocks, Bnb4State().nested_block_size) + 1024
                   : 4 * blocks;
  return ceil_div<int64_t>(n * k, 2) + scales + 64;
}

Bnb4File::Views Bnb4File::views(const std::string& module) const {
  const std::string weight = module + ".weight";
  Views out;
  out.weight = view_of(weight, DType::kU8, codes);
  out.weight.shape = Shape{std::ssize(codes), 1};
  out.quant_map = view_of(weight + ".quant_map", DType::kF32, bnb4_levels(state.quant_type));
  if (!state.is_nested) {
    out.absmax = view_of(weight + ".absmax", DType::kF32, absmax);
    return out;
  }
  out.absmax = view_of(weight + ".absmax", DType::kU8, absmax_codes);
  out.nested_absmax = view_of(weight + ".nested_absmax", DType::kF32, absmax);
  out.nested_quant_map = view_of(weight + ".nested_quant_map", DType::kF32, bnb_dynamic_map());
  return out;
}

Bnb4Tensors Bnb4File::Views::tensors(std::string module) const {
  Bnb4Tensors out;
  out.module = std::move(module);
  out.weight = &weight;
  out.absmax = &absmax;
  out.quant_map = &quant_map;
  if (!nested_absmax.name.empty()) {
    out.nested_absmax = &nested_absmax;
    out.nested_quant_map = &nested_quant_map;
  }
  return out;
}

const std::array<float, 256>& bnb_dynamic_map() {
  // Seven decades with 1, 2, 4, ... 64 means of neighbouring points of a line from 0.1 to 1, with
  // both signs, and 0 and 1; f32, the points with one rounding (fused), as PyTorch's linspace.
  static const std::array<float, 256> map = [] {
    std::array<float, 256> out{};
    size_t count = 0;
    for (int decade = 0; decade < 7; ++decade) {
      const int n_means = 1 << decade;
      const float step = (1.0F - 0.1F) / static_cast<float>(n_means);
      const auto point = [&](int i) {
        return i < (n_means + 1) / 2 ? std::fma(step, static_cast<float>(i), 0.1F)
                                     : std::fma(-step, static_cast<float>(n_means - i), 1.0F);
      };
      const auto scale = static_cast<float>(std::pow(10.0, decade - 6));
      for (int i = 0; i < n_means; ++i) {
        const float mean = (point(i) + point(i + 1)) / 2;
        out[count++] = scale * mean;
        out[count++] = -scale * mean;
      }
    }
    out[count++] = 0;
    out[count++] = 1;
    std::ranges::sort(out);
    return out;
  }();
  return map;
}

}  // namespace qw
