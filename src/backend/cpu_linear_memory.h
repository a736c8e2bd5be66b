// Aligned memory for packed weights and scratch, on huge pages where the system has them.
//
// Level 4 (backend), private to the CPU backend.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "base/checked.h"
#include "base/error.h"

namespace qw {

/// Uninitialised bytes, aligned to 64, and to 2 MiB where there are that many.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  /// Errors: out_of_memory, naming `what`.
  AlignedBytes(int64_t bytes, std::string_view what) : size_(bytes) {
    if (bytes == 0) return;
    constexpr int64_t kHugePage = int64_t{1} << 21;
    const int64_t alignment = bytes >= kHugePage ? kHugePage : 64;
    void* memory = nullptr;
    if (::posix_memalign(&memory, static_cast<size_t>(alignment), static_cast<size_t>(bytes)) !=
        0) {
      fail(ErrorKind::kOutOfMemory, "memory", "{}: expected {} bytes from the system, got none",
           what, bytes);
    }
    // Whole huge pages only: a rounded-up tail would hold memory that nobody asked for.
    if (bytes >= kHugePage)
      ::madvise(memory, static_cast<size_t>(bytes / kHugePage * kHugePage), MADV_HUGEPAGE);
    data_.reset(static_cast<uint8_t*>(memory));
  }

  uint8_t* data() const noexcept { return data_.get(); }
  int64_t size() const noexcept { return size_; }

 private:
  struct Free {
    void operator()(uint8_t* memory) const noexcept { std::free(memory); }
  };
  std::unique_ptr<uint8_t, Free> data_;
  int64_t size_ = 0;
};

}  // namespace qw
