#include "engine/kv_pages.h"

#include "base/error.h"

namespace qw {

PagePool::PagePool(int64_t n_pages) : references_(static_cast<size_t>(n_pages), 0) {
  free_.reserve(references_.size());
  for (int64_t page = n_pages - 1; page >= 0; --page)
    free_.push_back(static_cast<int32_t>(page));
}

std::optional<int32_t> PagePool::allocate() {
  if (free_.empty()) return std::nullopt;
  const int32_t page = free_.back();
  free_.pop_back();
  references_[static_cast<size_t>(page)] = 1;
  return page;
}

void PagePool::retain(int32_t page) {
  QW_CHECK(references_.at(static_cast<size_t>(page)) > 0, "page {} is free", page);
  ++references_[static_cast<size_t>(page)];
}

void PagePool::release(int32_t page) {
  QW_CHECK(references_.at(static_cast<size_t>(page)) > 0, "page {} is free", page);
  if (--references_[static_cast<size_t>(page)] == 0) free_.push_back(page);
}

void PagePool::check_integrity(std::span<const int32_t> held) const {
  std::vector<int32_t> count(references_.size(), 0);
  for (const int32_t page : held)
    ++count.at(static_cast<size_t>(page));
  for (size_t page = 0; page < count.size(); ++page) {
    QW_CHECK(count[page] == references_[page], "page {}: {} holders, {} references", page,
             count[page], references_[page]);
  }
  std::vector<bool> is_free(references_.size(), false);
  for (const int32_t page : free_) {
    QW_CHECK(!is_free[static_cast<size_t>(page)], "page {} is free twice", page);
    QW_CHECK(count[static_cast<size_t>(page)] == 0, "page {} is free and held", page);
    is_free[static_cast<size_t>(page)] = true;
  }
  for (size_t page = 0; page < count.size(); ++page) {
    QW_CHECK(count[page] > 0 || is_free[page], "page {} is lost", page);
  }
}

}  // namespace qw
