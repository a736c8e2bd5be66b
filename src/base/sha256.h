// SHA-256 of a byte stream, to compare tensors and files with published sums.
//
// Level 0 (base). Source: FIPS 180-4, sections 4.1.2, 5.1.1 and 6.2. Plain scalar code.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace qw {

class Sha256 {
 public:
  using Digest = std::array<uint8_t, 32>;

  void update(std::span<const std::byte> bytes) noexcept;
  /// The digest of everything given so far; the object must not be used afterwards.
  Digest finish() noexcept;

 private:
  void compress(const std::byte* block) noexcept;

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, 64> pending_{};  // the bytes of an unfinished block
  size_t n_pending_ = 0;
  uint64_t n_bytes_ = 0;
};

/// The digest of `bytes` as 64 lower-case hexadecimal digits.
std::string sha256_hex(std::span<const std::byte> bytes);
std::string to_hex(const Sha256::Digest& digest);

}  // namespace qw
