// Remembers the tokens of short pieces during one encoding: natural text repeats its words.
//
// Level 3 (text). Direct-mapped, one cache line per entry, a newcomer replaces the old entry. It
// lives as long as one call of encode, so that a tokenizer needs no lock.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "text/token_table.h"

namespace qw {

class WordCache {
 public:
  static constexpr size_t kMaxBytes = 30;
  static constexpr size_t kMaxTokens = 8;

  struct alignas(64) Entry {
    uint8_t n_bytes = 0;  // 0: free
    uint8_t n_tokens = 0;
    std::array<char, kMaxBytes> bytes;
    std::array<int32_t, kMaxTokens> tokens;

    bool holds(std::string_view word) const noexcept {
      return n_bytes == word.size() && std::memcmp(bytes.data(), word.data(), n_bytes) == 0;
    }
    std::span<const int32_t> ids() const noexcept { return {tokens.data(), n_tokens}; }
    void store(std::string_view word, std::span<const uint32_t> ids) noexcept {
      n_bytes = static_cast<uint8_t>(word.size());
      n_tokens = static_cast<uint8_t>(ids.size());
      std::copy(word.begin(), word.end(), bytes.begin());
      std::copy(ids.begin(), ids.end(), tokens.begin());
    }
  };

  /// A size that suits a text: no table at all for a few words, at most 1 MiB.
  explicit WordCache(size_t text_bytes) {
    constexpr size_t kMinText = 2048, kBytesPerEntry = 32, kMaxEntries = 16384;
    if (text_bytes >= kMinText) {
      entries_.resize(std::bit_floor(std::min(text_bytes / kBytesPerEntry, kMaxEntries)));
    }
  }

  /// The place for a word of 1 to kMaxBytes bytes, whoever is there now; null without a table.
  Entry* place_of(std::string_view word) noexcept {
    if (entries_.empty() || word.size() > kMaxBytes) return nullptr;
    return &entries_[static_cast<size_t>(hash_string(word)) & (entries_.size() - 1)];
  }

 private:
  std::vector<Entry> entries_;
};

}  // namespace qw
