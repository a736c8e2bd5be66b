#include "tensor/shape.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/checked.h"

namespace qw {

Shape::Shape(std::span<const int64_t> sizes, std::string_view what, std::string_view where) {
  if (sizes.size() > static_cast<size_t>(kMaxRank)) {
    fail(ErrorKind::kCorrupt, "tensor", "{}: expected at most {} dimensions, got {}{}", what,
         kMaxRank, sizes.size(), detail::in_brackets(where));
  }
  rank_ = static_cast<int>(sizes.size());
  std::copy(sizes.begin(), sizes.end(), sizes_.begin());
  for (const int64_t size : sizes)
    n_elems_ = checked_mul(n_elems_, size, what, where);
}

int64_t Shape::rows() const noexcept {
  int64_t rows = 1;
  for (int axis = 0; axis + 1 < rank_; ++axis)
    rows *= (*this)[axis];
  return rows;
}

std::string Shape::str() const {
  return fmt::format("[{}]", fmt::join(sizes(), ", "));
}

bool Shape::operator==(const Shape& other) const noexcept {
  return std::ranges::equal(sizes(), other.sizes());
}

void ShapeCheck::set(std::string_view name, int64_t size) {
  bound_.emplace_back(name, size);
}

int64_t ShapeCheck::get(std::string_view name) const {
  for (const auto& [key, size] : bound_) {
    if (key == name) return size;
  }
  QW_CHECK(false, "no dimension '{}' is bound", name);
  return 0;
}

void ShapeCheck::match(std::string_view tensor, const Shape& shape,
                       std::initializer_list<std::string_view> names) {
  if (shape.rank() != static_cast<int>(names.size())) {
    fail(ErrorKind::kCorrupt, "tensor", "rank of {}: expected [{}], got {} ({})", tensor,
         fmt::join(names, ", "), shape.str(), where_);
  }
  int axis = 0;
  for (const std::string_view name : names) {
    const int64_t size = shape[axis++];
    const auto known =
        std::ranges::find_if(bound_, [&](const auto& entry) { return entry.first == name; });
    if (known == bound_.end()) {
      bound_.emplace_back(name, size);
    } else if (known->second != size) {
      fail(ErrorKind::kCorrupt, "tensor", "shape of {}: expected {} = {}, got {} in {} ({})",
           tensor, name, known->second, size, shape.str(), where_);
    }
  }
}

}  // namespace qw
