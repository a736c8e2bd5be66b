// What the pages of the KV cache hold: blocks of tokens, each named by the block before it.
//
// Level 6 (engine). Pure host code. A block's keys and values depend on the adapter and on all
// tokens up to its end, so a block is (the block before it, scope, its tokens). Blocks before it
// are named by serial numbers that are never used twice: comparing one block's tokens therefore
// compares the whole prefix, exactly. The idea of hashing pages by chains is vLLM's (automatic
// prefix caching).
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/block_scope.h"

namespace qw {

class PrefixIndex {
 public:
  static constexpr int32_t kNone = -1;  // no page; as a parent: the start of the sequence

  PrefixIndex(int64_t n_pages, int page_tokens);

  bool holds(int32_t page) const { return at(page).serial != 0; }
  /// Tokens of the block in `page`; 0 without one.
  int n_tokens(int32_t page) const { return at(page).n_tokens; }
  std::span<const int32_t> tokens_of(int32_t page) const;
  /// Another for every block there ever was; 0 without one.
  uint64_t serial_of(int32_t page) const { return page == kNone ? 0 : at(page).serial; }
  int page_tokens() const noexcept { return page_tokens_; }
  int64_t size() const noexcept { return n_blocks_; }

  /// The page that holds exactly this block (tokens: a full page), or kNone. O(page_tokens).
  int32_t find(int32_t parent, const BlockScope& scope, std::span<const int32_t> tokens) const;

  /// The youngest block after `parent` and how many of its first tokens agree with `tokens`.
  struct Tail {
    int32_t page = kNone;
    int n_tokens = 0;
  };
  Tail find_tail(int32_t parent, const BlockScope& scope, std::span<const int32_t> tokens) const;

  /// Says that `page`, which holds no block, holds these tokens (1 to page_tokens of them) after
  /// `parent`, which holds a full block. Partial blocks are met by find_tail() only.
  void insert(int32_t page, int32_t parent, const BlockScope& scope,
              std::span<const int32_t> tokens);
  /// Forgets the block of a page. Blocks after it are not found any more.
  void erase(int32_t page);

 private:
  struct Block {
    uint64_t serial = 0;  // 0: none
    uint64_t parent = 0;  // serial of the block before; 0: the start
    uint64_t hash = 0;
    BlockScope scope;
    int32_t youngest = kNone;  // page of the block that was inserted last after this one
    int n_tokens = 0;
  };
  const Block& at(int32_t page) const { return blocks_[static_cast<size_t>(page)]; }
  Block& at(int32_t page) { return blocks_[static_cast<size_t>(page)]; }

  int page_tokens_;
  std::vector<Block> blocks_;                         // of each page
  std::vector<int32_t> tokens_;                       // [pages, page_tokens]
  std::unordered_multimap<uint64_t, int32_t> pages_;  // full blocks by hash
  std::map<BlockScope, int32_t> first_pages_;         // youngest first block that is held
  uint64_t next_serial_ = 1;
  int64_t n_blocks_ = 0;
};

}  // namespace qw
