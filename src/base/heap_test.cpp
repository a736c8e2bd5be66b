#include "base/heap.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <memory>
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

}  // namespace
}  // namespace qw
