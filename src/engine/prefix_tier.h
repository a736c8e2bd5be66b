// The tier below the pages in memory: blocks that a store keeps on disk come back as kept pages.
//
// Level 6 (engine). Between scheduler, cache and store, on the engine's thread; reading and writing
// are the store's threads' affair. A block is written once, soon after it was computed; a request
// whose prompt goes on in the store where memory ends is held until what is there was read, and
// then finds it as it finds every kept page. By the numeric contract neither changes a bit.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "engine/prefix_store.h"
#include "engine/scheduler.h"
#include "model/model.h"

namespace qw {

/// All that keys and values depend on or are kept apart by, besides tokens, as the hash numbered
/// `which` names weights and adapters; nothing: it is not known. Every program that differs is
/// another: what it would compute may differ in a bit.
std::optional<KvName> kv_root_of(const Model& model, const KvCache& kv, const BlockScope& scope,
                                 size_t which);

class PrefixTier {
 public:
  /// which: the store's hash among LoadOptions::content_hashes.
  PrefixTier(std::shared_ptr<PrefixStore> store, size_t which, const Model& model, KvCache& kv,
             Scheduler& scheduler, int64_t chunk_tokens);
  /// Has everything written that memory still holds, as far as that takes no more than seconds.
  ~PrefixTier();
  PrefixTier(const PrefixTier&) = delete;
  PrefixTier& operator=(const PrefixTier&) = delete;

  /// A request with this prompt comes. True: hold it until take_ready() names it.
  bool enter(RequestId id, const BlockScope& scope, std::span<const int32_t> prompt);
  /// It needs nothing any more. Others are ignored.
  void leave(RequestId id);
  /// Moves what was read into pages, not more than computing a step's tokens would fill when
  /// `others_wait`. Returns the requests that have nothing to wait for any more.
  std::vector<RequestId> take_ready(bool others_wait);
  /// Hands blocks that were computed to the store, a bounded number of bytes when `others_wait`.
  void keep_published(bool others_wait);
  /// Whether something is to be read or handed over.
  bool is_busy() const { return !waiting_.empty() || !to_keep_.empty(); }
  /// Waits a moment for the store, unless it has got on since take_ready().
  void wait() { store_->wait_for_progress(seen_, kWaitMs); }

  const PrefixTierStats& stats() const { return stats_; }

 private:
  static constexpr int kWaitMs = 5;
  static constexpr std::chrono::seconds kEnd{5};  // what its end may take

  struct Lookup {
    RequestId id = 0;
    BlockScope scope;
    std::vector<int32_t> tokens;  // full blocks
    std::vector<KvName> names;    // of each
  };
  /// Of a block in memory.
  struct Named {
    uint64_t serial = 0;  // of the block whose name this is
    KvName name{};
    int64_t used = 0;  // when, as the store wants it: a little before the block before it
  };
  struct ToKeep {
    int32_t page = 0;
    uint64_t serial = 0;
  };

  std::vector<KvName> names_of(const BlockScope& scope, std::span<const int32_t> blocks) const;
  int64_t n_in_memory(const Lookup& lookup) const;
  void note_use(const Lookup& lookup);
  bool begin_read(const Lookup& lookup);
  bool import(const Lookup& lookup, int64_t most);
  void name_published();
  void keep_again();
  void keep(const ToKeep& block);

  std::shared_ptr<PrefixStore> store_;
  size_t which_;
  const Model& model_;
  KvCache& kv_;
  Scheduler& scheduler_;
  int64_t page_tokens_, blocks_per_step_;
  std::deque<Lookup> waiting_;  // the first is being read
  bool reading_ = false;
  int64_t next_block_ = 0;    // of what is being read
  int64_t seen_ = 0;          // of the store's progress
  std::vector<Named> names_;  // by page
  std::deque<ToKeep> to_keep_;
  int64_t n_restored_ = 0;  // of the store, as last seen
  PrefixTierStats stats_;
};

}  // namespace qw
