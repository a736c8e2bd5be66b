// Hashes under a secret that belongs to a directory: names and seals of what is cached there.
//
// Level 0 (base). XXH3 (Yann Collet), 128 bits, under a secret that is drawn with the directory:
// bytes are hashed at the speed of memory, and it is hard to make bytes that meet the hash of
// others without the secret. Hard, no more: XXH3 is no MAC, so that the directory must be one that
// only its owner can write to.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/function_ref.h"

namespace qw {

class KeyedHash {
 public:
  using Bytes = std::span<const std::byte>;
  using Digest = std::array<uint8_t, 16>;  // big-endian
  /// Calls body(i) for i in [0, n), in any order, on any threads.
  using ForEach = FunctionRef<void(int64_t n, FunctionRef<void(int64_t)> body)>;

  static constexpr size_t kSecretBytes = 192;
  static constexpr size_t kDigits = 32;  // of a digest in hexadecimal

  /// With the secret in the file DIRECTORY/secret, which is made if there is none; processes that
  /// start together get the same one. `component`: who speaks in errors: io, corrupt.
  KeyedHash(const std::string& directory, std::string_view component);
  /// With a secret of at least kSecretBytes bytes.
  explicit KeyedHash(std::vector<std::byte> secret) : secret_(std::move(secret)) {}

  /// Writes the secret to DIRECTORY/secret, unless there is one. Errors: io.
  void save(const std::string& directory) const;

  Digest of(Bytes bytes) const;
  /// of() of bytes that come one after the other and never lie in memory together.
  class Stream {
   public:
    /// `hash` must outlive it.
    explicit Stream(const KeyedHash& hash);
    ~Stream();
    Stream(Stream&&) noexcept;
    Stream& operator=(Stream&&) noexcept;
    void update(Bytes bytes);
    /// Of all bytes so far.
    Digest digest() const;

   private:
    struct State;
    std::unique_ptr<State> state_;
  };
  /// The hash of the hashes of pieces, none longer than 512 KiB: add_pieces() cuts what is.
  Digest of_pieces(std::span<const Bytes> pieces, ForEach for_each) const;
  static void add_pieces(Bytes bytes, std::vector<Bytes>& out);

 private:
  std::vector<std::byte> secret_;
};

std::string to_hex(const KeyedHash::Digest& digest);

/// A directory for a cache, made if there is none. Errors: io, naming it.
void make_cache_directory(const std::string& directory, std::string_view component);

}  // namespace qw
