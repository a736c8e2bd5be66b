// How long a forward pass takes, as a function of its rows: what guessing ahead is weighed with.
//
// Level 6 (engine). No clock of its own: it is told. The machine may be busy with other things, so
// the time of a size is the median of the last few, and more rows never take less.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <vector>

namespace qw {

class StepTimes {
 public:
  static constexpr int kKept = 5;        // times of a size, the latest
  static constexpr int64_t kFresh = 64;  // a time is fresh for so many steps
  static constexpr int64_t kExact = 32;  // sizes up to here are told apart; larger ones to a sixth

  /// A step over so many rows took so long.
  void note(int64_t rows, double seconds);
  bool empty() const noexcept { return sizes_.empty(); }
  /// Seconds of a step over `rows` rows (from 1): on the straight line between the sizes that were
  /// met on both sides, beyond the largest on the line through the two largest, below the smallest
  /// as the smallest. 0 while nothing was met.
  double seconds(int64_t rows) const;
  /// Whether a step of this size was among the last kFresh ones.
  bool is_fresh(int64_t rows) const;
  /// The smallest and the largest size that were met; 0: none.
  int64_t smallest() const noexcept { return points_.empty() ? 0 : points_.front().rows; }
  int64_t largest() const noexcept { return points_.empty() ? 0 : points_.back().rows; }

 private:
  struct Size {
    int64_t rows = 0;  // of the latest
    std::array<double, kKept> seconds{};
    int64_t n_noted = 0;
    int64_t last_step = 0;

    double median() const;
  };
  struct Point {
    int64_t rows;
    double seconds;
  };
  static int64_t bucket_of(int64_t rows);

  std::map<int64_t, Size> sizes_;  // by bucket, so by rows
  std::vector<Point> points_;      // one a size, ascending in both
  int64_t n_steps_ = 0;
};

}  // namespace qw
