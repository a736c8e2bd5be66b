#include "backend/cpu_linear_memory.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace qw {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

TEST(WeightMemory, CutsNeighboursFromOnePiece) {
  WeightMemory memory;
  const auto first = memory.take(1000, "first"), second = memory.take(kMiB, "second"),
             third = memory.take(64, "third");
  EXPECT_EQ(second.get() - first.get(), 1024);
  EXPECT_EQ(third.get() - second.get(), kMiB);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first.get()) % (2 * kMiB), 0U);
}

TEST(WeightMemory, WhatIsKeptStaysWhenTheRestGoes) {
  std::shared_ptr<uint8_t> kept;
  {
    WeightMemory memory;
    auto gone = memory.take(100, "gone");
    kept = memory.take(kMiB, "kept");
    std::memset(kept.get(), 7, kMiB);
    gone.reset();
    std::memset(memory.take(kMiB, "next").get(), 1, kMiB);
  }
  EXPECT_EQ(std::count(kept.get(), kept.get() + kMiB, 7), kMiB);
}

TEST(WeightMemory, PiecesGrowAndLargeWeightsStandAlone) {
  WeightMemory memory;
  std::vector<std::shared_ptr<uint8_t>> all;
  const auto large = memory.take(100 * kMiB, "large");  // the first piece would be 8 MiB
  EXPECT_EQ(reinterpret_cast<uintptr_t>(large.get()) % (2 * kMiB), 0U);
  // Now a piece is of 100 MiB: so many fit one.
  for (int i = 0; i < 25; ++i)
    all.push_back(memory.take(4 * kMiB, "small"));
  EXPECT_EQ(all.back().get() - all.front().get(), 24 * 4 * kMiB);
}

// Sanitizers' allocators end the process where there is no memory.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

/// Bytes of address space that this process has now.
int64_t address_space() {
  std::ifstream statm("/proc/self/statm");
  int64_t pages = 0;
  statm >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

/// Lets this process have so much more address space than now.
class ScopedAddressSpace {
 public:
  explicit ScopedAddressSpace(int64_t more) {
    getrlimit(RLIMIT_AS, &before_);
    rlimit limit = before_;
    limit.rlim_cur = static_cast<rlim_t>(address_space() + more);
    setrlimit(RLIMIT_AS, &limit);
  }
  ~ScopedAddressSpace() { setrlimit(RLIMIT_AS, &before_); }
  ScopedAddressSpace(const ScopedAddressSpace&) = delete;
  ScopedAddressSpace& operator=(const ScopedAddressSpace&) = delete;

 private:
  rlimit before_{};
};

TEST(WeightMemory, ASmallWeightNeedsNoMoreMemoryThanItself) {
  const ScopedAddressSpace limit(64 * kMiB);
  WeightMemory memory;
  std::vector<std::shared_ptr<uint8_t>> all;
  // Eight fill pieces of 8, 8 and 16 MiB; one of 32 would not fit any more.
  for (int i = 0; i < 10; ++i) {
    all.push_back(memory.take(4 * kMiB - 64, "small"));
    std::memset(all.back().get(), 1, 4 * kMiB - 64);
  }
}

TEST(WeightMemory, TellsWhatThereIsNoMemoryFor) {
  WeightMemory memory;
  try {
    memory.take(int64_t{1} << 60, "blk.0.attn_q.weight");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kOutOfMemory);
    EXPECT_NE(std::string(error.what()).find("blk.0.attn_q.weight"), std::string::npos);
  }
}

#endif

}  // namespace
}  // namespace qw
