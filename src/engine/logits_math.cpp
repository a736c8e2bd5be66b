#include "engine/logits_math.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

namespace qw {
namespace {

constexpr size_t kBlock = 256;  // values per vectorised block; fits a few cache lines of scratch

/// Whether `is` holds for any value of the block (a branch-free reduction, so it vectorises).
template <typename Predicate>
bool any_of_block(const float* values, size_t n, Predicate is) noexcept {
  int any = 0;
  for (size_t i = 0; i < n; ++i)
    any |= static_cast<int>(is(values[i]));
  return any != 0;
}

bool any_above(const float* values, size_t n, float threshold) noexcept {
  return any_of_block(values, n, [threshold](float v) { return v > threshold; });
}

template <typename Predicate>
std::vector<uint32_t> indices_where(std::span<const float> values, Predicate is) {
  std::vector<uint32_t> out;
  std::array<uint32_t, kBlock + 1> found;
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    const size_t n = std::min(kBlock, values.size() - begin);
    if (!any_of_block(values.data() + begin, n, is)) continue;
    // Without a branch, which a flat row would make the processor guess wrongly all the time.
    size_t count = 0;
    for (size_t i = begin; i < begin + n; ++i) {
      found[count] = static_cast<uint32_t>(i);
      count += static_cast<size_t>(is(values[i]));
    }
    out.insert(out.end(), found.begin(), found.begin() + static_cast<std::ptrdiff_t>(count));
  }
  return out;
}

/// The number of values for which `is` holds; counted in 32 bits, which vectorises.
template <typename Predicate>
int64_t count_where(std::span<const float> values, Predicate is) noexcept {
  int32_t count = 0;
  for (const float v : values)
    count += static_cast<int32_t>(is(v));
  return count;
}

/// Orders candidates best first: larger value, then lower index.
struct Better {
  std::span<const float> values;
  bool operator()(int32_t a, int32_t b) const noexcept {
    const float va = values[static_cast<size_t>(a)], vb = values[static_cast<size_t>(b)];
    return va != vb ? va > vb : a < b;
  }
};

/// exp_all of one block.
double exp_block(const float* in, size_t n, float max, float* out) noexcept {
  for (size_t i = 0; i < n; ++i)
    out[i] = fast_exp(in[i] - max);
  std::array<double, 4> lanes{};
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (size_t lane = 0; lane < 4; ++lane)
      lanes[lane] += static_cast<double>(out[i + lane]);
  }
  for (; i < n; ++i)
    lanes[0] += static_cast<double>(out[i]);
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

}  // namespace

double exp_all(std::span<const float> values, float max, float* out) noexcept {
  double sum = 0;
  for (size_t begin = 0; begin < values.size(); begin += kBlock)
    sum +=
        exp_block(values.data() + begin, std::min(kBlock, values.size() - begin), max, out + begin);
  return sum;
}

void exponentials(std::span<const float> values, float max, Exponentials& e) {
  e.terms.resize(values.size());
  e.block_sums.clear();
  e.sum = 0;
  e.block_sums.reserve(values.size() / kBlock + 1);
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    e.block_sums.push_back(exp_block(values.data() + begin, std::min(kBlock, values.size() - begin),
                                     max, e.terms.data() + begin));
    e.sum += e.block_sums.back();
  }
}

size_t find_cumulated(const Exponentials& e, double u) noexcept {
  const double target = u * e.sum;
  double cumulated = 0;
  size_t last = 0;
  for (size_t block = 0; block < e.block_sums.size(); ++block) {
    const size_t begin = block * kBlock, end = std::min(begin + kBlock, e.terms.size());
    const double after = cumulated + e.block_sums[block];
    const bool passes = after > target || end == e.terms.size();
    for (size_t i = begin; passes && i < end; ++i) {
      if (e.terms[i] <= 0) continue;
      cumulated += static_cast<double>(e.terms[i]);
      last = i;
      if (cumulated > target) return i;
    }
    // The terms one by one may come to a little less than the block's sum: the next block has it.
    if (e.block_sums[block] > 0 && !passes) last = end - 1;
    cumulated = after;
  }
  while (last > 0 && e.terms[last] <= 0)
    --last;
  return last;
}

double sum_exp(std::span<const float> values, float max) noexcept {
  std::array<float, kBlock> scratch;
  double sum = 0;
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    sum += exp_all(values.subspan(begin, std::min(kBlock, values.size() - begin)), max,
                   scratch.data());
  }
  return sum;
}

double log_sum_exp(std::span<const float> values) noexcept {
  const int32_t best = argmax(values);
  if (best < 0) return -std::numeric_limits<double>::infinity();
  const float max = values[static_cast<size_t>(best)];
  return static_cast<double>(max) + std::log(sum_exp(values, max));
}

void log_softmax(std::span<float> values) noexcept {
  const double log_sum = log_sum_exp(values);
  for (float& v : values)
    v = static_cast<float>(static_cast<double>(v) - log_sum);
}

int32_t argmax(std::span<const float> values) noexcept {
  float best = kMinusInfinity;
  int32_t index = -1;
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    const size_t n = std::min(kBlock, values.size() - begin);
    if (!any_above(values.data() + begin, n, best)) continue;
    for (size_t i = begin; i < begin + n; ++i) {
      if (values[i] > best) {
        best = values[i];
        index = static_cast<int32_t>(i);
      }
    }
  }
  return index;
}

int64_t find_not_finite(std::span<const float> values) noexcept {
  constexpr uint32_t kExponent = 0x7F800000u;
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    const size_t n = std::min(kBlock, values.size() - begin);
    int any = 0;
    for (size_t i = begin; i < begin + n; ++i) {
      any |= static_cast<int>((std::bit_cast<uint32_t>(values[i]) & kExponent) == kExponent);
    }
    if (any == 0) continue;
    for (size_t i = begin; i < begin + n; ++i) {
      if (!std::isfinite(values[i])) return static_cast<int64_t>(i);
    }
  }
  return -1;
}

int64_t find_no_score(std::span<const float> values) noexcept {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    const size_t n = std::min(kBlock, values.size() - begin);
    int good = 1;
    for (size_t i = begin; i < begin + n; ++i)
      good &= static_cast<int>(values[i] < kInfinity);  // false for NaN too
    if (good != 0) continue;
    for (size_t i = begin; i < begin + n; ++i) {
      if (!(values[i] < kInfinity)) return static_cast<int64_t>(i);
    }
  }
  return -1;
}

void remove_not_finite(std::span<float> values) noexcept {
  constexpr float kMax = std::numeric_limits<float>::max();
  for (float& v : values)
    v = std::isnan(v) ? 0.0f : std::clamp(v, -kMax, kMax);
}

std::vector<uint32_t> indices_above(std::span<const float> values, float threshold) {
  return indices_where(values, [threshold](float v) { return v > threshold; });
}

std::vector<uint32_t> indices_from(std::span<const float> values, float threshold) {
  return indices_where(values, [threshold](float v) { return v >= threshold; });
}

int64_t rank_of(std::span<const float> values, size_t i) noexcept {
  const float value = values[i];
  return count_where(values.first(i), [value](float v) { return v >= value; }) +
         count_where(values.subspan(i), [value](float v) { return v > value; });
}

std::vector<int32_t> top_indices(std::span<const float> values, int64_t k) {
  const size_t want = std::min(values.size(), static_cast<size_t>(std::max<int64_t>(k, 0)));
  std::vector<int32_t> heap;
  if (want == 0) return heap;
  heap.reserve(want + 1);
  const Better better{values};
  // The worst candidate is on top of the heap; a later index never displaces an equal value.
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    const size_t n = std::min(kBlock, values.size() - begin);
    const bool full = heap.size() == want;
    if (full && !any_above(values.data() + begin, n, values[static_cast<size_t>(heap.front())]))
      continue;
    for (size_t i = begin; i < begin + n; ++i) {
      if (heap.size() < want) {
        heap.push_back(static_cast<int32_t>(i));
        std::push_heap(heap.begin(), heap.end(), better);
      } else if (values[i] > values[static_cast<size_t>(heap.front())]) {
        std::pop_heap(heap.begin(), heap.end(), better);
        heap.back() = static_cast<int32_t>(i);
        std::push_heap(heap.begin(), heap.end(), better);
      }
    }
  }
  std::sort(heap.begin(), heap.end(), better);
  return heap;
}

float kth_largest(std::span<const float> values, int64_t k) {
  if (values.empty()) return kMinusInfinity;
  const size_t rank = std::min(values.size(), static_cast<size_t>(std::max<int64_t>(k, 1))) - 1;
  if (rank < values.size() / 16) {
    return values[static_cast<size_t>(top_indices(values, static_cast<int64_t>(rank) + 1).back())];
  }
  std::vector<float> copy(values.begin(), values.end());
  std::nth_element(copy.begin(), copy.begin() + static_cast<std::ptrdiff_t>(rank), copy.end(),
                   std::greater<>());
  return copy[rank];
}

}  // namespace qw
