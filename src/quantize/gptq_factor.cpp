#include "quantize/gptq_factor.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/checked.h"

namespace qw::quantize {

namespace {

constexpr double kDampStep = 3.1622776601683795;  // 10^(1/2)
constexpr double kMaxDamp = 1e3;

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

bool better(const GptqOptions& options) {
  return options.mode == GptqOptions::Mode::kBetter;
}

/// Row i of a lower triangle *= by(i).
template <typename By>
void scale_rows(float* rows, int64_t size, const By& by) {
  for (int64_t i = 0; i < size; ++i) {
    const float factor = by(i);
    for (int64_t j = 0; j <= i; ++j)
      rows[i * size + j] *= factor;
  }
}

}  // namespace

void check_damp(double damp) {
  if (damp > 0 && damp <= kMaxDamp) return;
  fail(ErrorKind::kInvalidArgument, "gptq", "damp: expected more than 0, at most {}, got {}",
       kMaxDamp, damp);
}

void check_options(const GptqOptions& options) {
  const int bits = options.bits;
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
    fail(ErrorKind::kInvalidArgument, "gptq", "bits: expected 2, 3, 4 or 8, got {}", bits);
  }
  if (options.group_size < -1 || options.group_size == 0) {
    fail(ErrorKind::kInvalidArgument, "gptq", "group_size: expected -1 or more than 0, got {}",
         options.group_size);
  }
  check_damp(options.damp);
}

GptqFactor::GptqFactor(const Hessian& hessian, const GptqOptions& options, const MatrixTeam& team)
    : options_(options), k_(hessian.k()) {
  check_options(options);
  group_size_ = options.group_size == -1 ? k_ : std::min(options.group_size, k_);
  // A single group is never late. AutoGPTQ's per-channel grids are static whatever is asked for.
  static_ = better(options) ? group_size_ < k_ && (options.static_groups ||
                                                   !(options.desc_act || options.late_grids))
                            : options.static_groups || options.group_size == -1;
  unit_ = hessian.n_samples() == 0 ? 1.0 : hessian.scale();
  find_dead(hessian);
  choose_order();
  make_groups();
  make_blocks();
  for (double damp = options.damp;; damp *= kDampStep) {
    if (factor(hessian, damp, team)) {
      damp_ = damp;
      break;
    }
    if (!better(options) || damp > kMaxDamp) {
      fail(ErrorKind::kInvalidArgument, "gptq",
           "{}: expected second moments of the inputs that are positive definite with a damp of "
           "{}, got others ({} tokens for {} features)",
           printable(hessian.name()), damp, hessian.n_tokens(), k_);
    }
  }
}

void GptqFactor::find_dead(const Hessian& hessian) {
  dead_.resize(at(k_));
  diagonal_.resize(at(k_));
  for (int64_t i = 0; i < k_; ++i) {
    diagonal_[at(i)] = unit_ * hessian.diagonal()[at(i)];
    if (diagonal_[at(i)] != 0) continue;
    dead_[at(i)] = 1;
    ++n_dead_;
    if (!better(options_)) diagonal_[at(i)] = 1;
  }
}

/// Columns of large inputs first: their errors are made good by the most others. Where the file has
/// groups of neighbours, whole groups are ordered, and the columns in each.
void GptqFactor::choose_order() {
  order_.resize(at(k_));
  std::iota(order_.begin(), order_.end(), 0);
  const auto larger = [&](int32_t a, int32_t b) { return diagonal_[at(a)] > diagonal_[at(b)]; };
  if (options_.desc_act || (better(options_) && static_)) {
    std::stable_sort(order_.begin(), order_.end(), larger);
  } else if (better(options_)) {
    std::vector<double> weight(at(ceil_div(k_, group_size_)));
    for (int64_t i = 0; i < k_; ++i)
      weight[at(i / group_size_)] = std::max(weight[at(i / group_size_)], diagonal_[at(i)]);
    std::stable_sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
      const auto group_a = a / group_size_, group_b = b / group_size_;
      if (group_a == group_b) return larger(a, b);
      const double weight_a = weight[at(group_a)], weight_b = weight[at(group_b)];
      return weight_a != weight_b ? weight_a > weight_b : group_a < group_b;
    });
  }
}

void GptqFactor::make_groups() {
  groups_.resize(at(ceil_div(k_, group_size_)));
  const bool of_places = options_.desc_act && !static_;
  for (int64_t place = 0; place < k_; ++place) {
    const int64_t index = of_places ? place : order_[at(place)];
    groups_[at(index / group_size_)].places.push_back(static_cast<int32_t>(place));
  }
}

/// Blocks do not cross from one group into the next where a group's grid is found when the walk
/// reaches it, so that the columns it is found from are up to date.
void GptqFactor::make_blocks() {
  const bool cut = better(options_) && !static_;
  int64_t begin = 0;
  const auto add_until = [&](int64_t end) {
    for (; begin < end; begin = blocks_.back().end)
      blocks_.push_back({begin, std::min(begin + kBlock, end)});
  };
  if (cut) {
    std::vector<int64_t> ends;
    for (const Group& group : groups_)
      ends.push_back(group.places.back() + 1);
    std::sort(ends.begin(), ends.end());
    for (const int64_t end : ends)
      add_until(end);
  }
  add_until(k_);
}

/// The inverse of the Cholesky factor of the damped H from the last place to the first, or false.
bool GptqFactor::factor(const Hessian& hessian, double damp, const MatrixTeam& team) {
  const int64_t n_live = k_ - n_dead_, n_counted = better(options_) ? n_live : k_;
  const double sum = std::accumulate(diagonal_.begin(), diagonal_.end(), 0.0);
  // Without live columns every order and damp is as good.
  const double added = n_counted == 0 ? 1.0 : damp * sum / static_cast<double>(n_counted);
  std::vector<float> a(at(k_ * k_));
  constexpr int64_t kRows = 16;
  team.for_each(ceil_div(k_, kRows), [&](int64_t item) {
    for (int64_t i = item * kRows; i < std::min(k_, (item + 1) * kRows); ++i) {
      const int64_t row = order_[at(k_ - 1 - i)];
      for (int64_t j = 0; j < i; ++j) {
        a[at(i * k_ + j)] = static_cast<float>(
            unit_ * static_cast<double>(hessian.at(row, order_[at(k_ - 1 - j)])));
      }
      a[at(i * k_ + i)] = static_cast<float>(diagonal_[at(row)] + added);
    }
  });
  if (cholesky(team, a.data(), k_) >= 0) return false;
  invert_lower(team, a.data(), k_);
  const bool finite = std::all_of(a.begin(), a.begin() + k_, [&](const float& first) {
    return std::isfinite(a[at((&first - a.data()) * (k_ + 1))]);
  });
  if (!finite) return false;
  if (static_ && better(options_) && !factor_groups(hessian, added, team)) return false;
  pack(a, team);
  return true;
}

/// The feedback within each static group, as if its columns were the whole matrix.
bool GptqFactor::factor_groups(const Hessian& hessian, double added, const MatrixTeam& team) {
  std::vector<uint8_t> failed(groups_.size());
  int64_t offset = 0;
  std::vector<int64_t> offsets;
  for (const Group& group : groups_) {
    offsets.push_back(offset);
    offset += static_cast<int64_t>(group.places.size()) * kBlock;
  }
  group_feedback_.resize(at(offset));
  const MatrixTeam alone{nullptr, team.ops};
  team.for_each(static_cast<int64_t>(groups_.size()), [&](int64_t index) {
    Group& group = groups_[at(index)];
    group.chunks.clear();
    const auto n_places = static_cast<int64_t>(group.places.size());
    for (int64_t begin = 0; begin < n_places; begin += kBlock) {
      const int64_t size = std::min(kBlock, n_places - begin);
      std::vector<float> a(at(size * size));
      for (int64_t i = 0; i < size; ++i) {
        const int64_t row = order_[at(group.places[at(begin + size - 1 - i)])];
        for (int64_t j = 0; j < i; ++j) {
          const int64_t col = order_[at(group.places[at(begin + size - 1 - j)])];
          a[at(i * size + j)] =
              static_cast<float>(unit_ * static_cast<double>(hessian.at(row, col)));
        }
        a[at(i * size + i)] = static_cast<float>(diagonal_[at(row)] + added);
      }
      if (cholesky(alone, a.data(), size) >= 0) {
        failed[at(index)] = 1;
        return;
      }
      invert_lower(alone, a.data(), size);
      float* feedback = group_feedback_.data() + offsets[at(index)] + begin * kBlock;
      for (int64_t i = 0; i < size; ++i) {
        for (int64_t j = 0; j <= i; ++j)
          feedback[i * size + j] = a[at((size - 1 - j) * size + size - 1 - i)];
      }
      group.chunks.push_back({begin, begin + size, feedback, nullptr});
    }
  });
  return std::all_of(failed.begin(), failed.end(), [](uint8_t f) { return f == 0; });
}

/// U[r, c] = inverse[k - 1 - r, k - 1 - c], in the order in which the solver reads it.
void GptqFactor::pack(const std::vector<float>& inverse, const MatrixTeam& team) {
  const int width = width_ = team.ops->tile_rows;
  std::vector<int64_t> offsets;
  int64_t offset = 0;
  for (const Block& block : blocks_) {
    offsets.push_back(offset);
    offset += block.size() * block.size() + packed_floats(width, k_ - block.end, block.size());
  }
  packed_.resize(at(offset));
  team.for_each(static_cast<int64_t>(blocks_.size()), [&](int64_t index) {
    Block& block = blocks_[at(index)];
    const int64_t size = block.size(), row = (k_ - 1 - block.begin) * k_;
    float* to = packed_.data() + offsets[at(index)];
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j <= i; ++j)
        to[i * size + j] = inverse[at(row - j * k_ + k_ - 1 - block.begin - i)];
    }
    block.feedback = to;
    block.rest = to + size * size;
    if (block.end < k_) {
      pack_tiles(width, inverse.data() + row + k_ - 1 - block.end, -1, -k_, k_ - block.end, size,
                 to + size * size);
    }
  });
  if (!better(options_) || static_) return;
  for (Group& group : groups_) {
    for (const Block& block : blocks_) {
      if (block.begin >= group.places.front() && block.begin <= group.places.back())
        group.chunks.push_back(block);
    }
  }
}

std::vector<float> GptqFactor::own_sizes() const {
  std::vector<float> out(at(k_));
  double sum = 0;
  for (const Block& block : blocks_) {
    for (int64_t i = 0; i < block.size(); ++i) {
      const float size = 1 / block.feedback[i * (block.size() + 1)];
      out[at(order_[at(block.begin + i)])] = size;
      sum += static_cast<double>(size);
    }
  }
  for (float& size : out)
    size *= static_cast<float>(static_cast<double>(k_) / sum);
  return out;
}

void GptqFactor::set_input_scales(std::span<const float> scales) {
  QW_CHECK(std::ssize(scales) == k_, "{} scales for {} inputs", scales.size(), k_);
  std::vector<float> by(at(k_));  // by place
  for (int64_t place = 0; place < k_; ++place) {
    const auto column = at(order_[at(place)]);
    by[at(place)] = scales_.empty() ? scales[column] : scales[column] / scales_[column];
  }
  scales_.assign(scales.begin(), scales.end());
  for (const Block& block : blocks_) {
    const int64_t size = block.size();
    float* feedback = packed_.data() + (block.feedback - packed_.data());
    scale_rows(feedback, size, [&](int64_t i) { return by[at(block.begin + i)]; });
    float* rest = packed_.data() + (block.rest - packed_.data());
    for (int64_t i = 0; i < k_ - block.end; ++i) {
      for (int64_t p = 0; p < size; ++p)
        rest[i / width_ * width_ * size + p * width_ + i % width_] *= by[at(block.end + i)];
    }
  }
  for (Group& group : groups_) {
    for (const Block& chunk : group.chunks) {
      if (!static_) break;  // chunks are the blocks
      float* feedback = group_feedback_.data() + (chunk.feedback - group_feedback_.data());
      scale_rows(feedback, chunk.size(),
                 [&](int64_t i) { return by[at(group.places[at(chunk.begin + i)])]; });
    }
  }
}

}  // namespace qw::quantize
