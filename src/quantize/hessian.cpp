#include "quantize/hessian.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <utility>

#include "base/checked.h"

namespace qw::quantize {

Hessian::Hessian(std::string name, int64_t k, const MatrixTeam& team)
    : name_(std::move(name)), k_(k), team_(team) {
  constexpr int64_t kMaxFeatures = int64_t{1} << 20;
  if (k < 1 || k > kMaxFeatures) {
    fail(ErrorKind::kInvalidArgument, "hessian", "{}: expected 1 to {} input features, got {}",
         printable(name_), kMaxFeatures, k);
  }
  try {
    lower_.resize(static_cast<size_t>(k * k));
    diagonal_.resize(static_cast<size_t>(k));
  } catch (const std::bad_alloc&) {
    fail(ErrorKind::kOutOfMemory, "hessian", "{}: expected {} MiB for {} x {} sums, got none",
         printable(name_), k * k * 4 >> 20, k, k);
  }
}

void Hessian::add(const float* x, int64_t n_tokens, int64_t stride) {
  if (n_tokens == 0) return;
  constexpr int64_t kColumns = 256;
  team_.for_each(ceil_div(k_, kColumns), [&](int64_t index) {
    const int64_t begin = index * kColumns, end = std::min(begin + kColumns, k_);
    for (int64_t t = 0; t < n_tokens; ++t) {
      for (int64_t i = begin; i < end; ++i) {
        const double value = x[t * stride + i];
        diagonal_[static_cast<size_t>(i)] += value * value;
      }
    }
  });
  for (int64_t i = 0; i < k_; ++i) {
    const double sum = diagonal_[static_cast<size_t>(i)];
    if (!(sum <= static_cast<double>(std::numeric_limits<float>::max()))) {
      fail(ErrorKind::kInvalidArgument, "hessian",
           "{}: expected inputs that are finite and whose squares fit f32, got {} as the sum of "
           "squares of feature {} (sample {})",
           printable(name_), sum, i, n_samples_);
    }
  }
  add_gram(team_, x, stride, n_tokens, k_, lower_.data(), scratch_);
  ++n_samples_;
  n_tokens_ += n_tokens;
}

}  // namespace qw::quantize
