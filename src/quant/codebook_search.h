// The nearest point of a codebook of the IQ types, by a search that leaves out what cannot win.
//
// Level 2 (quant), private to this folder. What a point costs is a sum over its elements, so a
// point is two halves of two parts each, and what halves cost is computed once for all points. A
// first half is looked into only when it and the cheapest second half together are below the best
// point that is known (branch and bound). What is found is the nearest point, not one nearby:
// llama.cpp's quantiser, from which the problem comes, looks among a list of neighbours of the
// rounded values.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace qw::ggml {

/// Points of kElems integers (4 or 8), each one of kLevels.
template <size_t kElems_, size_t kLevels_>
class Codebook {
 public:
  static constexpr size_t kElems = kElems_, kLevels = kLevels_;
  static constexpr size_t kPart = kElems / 4;                                // elements of a part
  static constexpr size_t kSide = kPart == 1 ? kLevels : kLevels * kLevels;  // values of a part
  static constexpr size_t kHalf = kSide * kSide;                             // of a half
  static_assert((kElems == 4 || kElems == 8) && kHalf <= 256);

  /// What each element costs at each level: [element][level], or the other way round where
  /// elements are more than levels, so that the inner index is the long one.
  static constexpr bool kByLevel = kElems > kLevels;
  using Costs =
      std::array<std::array<float, kByLevel ? kElems : kLevels>, kByLevel ? kLevels : kElems>;

  /// What the parts of a half cost, and the least of each.
  struct Parts {
    std::array<float, kSide> a, b;
    float least_a, least_b;
  };
  /// What halves cost: [first part][second part], the least of each row, and of all.
  struct Halves {
    std::array<float, kHalf> of;
    std::array<float, kSide> least_of_row;
    float least;
  };
  struct Nearest {
    float cost = std::numeric_limits<float>::infinity();
    uint16_t at = 0;  // the point, in this class's order
  };

  template <size_t kPoints>
  explicit Codebook(const std::array<std::array<int8_t, kElems>, kPoints>& points) {
    std::vector<int8_t> levels;
    for (const auto& point : points)
      levels.insert(levels.end(), point.begin(), point.end());
    std::ranges::sort(levels);
    levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
    std::copy_n(levels.begin(), kLevels, levels_.begin());
    const auto half_of = [&](const std::array<int8_t, kElems>& point, size_t half) {
      size_t id = 0;
      for (size_t j = half * kElems / 2; j < (half + 1) * kElems / 2; ++j) {
        const auto level = std::ranges::find(levels, point[j]) - levels.begin();
        id = id * kLevels + static_cast<size_t>(level);
      }
      return id;
    };
    for (size_t half = 0; half < kHalf; ++half) {
      begin_[half] = static_cast<uint16_t>(index_.size());
      for (size_t p = 0; p < kPoints; ++p) {
        if (half_of(points[p], 0) != half) continue;
        index_.push_back(static_cast<uint16_t>(p));
        first_.push_back(static_cast<uint8_t>(half));
        second_.push_back(static_cast<uint8_t>(half_of(points[p], 1)));
        std::copy_n(points[p].begin(), kElems, values_.emplace_back().begin());
      }
    }
    begin_[kHalf] = static_cast<uint16_t>(index_.size());
  }

  /// In rising order.
  const std::array<float, kLevels>& levels() const noexcept { return levels_; }
  /// A point's index in the file.
  uint16_t index(uint16_t at) const noexcept { return index_[at]; }
  const std::array<float, kElems>& values(uint16_t at) const noexcept { return values_[at]; }

  static float& cost(Costs& costs, size_t element, size_t level) noexcept {
    return kByLevel ? costs[level][element] : costs[element][level];
  }
  static float cost(const Costs& costs, size_t element, size_t level) noexcept {
    return kByLevel ? costs[level][element] : costs[element][level];
  }

  /// costs = w q^2 - 2 w x q, which is the error w (x - q)^2 but for what all levels share.
  static void price(const std::array<float, kLevels>& levels, const float* w, const float* twice_wx,
                    Costs& costs) noexcept {
    if constexpr (kByLevel) {
      for (size_t l = 0; l < kLevels; ++l) {
        for (size_t j = 0; j < kElems; ++j)
          costs[l][j] = levels[l] * (w[j] * levels[l] - twice_wx[j]);
      }
    } else {
      for (size_t j = 0; j < kElems; ++j) {
        for (size_t l = 0; l < kLevels; ++l)
          costs[j][l] = levels[l] * (w[j] * levels[l] - twice_wx[j]);
      }
    }
  }

  static void sum_parts(const Costs& costs, size_t half, Parts& out) noexcept {
    out.least_a = sum_part(costs, 2 * half, out.a);
    out.least_b = sum_part(costs, 2 * half + 1, out.b);
  }

  static void sum_halves(const Parts& parts, Halves& out) noexcept {
    for (size_t i = 0; i < kSide; ++i) {
      for (size_t j = 0; j < kSide; ++j)
        out.of[i * kSide + j] = parts.a[i] + parts.b[j];
    }
    for (size_t i = 0; i < kSide; ++i)
      out.least_of_row[i] = parts.a[i] + parts.least_b;
    out.least = parts.least_a + parts.least_b;
  }

  /// Halves of which one element pays a fine too: the one that pays least.
  static void sum_fined_halves(const Parts& parts, const Costs& fines, size_t half,
                               Halves& out) noexcept {
    Parts fined;
    least_fines(fines, 2 * half, fined.a);
    least_fines(fines, 2 * half + 1, fined.b);
    for (size_t i = 0; i < kSide; ++i) {
      fined.a[i] += parts.a[i];
      fined.b[i] += parts.b[i];
    }
    fined.least_b = *std::ranges::min_element(fined.b);
    for (size_t i = 0; i < kSide; ++i) {
      out.least_of_row[i] = std::min(fined.a[i] + parts.least_b, parts.a[i] + fined.least_b);
      for (size_t j = 0; j < kSide; ++j) {
        out.of[i * kSide + j] = std::min(fined.a[i] + parts.b[j], parts.a[i] + fined.b[j]);
      }
    }
    out.least = *std::ranges::min_element(out.least_of_row);
  }

  /// The cheapest point; `guess` is one that is likely to be cheap.
  Nearest search(const Parts& first, const Halves& second, uint16_t guess) const noexcept {
    const size_t half = first_[guess];
    Nearest best{first.a[half / kSide] + first.b[half % kSide] + second.of[second_[guess]], guess};
    for (size_t i = 0; i < kSide; ++i) {
      if (!(first.a[i] + first.least_b + second.least < best.cost)) continue;
      for (size_t j = 0; j < kSide; ++j)
        search_half(i * kSide + j, first.a[i] + first.b[j], second, best);
    }
    return best;
  }
  /// The same against a point that is known.
  void search(const Halves& first, const Halves& second, Nearest& best) const noexcept {
    for (size_t i = 0; i < kSide; ++i) {
      if (!(first.least_of_row[i] + second.least < best.cost)) continue;
      for (size_t half = i * kSide; half < (i + 1) * kSide; ++half)
        search_half(half, first.of[half], second, best);
    }
  }

 private:
  void search_half(size_t half, float cost, const Halves& second, Nearest& best) const noexcept {
    if (!(cost + second.least < best.cost)) return;
    for (uint16_t at = begin_[half]; at < begin_[half + 1]; ++at) {
      const float sum = cost + second.of[second_[at]];
      if (sum < best.cost) best = {sum, at};
    }
  }

  /// The costs of a part's values; returns the least.
  static float sum_part(const Costs& costs, size_t part, std::array<float, kSide>& out) noexcept {
    if constexpr (kPart == 1) {
      out = costs[part];
      return least_level(costs, part);
    } else {
      for (size_t i = 0; i < kLevels; ++i) {
        for (size_t j = 0; j < kLevels; ++j)
          out[i * kLevels + j] = cost(costs, 2 * part, i) + cost(costs, 2 * part + 1, j);
      }
      return least_level(costs, 2 * part) + least_level(costs, 2 * part + 1);
    }
  }
  static float least_level(const Costs& costs, size_t element) noexcept {
    if constexpr (kLevels == 8) {
      std::array<float, 4> least;
      for (size_t l = 0; l < 4; ++l)
        least[l] = std::min(costs[element][l], costs[element][l + 4]);
      return std::min(std::min(least[0], least[1]), std::min(least[2], least[3]));
    } else {
      float least = cost(costs, element, 0);
      for (size_t l = 1; l < kLevels; ++l)
        least = std::min(least, cost(costs, element, l));
      return least;
    }
  }
  static void least_fines(const Costs& fines, size_t part, std::array<float, kSide>& out) noexcept {
    if constexpr (kPart == 1) {
      out = fines[part];
    } else {
      for (size_t i = 0; i < kLevels; ++i) {
        for (size_t j = 0; j < kLevels; ++j) {
          out[i * kLevels + j] = std::min(cost(fines, 2 * part, i), cost(fines, 2 * part + 1, j));
        }
      }
    }
  }

  std::array<float, kLevels> levels_;
  std::array<uint16_t, kHalf + 1> begin_;  // of the points of a first half
  std::vector<uint16_t> index_;            // in the file
  std::vector<uint8_t> first_, second_;    // halves
  std::vector<std::array<float, kElems>> values_;
};

}  // namespace qw::ggml
