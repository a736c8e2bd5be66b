// Keys and values on disk: the form of a file, and the names of blocks of tokens.
//
// Level 6 (engine). A block of tokens is named by a SHA-256 chain: the name of what the bits depend
// on besides tokens (weights, adapter, layout of the cache, program), then the tokens of every
// block up to its own. A file is a header, the tokens, the bytes of their pages, and a hash
// over all of it. Whatever is not exactly what was written is refused, never read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/keyed_hash.h"
#include "base/sha256.h"

namespace qw {

using KvName = Sha256::Digest;

/// The name of the state before the first token: `facts` is all that the bits of keys and values
/// depend on besides the tokens.
KvName kv_root_name(const std::string& facts);
/// Of the block that holds `tokens` after the block (or root) of that name.
KvName kv_block_name(const KvName& before, std::span<const int32_t> tokens);

/// What a file holds, in order, as little-endian numbers:
///   magic[16], n_tokens u64, page_bytes u64, n_pages u64, name[32], tokens i32 [n_tokens],
///   pages [n_pages, page_bytes], hash[16]
struct KvFileHead {
  static constexpr size_t kBytes = 16 + 3 * sizeof(uint64_t) + 32;
  static constexpr size_t kSealBytes = sizeof(KeyedHash::Digest);  // the hash at the end
  uint64_t n_tokens = 0, page_bytes = 0, n_pages = 0;
  KvName name{};

  /// Bytes of a whole file. Errors: corrupt, when no file can be so large.
  uint64_t file_bytes() const;
  /// Of these, those before the pages and those of the pages, where file_bytes() is no error.
  uint64_t front_bytes() const { return kBytes + n_tokens * sizeof(int32_t); }
  uint64_t pages_bytes() const { return page_bytes * n_pages; }
  bool operator==(const KvFileHead&) const = default;
};

/// Everything of a file before its pages.
std::vector<std::byte> kv_file_front(const KvName& name, std::span<const int32_t> tokens,
                                     uint64_t page_bytes, uint64_t n_pages);
/// The hash that ends a file, of its front and its pages.
KeyedHash::Digest kv_file_seal(const KeyedHash& hash, std::span<const std::byte> front,
                               std::span<const std::byte> pages);
/// The same, of the hash of the front and that of the pages.
KeyedHash::Digest kv_file_seal(const KeyedHash& hash, const KeyedHash::Digest& front,
                               const KeyedHash::Digest& pages);

/// The head of a file, from its first KvFileHead::kBytes bytes. Errors: corrupt.
KvFileHead read_kv_head(std::span<const std::byte> bytes);

/// The tokens in everything of a file before its pages.
std::vector<int32_t> tokens_of_front(std::span<const std::byte> front);

struct KvFileView {
  KvFileHead head;
  std::vector<int32_t> tokens;
  std::span<const std::byte> pages;  // into the bytes given
};
/// A whole file. Errors: corrupt (another form or version, another size, a hash that is not of
/// these bytes under this secret).
KvFileView read_kv_file(std::span<const std::byte> bytes, const KeyedHash& hash);

}  // namespace qw
