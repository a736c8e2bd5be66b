#include "engine/logits_math.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>

namespace qw {
namespace {

constexpr size_t kBlock = 256;  // values per vectorised block; fits a few cache lines of scratch

/// Whether any value of the block exceeds `threshold` (a branch-free reduction, so it vectorises).
bool any_above(const float* values, size_t n, float threshold) noexcept {
  int any = 0;
  for (size_t i = 0; i < n; ++i)
    any |= static_cast<int>(values[i] > threshold);
  return any != 0;
}

/// Orders candidates best first: larger value, then lower index.
struct Better {
  std::span<const float> values;
  bool operator()(int32_t a, int32_t b) const noexcept {
    const float va = values[static_cast<size_t>(a)], vb = values[static_cast<size_t>(b)];
    return va != vb ? va > vb : a < b;
  }
};

}  // namespace

float fast_exp(float x) noexcept {
  // e^x = 2^n e^r with n = round(x log2 e): adding 1.5 * 2^23 rounds, and leaves n in the low bits.
  constexpr float kMagic = 12582912.0f;
  const float clamped = x < -87.3f ? -87.3f : x;
  const float shifted = clamped * 1.44269504f + kMagic;
  const float n = shifted - kMagic;
  // ln 2 in two parts, so that the reduction is exact enough.
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;  // minimax polynomial of e^r on [-ln2/2, ln2/2] (Cephes, expf)
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // Unsigned, so that even NaN wraps instead of overflowing.
  const uint32_t exponent = (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kMagic))
                            << 23;
  const float scaled = std::bit_cast<float>(std::bit_cast<uint32_t>(p) + exponent);
  return x < -87.3f ? 0.0f : scaled;
}

double exp_all(std::span<const float> values, float max, float* out) noexcept {
  double sum = 0;
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    const size_t n = std::min(kBlock, values.size() - begin);
    const float* in = values.data() + begin;
    float* o = out + begin;
    for (size_t i = 0; i < n; ++i)
      o[i] = fast_exp(in[i] - max);
    std::array<double, 4> lanes{};
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
      for (size_t lane = 0; lane < 4; ++lane)
        lanes[lane] += static_cast<double>(o[i + lane]);
    }
    for (; i < n; ++i)
      lanes[0] += static_cast<double>(o[i]);
    sum += (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  }
  return sum;
}

double log_sum_exp(std::span<const float> values) noexcept {
  const int32_t best = argmax(values);
  if (best < 0) return -std::numeric_limits<double>::infinity();
  const float max = values[static_cast<size_t>(best)];
  std::array<float, kBlock> scratch;
  double sum = 0;
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    sum += exp_all(values.subspan(begin, std::min(kBlock, values.size() - begin)), max,
                   scratch.data());
  }
  return static_cast<double>(max) + std::log(sum);
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
