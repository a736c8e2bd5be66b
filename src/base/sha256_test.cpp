#include "base/sha256.h"

#include <gtest/gtest.h>

#include <string>

namespace qw {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

TEST(Sha256, PublishedExamples) {  // FIPS 180-4 examples
  EXPECT_EQ(sha256_hex({}), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex(bytes_of("abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex(bytes_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256_hex(bytes_of(std::string(1'000'000, 'a'))),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, ChunksGiveTheSameDigest) {
  std::string text;
  for (int length = 0; length < 200; ++length, text += static_cast<char>(length * 7)) {
    const std::string whole = sha256_hex(bytes_of(text));
    for (const size_t chunk : {1, 3, 55, 64, 65}) {
      Sha256 hash;
      for (size_t at = 0; at < text.size(); at += chunk)
        hash.update(bytes_of(text).subspan(at, std::min(chunk, text.size() - at)));
      ASSERT_EQ(to_hex(hash.finish()), whole) << length << " in chunks of " << chunk;
    }
  }
}

}  // namespace
}  // namespace qw
