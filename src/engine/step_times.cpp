#include "engine/step_times.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace qw {

int64_t StepTimes::bucket_of(int64_t rows) {
  QW_CHECK(rows > 0);
  if (rows <= kExact) return rows;
  const double octaves = std::log2(static_cast<double>(rows) / static_cast<double>(kExact));
  return kExact + 1 + static_cast<int64_t>(4 * octaves);
}

double StepTimes::Size::median() const {
  std::array<double, kKept> sorted = seconds;
  const auto n = static_cast<size_t>(std::min<int64_t>(n_noted, kKept));
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>((n - 1) / 2);
  std::nth_element(sorted.begin(), middle, sorted.begin() + static_cast<std::ptrdiff_t>(n));
  return *middle;
}

void StepTimes::note(int64_t rows, double seconds) {
  Size& size = sizes_[bucket_of(rows)];
  size.rows = rows;
  size.seconds[static_cast<size_t>(size.n_noted % kKept)] = seconds;
  ++size.n_noted;
  size.last_step = ++n_steps_;

  points_.clear();
  for (const auto& [bucket, other] : sizes_)
    points_.push_back({other.rows, other.median()});
  // A larger step that took less shows that the smaller one was disturbed.
  for (size_t i = points_.size() - 1; i-- > 0;)
    points_[i].seconds = std::min(points_[i].seconds, points_[i + 1].seconds);
}

double StepTimes::seconds(int64_t rows) const {
  if (points_.empty()) return 0;
  auto above = std::find_if(points_.begin(), points_.end(),
                            [rows](const Point& point) { return point.rows >= rows; });
  if (above == points_.begin() || points_.size() == 1) return points_.front().seconds;
  if (above == points_.end()) --above;
  const Point &left = *(above - 1), &right = *above;
  return left.seconds + (right.seconds - left.seconds) * static_cast<double>(rows - left.rows) /
                            static_cast<double>(right.rows - left.rows);
}

bool StepTimes::is_fresh(int64_t rows) const {
  const auto size = sizes_.find(bucket_of(rows));
  return size != sizes_.end() && n_steps_ - size->second.last_step < kFresh;
}

}  // namespace qw
