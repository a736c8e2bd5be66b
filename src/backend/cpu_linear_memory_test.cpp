#include "backend/cpu_linear_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
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
    std::memset(memory.take(100, "next").get(), 1, 100);
  }
  EXPECT_EQ(std::count(kept.get(), kept.get() + kMiB, 7), kMiB);
}

TEST(WeightMemory, APieceOfWhichNothingIsKeptIsUsedAgain) {
  WeightMemory memory;
  const uint8_t* const first = memory.take(3 * kMiB, "first").get();
  EXPECT_EQ(memory.take(3 * kMiB, "second").get(), first);
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

}  // namespace
}  // namespace qw
