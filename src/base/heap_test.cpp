#include "base/heap.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <thread>
#include <vector>

namespace qw {
namespace {

int64_t resident_bytes() {
  int64_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

// Many small pieces between others that stay: nothing that free() gives back by itself.
TEST(Heap, GivesBackWhatWasFreedAmidWhatStays) {
#if !defined(__GLIBC__) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the allocator is another";
#endif
  constexpr size_t kPieces = 100'000, kBytes = 1000;
  std::vector<std::unique_ptr<char[]>> gone, stay;
  for (size_t i = 0; i < kPieces; ++i) {
    gone.push_back(std::make_unique<char[]>(kBytes));
    if (i % 100 == 0) stay.push_back(std::make_unique<char[]>(kBytes));
  }
  stay.push_back(std::make_unique<char[]>(kBytes));
  const int64_t before = resident_bytes();
  gone.clear();
  EXPECT_GT(resident_bytes(), before - 20'000'000) << "else there is nothing to show";
  give_back_freed_memory();
  EXPECT_LT(resident_bytes(), before - 60'000'000);
}

// glibc keeps blocks as large as those that it once got back.
TEST(Heap, KeepsLittleOfLargeBlocks) {
#if !defined(__GLIBC__) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the allocator is another";
#endif
  // On a thread, whose memory is apart from everybody's.
  std::thread([] {
    constexpr size_t kOnce = 31'000'000, kBytes = 20'000'000;
    const auto kept_of = [](size_t bytes) {
      const auto small = std::make_unique<char[]>(1000);
      const int64_t before = resident_bytes();
      auto* block = static_cast<volatile char*>(std::malloc(bytes));
      for (size_t i = 0; i < bytes; i += 4096)
        block[i] = 1;
      std::free(const_cast<char*>(block));
      return resident_bytes() - before;
    };
    kept_of(kOnce);
    EXPECT_GT(kept_of(kBytes), 15'000'000) << "else there is nothing to show";
    keep_little_freed_memory();
    EXPECT_LT(kept_of(kBytes), 3'000'000);
    kept_of(kOnce);
    EXPECT_LT(kept_of(kBytes), 3'000'000) << "it is adapted again";
  }).join();
}

}  // namespace
}  // namespace qw
