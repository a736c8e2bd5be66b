// Files of the prefix cache: found by name, refused when anything about them is wrong.
#include "engine/prefix_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "base/rng.h"

namespace qw {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPageBytes = 40;

class PrefixStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    init_logging("off");
    fs::remove_all(directory_);
  }
  void TearDown() override {
    fs::remove_all(directory_);
    init_logging("warning");
  }

  PrefixStoreOptions options(int64_t max_bytes = 0) const { return {directory_, max_bytes}; }

  /// The n-th block of a chain.
  static PrefixStore::Block block(int64_t depth, uint64_t chain = 0) {
    KvName name = kv_root_name(std::to_string(chain));
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i <= depth; ++i) {
      tokens = {static_cast<int32_t>(chain), static_cast<int32_t>(i), 7, 8};
      name = kv_block_name(name, tokens);
    }
    return {name, static_cast<int64_t>(1000 * chain + 1) * 1'000'000'000 - depth * 1000, tokens};
  }
  static PrefixStore::Pages pages(uint64_t seed, int64_t bytes = kPageBytes) {
    const auto size = static_cast<size_t>(bytes);
    PrefixStore::Pages out{std::make_unique<std::byte[]>(size), {}};
    for (size_t i = 0; i < size; ++i)
      out.memory[i] = static_cast<std::byte>(random_bits(seed, 1, i));
    out.bytes = {out.memory.get(), size};
    return out;
  }
  static void put(PrefixStore& store, const PrefixStore::Block& block, uint64_t seed) {
    store.put(block, pages(seed));
    store.flush();
  }
  /// All that is read of a chain.
  static std::vector<PrefixStore::Pages> read(PrefixStore& store,
                                              std::vector<PrefixStore::Block> blocks,
                                              int64_t page_bytes = kPageBytes) {
    std::vector<PrefixStore::Pages> out;
    store.begin_read(std::move(blocks), page_bytes);
    while (!store.read_ended()) {
      const int64_t seen = store.progress();
      for (PrefixStore::Pages& one : store.take_read(1))
        out.push_back(std::move(one));
      if (!store.read_ended()) store.wait_for_progress(seen, 1);
    }
    return out;
  }
  static bool same(const PrefixStore::Pages& a, const PrefixStore::Pages& b) {
    return a.bytes.size() == b.bytes.size() &&
           std::memcmp(a.bytes.data(), b.bytes.data(), a.bytes.size()) == 0;
  }
  std::string path_of(const PrefixStore::Block& block) const {
    return directory_ + "/" + to_hex(block.name) + ".kv";
  }
  static std::string bytes_of(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static void write(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
  }

  const std::string directory_ = testing::TempDir() + "prefix_store_" +
                                 testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(PrefixStoreTest, WhatWasWrittenIsReadByLaterProcesses) {
  {
    PrefixStore store(options());
    EXPECT_FALSE(store.contains(block(0).name));
    for (int64_t i = 0; i < 5; ++i)
      store.put(block(i), pages(static_cast<uint64_t>(i)));
  }  // its end writes what is queued
  PrefixStore store(options());
  EXPECT_TRUE(store.contains(block(4).name));
  std::vector<PrefixStore::Block> wanted;
  for (int64_t i = 0; i < 7; ++i)  // two more than there are
    wanted.push_back(block(i));
  const auto found = read(store, wanted);
  ASSERT_EQ(found.size(), 5);
  for (uint64_t i = 0; i < 5; ++i)
    EXPECT_TRUE(same(found[i], pages(i)));
  EXPECT_EQ(store.stats().n_read, 5);
  EXPECT_EQ(store.stats().bytes_read, 5 * kPageBytes);
  EXPECT_EQ(store.stats().n_refused, 0);
  EXPECT_EQ(fs::status(path_of(block(0))).permissions() & fs::perms::others_all, fs::perms::none);
}

TEST_F(PrefixStoreTest, NamesDependOnEveryTokenAndOnTheRoot) {
  const std::vector<int32_t> tokens = {1, 2, 3}, others = {1, 2, 4};
  const KvName root = kv_root_name("a");
  EXPECT_NE(root, kv_root_name("b"));
  EXPECT_EQ(kv_block_name(root, tokens), kv_block_name(root, tokens));
  EXPECT_NE(kv_block_name(root, tokens), kv_block_name(root, others));
  EXPECT_NE(kv_block_name(root, tokens), kv_block_name(kv_root_name("b"), tokens));
}

TEST_F(PrefixStoreTest, EveryChangedByteIsAMissAndTheFileIsRemoved) {
  PrefixStore store(options());
  put(store, block(0), 1);
  const std::string path = path_of(block(0)), whole = bytes_of(path);
  ASSERT_GT(whole.size(), kPageBytes);
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string changed = whole;
    changed[i] = static_cast<char>(changed[i] ^ (1 << (i % 8)));
    write(path, changed);
    EXPECT_TRUE(read(store, {block(0)}).empty()) << "byte " << i;
    EXPECT_FALSE(fs::exists(path)) << "byte " << i;
  }
  EXPECT_EQ(store.stats().n_refused, std::ssize(whole));
  write(path, whole);
  EXPECT_EQ(read(store, {block(0)}).size(), 1);
}

TEST_F(PrefixStoreTest, EveryOtherLengthIsAMiss) {
  PrefixStore store(options());
  put(store, block(0), 1);
  const std::string path = path_of(block(0)), whole = bytes_of(path);
  for (size_t n = 0; n < whole.size(); ++n) {
    write(path, whole.substr(0, n));
    EXPECT_TRUE(read(store, {block(0)}).empty()) << n << " bytes";
    EXPECT_FALSE(fs::exists(path)) << n << " bytes";
  }
  write(path, whole + '\0');
  EXPECT_TRUE(read(store, {block(0)}).empty());
}

TEST_F(PrefixStoreTest, WhatIsNotTheBlockOfItsNameIsAMiss) {
  PrefixStore store(options());
  put(store, block(0), 1);
  put(store, block(1), 2);
  // Another block under this name, whole as it is.
  fs::copy_file(path_of(block(1)), path_of(block(0)), fs::copy_options::overwrite_existing);
  EXPECT_TRUE(read(store, {block(0)}).empty());
  // The same name with other tokens (a collision of names), and with pages of another size.
  PrefixStore::Block collision = block(1);
  collision.tokens[0] += 1;
  EXPECT_TRUE(read(store, {collision}).empty());
  put(store, block(1), 2);
  EXPECT_TRUE(read(store, {block(1)}, kPageBytes + 1).empty());
  EXPECT_EQ(store.stats().n_refused, 3);
  // What is no file at all.
  fs::create_directory(path_of(block(2)));
  EXPECT_TRUE(read(store, {block(2)}).empty());
}

TEST_F(PrefixStoreTest, FilesOfAnotherDirectoryAreForeign) {
  const std::string other = directory_ + "_other";
  fs::remove_all(other);
  {
    PrefixStore theirs({other, 0});
    put(theirs, block(0), 1);
  }
  PrefixStore store(options());
  fs::copy_file(other + "/" + to_hex(block(0).name) + ".kv", path_of(block(0)));
  EXPECT_TRUE(read(store, {block(0)}).empty());
  EXPECT_EQ(store.stats().n_refused, 1);
  fs::remove_all(other);
}

TEST_F(PrefixStoreTest, WhatWasUsedLongestAgoGoesFirstAndTheEndOfAChainBeforeItsBeginning) {
  int64_t size = 0;
  {
    PrefixStore store(options());
    put(store, block(0, 1), 1);
    size = static_cast<int64_t>(bytes_of(path_of(block(0, 1))).size());
    for (const auto& [depth, chain] : {std::pair(1, 1), {0, 2}, {1, 2}})
      put(store, block(depth, static_cast<uint64_t>(chain)), 1);
    for (int64_t depth = 0; depth < 2; ++depth)  // chain 1 was used after chain 2
      store.touch(block(depth, 1).name, block(depth, 3).used);
    store.flush();
  }
  // Room for three of four and the twentieth that is kept free.
  for (const auto& [n_left, gone] :
       {std::pair(3, block(1, 2)), {2, block(0, 2)}, {1, block(1, 1)}}) {
    PrefixStore store(options(size * n_left * 20 / 19 + 2));
    store.flush();
    EXPECT_FALSE(store.contains(gone.name));
    EXPECT_EQ(store.stats().n_evicted, 1);
    EXPECT_EQ(store.stats().bytes_stored, size * n_left);
  }
  EXPECT_TRUE(fs::exists(path_of(block(0, 1))));
}

TEST_F(PrefixStoreTest, TheLimitHoldsWhileBlocksAreWritten) {
  constexpr int64_t kMax = 4000;
  PrefixStore store(options(kMax));
  for (uint64_t i = 0; i < 100; ++i) {
    put(store, block(0, i), i);
    EXPECT_TRUE(store.contains(block(0, i).name)) << "the newest goes last";
    int64_t total = 0;
    for (const auto& entry : fs::directory_iterator(directory_)) {
      if (entry.path().extension() == ".kv") total += static_cast<int64_t>(entry.file_size());
    }
    EXPECT_LE(total, kMax);
  }
  EXPECT_GT(store.stats().n_evicted, 60);
}

TEST_F(PrefixStoreTest, AFullDiskIsNoFailure) {
  PrefixStore store(options());
  put(store, block(0), 1);
  // As a full disk: files may not grow beyond 64 bytes.
  struct rlimit before {};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small = {64, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  put(store, block(1), 2);
  put(store, block(2), 2);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(store.stats().n_failed, 2);
  EXPECT_FALSE(store.contains(block(1).name));
  for (const auto& entry : fs::directory_iterator(directory_))
    EXPECT_THAT(entry.path().string(), testing::Not(testing::HasSubstr(".tmp-")));
  EXPECT_EQ(read(store, {block(0)}).size(), 1) << "reading goes on";
}

TEST_F(PrefixStoreTest, ADirectoryThatIsDeletedIsMadeAgain) {
  init_logging("warning");
  testing::internal::CaptureStderr();
  {
    PrefixStore store(options());
    put(store, block(0), 1);
    for (const bool is_whole : {true, false}) {  // the directory itself, or what is in it
      if (is_whole) fs::remove_all(directory_);
      for (const auto& entry :
           is_whole ? fs::directory_iterator() : fs::directory_iterator(directory_))
        fs::remove(entry.path());
      EXPECT_TRUE(read(store, {block(0)}).empty());
      put(store, block(0), 1);
      put(store, block(1), 2);
      EXPECT_TRUE(store.contains(block(0).name));
      EXPECT_EQ(fs::status(directory_).permissions(), fs::perms::owner_all);
    }
    EXPECT_EQ(store.stats().n_failed, 0);
    EXPECT_EQ(store.stats().n_restored, 2);
  }
  const std::string told = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::ranges::count(told, '\n'), 2) << "once for each time: " << told;
  EXPECT_THAT(told, testing::HasSubstr("they are made again"));
  PrefixStore later(options());
  const auto found = read(later, {block(0), block(1)});
  ASSERT_EQ(found.size(), 2) << "the secret is the same";
  EXPECT_TRUE(same(found[0], pages(1)));
  EXPECT_TRUE(same(found[1], pages(2)));
}

TEST_F(PrefixStoreTest, TheQueueIsBounded) {
  PrefixStoreOptions bounded = options();
  bounded.queue_bytes = 100;
  PrefixStore store(bounded);
  EXPECT_TRUE(store.has_room(1000)) << "one always fits";
  store.put(block(0), pages(1, 1 << 20));
  // It may be written by now; until it is, there is no room.
  store.flush();
  EXPECT_TRUE(store.has_room(100));
}

TEST_F(PrefixStoreTest, WhatIsNotWrittenInTimeIsDropped) {
  PrefixStore store(options());
  store.flush();
  constexpr int64_t kBlocks = 16, kBytes = 8 << 20;
  for (uint64_t i = 0; i < kBlocks; ++i) {
    PrefixStore::Pages zeros{std::make_unique<std::byte[]>(kBytes), {}};
    zeros.bytes = {zeros.memory.get(), static_cast<size_t>(kBytes)};
    store.put(block(0, i), std::move(zeros));
  }
  store.flush(std::chrono::milliseconds(0));
  store.flush();  // of what was under way
  EXPECT_GT(store.stats().n_failed, 0);
  EXPECT_EQ(store.stats().n_failed + store.stats().n_written, kBlocks);
  EXPECT_TRUE(store.has_room(PrefixStoreOptions().queue_bytes)) << "its bytes are free again";
  put(store, block(0, 99), 1);
  EXPECT_TRUE(store.contains(block(0, 99).name));
}

TEST_F(PrefixStoreTest, AUseIsNotedOnce) {
  PrefixStore store(options());
  put(store, block(0), 1);
  const int64_t used = block(0).used + 60'000'000'000;
  const auto time_after_touch = [&](int64_t when) {
    const fs::file_time_type old = fs::file_time_type::clock::now() - std::chrono::hours(9);
    fs::last_write_time(path_of(block(0)), old);
    store.touch(block(0).name, when);
    store.flush();
    return fs::last_write_time(path_of(block(0))) != old;
  };
  EXPECT_TRUE(time_after_touch(used));
  EXPECT_FALSE(time_after_touch(used));
  EXPECT_TRUE(time_after_touch(used + 1));
}

TEST_F(PrefixStoreTest, TheDefaultLimitCountsItsOwnFilesAsRoom) {
  fs::create_directory(directory_);
  const std::string path = directory_ + "/a.kv";
  write(path, "x");
  fs::resize_file(path, uintmax_t{40} << 30);  // with a hole
  const PrefixStore store(options());
  EXPECT_EQ(store.max_bytes(), int64_t{10} << 30);
}

TEST_F(PrefixStoreTest, AReadThatIsEndedGivesNothing) {
  PrefixStore store(options());
  std::vector<PrefixStore::Block> chain;
  for (int64_t i = 0; i < 50; ++i) {
    chain.push_back(block(i));
    store.put(block(i), pages(static_cast<uint64_t>(i)));
  }
  store.flush();
  for (int round = 0; round < 50; ++round) {
    store.begin_read(chain, kPageBytes);
    store.take_read(1);
    store.end_read();
    EXPECT_TRUE(store.read_ended());
    EXPECT_TRUE(store.take_read(9).empty());
    const auto others = read(store, {block(round)});
    ASSERT_EQ(others.size(), 1);
    EXPECT_TRUE(same(others[0], pages(static_cast<uint64_t>(round))));
  }
}

TEST_F(PrefixStoreTest, SeveralMayShareADirectory) {
  const auto work = [this](uint64_t seed) {
    PrefixStore store(options(6000));
    for (uint64_t i = 0; i < 200; ++i) {
      const uint64_t chain = random_bits(seed, 2, i) % 60;
      store.put(block(0, chain), pages(chain));
      const uint64_t wanted = random_bits(seed, 3, i) % 60;
      for (const PrefixStore::Pages& found : read(store, {block(0, wanted)}))
        EXPECT_TRUE(same(found, pages(wanted)));
    }
    EXPECT_EQ(store.stats().n_refused, 0);
    EXPECT_EQ(store.stats().n_failed, 0);
  };
  std::vector<std::thread> users;
  for (uint64_t seed = 0; seed < 3; ++seed)
    users.emplace_back(work, seed);
  for (std::thread& user : users)
    user.join();
}

TEST_F(PrefixStoreTest, ADirectoryThatCannotBeUsedIsAnError) {
  write(directory_, "a file");
  try {
    PrefixStore store(options());
    FAIL() << "a file is no directory";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kIo);
    EXPECT_THAT(std::string(error.message()), testing::HasSubstr(directory_));
  }
  fs::remove(directory_);
  fs::create_directory(directory_);
  write(directory_ + "/secret", "short");
  EXPECT_THROW(PrefixStore{options()}, Error);
}

TEST_F(PrefixStoreTest, WhatWasNeverFinishedGoesAfterAnHour) {
  fs::create_directory(directory_);
  const std::string old = directory_ + "/a.kv.tmp-1-1", young = directory_ + "/b.kv.tmp-1-2";
  write(old, "x");
  write(young, "x");
  fs::last_write_time(old, fs::file_time_type::clock::now() - std::chrono::hours(2));
  PrefixStore store(options());
  put(store, block(0), 1);
  EXPECT_FALSE(fs::exists(old));
  EXPECT_TRUE(fs::exists(young));
}

}  // namespace
}  // namespace qw
