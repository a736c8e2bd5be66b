// Pages of the KV cache: who holds which, counted by references, and what outlives its holders.
//
// Level 6 (engine). Pure host code. A page is shared by forks until one of them writes to it; the
// scheduler copies it then. A page whose block of tokens was published keeps it after its last
// holder has gone, until pages are wanted: the longest unused goes first. After "Efficient memory
// management for LLM serving with PagedAttention" (Kwon et al., 2023).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "engine/prefix_index.h"

namespace qw {

class PagePool {
 public:
  /// Pages of `page_tokens` tokens. Without `keeps_blocks` nothing may be published.
  PagePool(int64_t n_pages, int page_tokens, bool keeps_blocks);

  /// A page with one reference, or nothing when all are taken: the one given back last, so that
  /// the processor's caches stay warm; when none is empty, the block that was longest unused is
  /// dropped for it. O(1).
  std::optional<int32_t> allocate();
  void retain(int32_t page);   // one more reference; an unused block comes back to life
  void release(int32_t page);  // one less; at zero the page is free, or keeps its block
  bool is_shared(int32_t page) const { return references(page) > 1; }
  bool is_in_use(int32_t page) const { return references(page) > 0; }
  /// Whether its only holder may write to the page: one reference, no block.
  bool is_writable(int32_t page) const { return references(page) == 1 && !has_block(page); }

  bool keeps_blocks() const noexcept { return index_.has_value(); }
  bool has_block(int32_t page) const { return index_ && index_->holds(page); }
  int block_tokens(int32_t page) const { return index_ ? index_->n_tokens(page) : 0; }
  /// Declares that `page` holds these tokens after the block of `parent` (PrefixIndex::kNone: at
  /// the start); their keys and values are written and will not be overwritten. A full block that
  /// another page already holds takes the reference over: use the page that is returned. A partial
  /// one that is known already is not kept twice, nor, unless it is in use, one that the new block
  /// begins with.
  int32_t publish(int32_t page, int32_t parent, const BlockScope& scope,
                  std::span<const int32_t> tokens);
  /// A full block that publish() has put into a page.
  struct Published {
    int32_t page = 0, parent = 0;  // PrefixIndex::kNone: none
    BlockScope scope;
    uint64_t serial = 0, parent_serial = 0;
  };
  /// From now on take_published() tells of them.
  void note_published() { notes_published_ = true; }
  std::vector<Published> take_published() { return std::exchange(published_, {}); }
  /// Of the block in a page: see PrefixIndex.
  uint64_t block_serial(int32_t page) const { return index_ ? index_->serial_of(page) : 0; }
  std::span<const int32_t> tokens_of(int32_t page) const { return index_->tokens_of(page); }
  /// Forgets the block, so that the page's only holder may write to it.
  void unpublish(int32_t page);
  /// The pages whose blocks start `tokens`, and how many tokens that is: full blocks, and the first
  /// tokens of one more.
  struct Prefix {
    std::vector<int32_t> pages;
    int64_t n_tokens = 0;
  };
  Prefix find_prefix(const BlockScope& scope, std::span<const int32_t> tokens) const;

  int64_t n_pages() const noexcept { return static_cast<int64_t>(references_.size()); }
  /// Pages that allocate() can give: empty ones and those of unused blocks.
  int64_t n_free() const noexcept { return static_cast<int64_t>(empty_.size()) + n_unused_; }
  int64_t n_unused_blocks() const noexcept { return n_unused_; }
  /// Forgets them: their pages are empty then.
  void drop_unused_blocks();
  /// Forgets one of them.
  void drop_unused_block(int32_t page);

  /// Throws Error{kInternal} unless the references equal how often each page stands in `held`
  /// (every page of every table), and each page is exactly one of held, empty, unused block.
  void check_integrity(std::span<const int32_t> held) const;

 private:
  int32_t references(int32_t page) const { return references_[static_cast<size_t>(page)]; }
  void append_unused(int32_t page);
  void remove_unused(int32_t page);

  std::vector<int32_t> references_;
  std::vector<int32_t> empty_;  // a stack
  std::optional<PrefixIndex> index_;
  bool notes_published_ = false;
  std::vector<Published> published_;
  /// Unused blocks, the longest unused first: a ring of links through element n_pages.
  struct Link {
    int32_t before = 0, after = 0;
  };
  std::vector<Link> links_;
  int64_t n_unused_ = 0;
};

}  // namespace qw
