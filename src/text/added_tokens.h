// Finds added tokens (<|im_start|> and the like) in text, before any other rule looks at it.
//
// Level 3 (text). Leftmost, of those the longest, without overlap, by a byte trie; with the
// options of Hugging Face's AddedToken (single_word, lstrip, rstrip).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/function_ref.h"
#include "text/tokenizer_spec.h"

namespace qw {

/// Bytes [begin, end) of a text.
struct ByteRange {
  size_t begin = 0, end = 0;
};

class AddedTokenFinder {
 public:
  AddedTokenFinder() { nodes_by_first_byte_.fill(0); }

  /// Registers a token under the text to look for (its content, normalised if it must be).
  void add(std::string_view text, const AddedToken& token);
  bool empty() const noexcept { return tokens_.empty(); }

  struct Options {
    bool parse_special = true;         // false: special tokens are not found
    std::span<const ByteRange> plain;  // sorted, disjoint: no special token may touch these
  };

  /// Cuts `text` (valid UTF-8) into ordinary parts (id -1, never empty) and added tokens, in order.
  void split(std::string_view text, const Options& options,
             FunctionRef<void(std::string_view part, int32_t id)> visit) const;

 private:
  struct Token {
    int32_t id;
    bool special, lstrip, rstrip, single_word;
  };
  struct Match {
    const Token* token = nullptr;
    size_t end = 0;
  };
  size_t next_candidate(std::string_view text, size_t begin) const noexcept;
  Match longest_match(std::string_view text, size_t begin) const noexcept;
  static constexpr uint32_t kRoot = 0;

  std::vector<Token> tokens_;
  std::unordered_map<uint64_t, uint32_t> edges_;  // (node << 8 | byte) -> node
  std::vector<int32_t> token_at_{-1};             // by node; index into tokens_
  std::array<uint32_t, 256> nodes_by_first_byte_;
  int n_first_bytes_ = 0;  // distinct ones
  char first_byte_ = 0;    // the last of them
};

}  // namespace qw
