// Aligned memory for packed weights and scratch, on huge pages where the system has them.
//
// Level 4 (backend), private to the CPU backend.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string_view>

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

/// Memory of packed weights, cut from large pieces: a weight of 3 MiB alone would have one huge
/// page and 256 small ones, whose addresses cost more to look up than their bytes to read.
class WeightMemory {
 public:
  /// Uninitialised bytes, aligned to 64, for as long as the result is kept. What is given back is
  /// not cut again: a piece goes with the last that was cut from it. Errors: out_of_memory, naming
  /// `what`. Any thread may call it.
  std::shared_ptr<uint8_t> take(int64_t bytes, std::string_view what);

 private:
  std::mutex mutex_;
  /// Which bytes are cut from.
  std::shared_ptr<const AlignedBytes> piece_;
  int64_t used_ = 0;   // of it
  int64_t taken_ = 0;  // altogether
};

}  // namespace qw
