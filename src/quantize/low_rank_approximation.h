// The best product of two thin matrices for a given one.
//
// Level 6 (quantize). A truncated singular value decomposition by random projection, in f64.
// Source: Halko, Martinsson and Tropp 2011, "Finding structure with randomness", algorithms 4.4
// and 5.1.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"

namespace qw {

/// D [n, k] ~ B A: A [rank, k] and B [n, rank], row-major, each with the square roots of the
/// singular values.
struct LowRankFactors {
  int64_t rank = 0;
  std::vector<float> a, b;
  /// ||D - B A||^2 / ||D||^2; 0 where D is zero.
  double lost = 0;
};

/// `d`: [n, k] row-major, finite. The rank is `rank`, or the shorter side if that is less. The same
/// bits for any number of threads.
LowRankFactors approximate_low_rank(std::span<const float> d, int64_t n, int64_t k, int64_t rank,
                                    ThreadPool& pool);

}  // namespace qw
