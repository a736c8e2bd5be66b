// Keyed hashes: the same for the same bytes and secret, however the work is divided.
#include "base/keyed_hash.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "base/program_identity.h"

namespace qw {
namespace {

namespace fs = std::filesystem;

constexpr auto kInOrder = [](int64_t n, FunctionRef<void(int64_t)> body) {
  for (int64_t i = 0; i < n; ++i)
    body(i);
};
constexpr auto kBackwards = [](int64_t n, FunctionRef<void(int64_t)> body) {
  for (int64_t i = n; i-- > 0;)
    body(i);
};

KeyedHash hash_of(char secret) {
  return KeyedHash(std::vector<std::byte>(KeyedHash::kSecretBytes, std::byte(secret)));
}

TEST(KeyedHash, DependsOnEveryByteOnTheirPlaceAndOnTheSecret) {
  std::vector<std::byte> bytes(3 * (size_t{512} << 10) + 77, std::byte{5});
  const auto name = [&](const KeyedHash& hash, KeyedHash::ForEach for_each) {
    std::vector<KeyedHash::Bytes> pieces;
    KeyedHash::add_pieces(bytes, pieces);
    EXPECT_EQ(pieces.size(), 4);
    return to_hex(hash.of_pieces(pieces, for_each));
  };
  const KeyedHash hash = hash_of('a');
  const std::string first = name(hash, kInOrder);
  EXPECT_EQ(first.size(), KeyedHash::kDigits);
  EXPECT_EQ(name(hash, kBackwards), first);
  EXPECT_NE(name(hash_of('b'), kInOrder), first);
  for (const size_t at : {size_t{0}, bytes.size() / 2, bytes.size() - 1}) {
    bytes[at] ^= std::byte{1};
    EXPECT_NE(name(hash, kInOrder), first) << at;
    bytes[at] ^= std::byte{1};
  }
  std::rotate(bytes.begin(), bytes.begin() + 1, bytes.end());
  EXPECT_EQ(name(hash, kInOrder), first) << "all bytes are alike";
  bytes[0] = std::byte{6};
  const std::string early = name(hash, kInOrder);
  std::swap(bytes[0], bytes[1]);
  EXPECT_NE(name(hash, kInOrder), early);
}

// Around every size at which XXH3 does something else, cut in every way.
TEST(KeyedHash, OfAStreamIsThatOfItsBytes) {
  const KeyedHash hash = hash_of('a');
  std::vector<std::byte> bytes(5000);
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(i * i % 251);
  for (const size_t n : {0, 1, 16, 17, 128, 129, 240, 241, 256, 1024, 1025, 5000}) {
    const KeyedHash::Bytes all = std::span(bytes).first(n);
    for (const size_t piece : {1, 7, 64, 255, 256, 1000, 5000}) {
      KeyedHash::Stream stream(hash);
      for (size_t at = 0; at < n; at += piece)
        stream.update(all.subspan(at, std::min(piece, n - at)));
      EXPECT_EQ(stream.digest(), hash.of(all)) << n << " bytes by " << piece;
    }
  }
}

TEST(KeyedHash, TheSecretOfADirectoryIsDrawnOnce) {
  const std::string directory = testing::TempDir() + "keyed_hash";
  fs::remove_all(directory);
  make_cache_directory(directory, "test");
  const std::vector<std::byte> bytes(100, std::byte{1});
  std::vector<std::string> digests(8);
  std::vector<std::thread> threads;
  for (std::string& digest : digests)
    threads.emplace_back([&] { digest = to_hex(KeyedHash(directory, "test").of(bytes)); });
  for (std::thread& thread : threads)
    thread.join();
  for (const std::string& digest : digests)
    EXPECT_EQ(digest, digests[0]);
  EXPECT_EQ(fs::status(directory + "/secret").permissions(),
            fs::perms::owner_read | fs::perms::owner_write);
  // Where it was deleted, who has it writes it again; not over another.
  const KeyedHash hash(directory, "test");
  fs::remove(directory + "/secret");
  hash.save(directory);
  EXPECT_EQ(to_hex(KeyedHash(directory, "test").of(bytes)), digests[0]);
  EXPECT_EQ(fs::status(directory + "/secret").permissions(),
            fs::perms::owner_read | fs::perms::owner_write);
  fs::remove(directory + "/secret");
  const std::string other = to_hex(KeyedHash(directory, "test").of(bytes));
  EXPECT_NE(other, digests[0]);
  hash.save(directory);
  EXPECT_EQ(to_hex(KeyedHash(directory, "test").of(bytes)), other);
  std::ofstream(directory + "/secret") << "short";
  EXPECT_THROW(KeyedHash(directory, "test"), Error);
  EXPECT_THROW(make_cache_directory(directory + "/secret", "test"), Error);
  fs::remove_all(directory);
  EXPECT_THROW(KeyedHash(directory, "test"), Error) << "no such directory";
}

TEST(ProgramIdentity, IsTheSameEveryTime) {
  EXPECT_GT(program_identity().size(), 32);
  EXPECT_EQ(program_identity(), program_identity());
  EXPECT_EQ(program_identity().find("00000000000000000000000000000000"), std::string::npos)
      << "something was hashed";
}

}  // namespace
}  // namespace qw
