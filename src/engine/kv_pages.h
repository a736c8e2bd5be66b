// Pages of the KV cache: who holds which, counted by references.
//
// Level 6 (engine). Pure host code. A page is shared by forks until one of them writes to it; the
// scheduler copies it then. After "Efficient memory management for LLM serving with
// PagedAttention" (Kwon et al., 2023).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace qw {

class PagePool {
 public:
  explicit PagePool(int64_t n_pages);

  /// A page with one reference, or nothing when all are taken. The lowest-numbered free page of
  /// those given back last comes first, so that results never depend on it but caches stay warm.
  std::optional<int32_t> allocate();
  void retain(int32_t page);   // one more reference
  void release(int32_t page);  // one less; free at zero
  bool is_shared(int32_t page) const { return references_[static_cast<size_t>(page)] > 1; }

  int64_t n_pages() const noexcept { return static_cast<int64_t>(references_.size()); }
  int64_t n_free() const noexcept { return static_cast<int64_t>(free_.size()); }

  /// Throws Error{kInternal} unless the references equal how often each page stands in `held`
  /// (every page of every table), and the free list holds exactly the pages without any.
  void check_integrity(std::span<const int32_t> held) const;

 private:
  std::vector<int32_t> references_;
  std::vector<int32_t> free_;  // a stack
};

}  // namespace qw
