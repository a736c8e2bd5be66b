#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <queue>
#include <unordered_map>

#include "base/error.h"

namespace qw {
namespace {

// Rank and id in one word, so that the lowest rank is the smallest number; no merge is the largest.
constexpr uint64_t kNoPair = ~uint64_t{0};

uint64_t pack(Merge merge) noexcept {
  return merge.exists() ? uint64_t{merge.rank} << 32 | merge.id : kNoPair;
}
uint32_t rank_of(uint64_t pair) noexcept {
  return static_cast<uint32_t>(pair >> 32);
}
uint32_t id_of(uint64_t pair) noexcept {
  return static_cast<uint32_t>(pair);
}

/// A short piece: for every symbol what it and its successor become, and the lowest rank of every
/// block of symbols. Places of swallowed symbols stay where they are and have no rank, so that
/// every search is a plain loop over integers.
class ShortPiece {
 public:
  ShortPiece(const MergeTable& merges, std::vector<uint32_t>& symbols, BpeScratch& scratch)
      : merges_(merges), ids_(symbols.data()), n_(static_cast<uint32_t>(symbols.size())) {
    n_blocks_ = (n_ + kBlock - 1) / kBlock;
    scratch.ranks.resize(size_t{n_blocks_} * (kBlock + 1));
    scratch.merged.resize(n_);
    scratch.previous.resize(n_);
    scratch.next.resize(n_);
    ranks_ = scratch.ranks.data();
    lowest_ = ranks_ + n_blocks_ * kBlock;
    merged_ = scratch.merged.data();
    previous_ = scratch.previous.data();
    next_ = scratch.next.data();
    for (uint32_t i = 0; i < n_; ++i) {
      previous_[i] = i - 1;
      next_[i] = i + 1;
    }
    for (uint32_t i = 0; i < n_; ++i)
      find_pair(i);
    std::fill(ranks_ + n_, lowest_, kNoRank);
    for (uint32_t i = 0; i < n_; i += kBlock)
      find_lowest(i);
  }

  /// Returns the number of tokens, which are then the first of `symbols`.
  uint32_t merge_all() {
    for (;;) {
      const int32_t* const block = std::min_element(lowest_, lowest_ + n_blocks_);
      if (*block == kNoRank) break;
      const int32_t* const ranks = ranks_ + (block - lowest_) * kBlock;
      merge_at(static_cast<uint32_t>(std::find(ranks, ranks + kBlock, *block) - ranks_));
    }
    uint32_t n_out = 0;
    for (uint32_t at = 0; at < n_; at = next_[at])
      ids_[n_out++] = ids_[at];
    return n_out;
  }

 private:
  static constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();
  /// Eight 128-bit vectors. Blocks of 8 or 16 are no faster for words and slower for sentences.
  static constexpr uint32_t kBlock = 32;

  void merge_at(uint32_t at) {
    const uint32_t gone = next_[at];
    ids_[at] = merged_[at];
    ranks_[gone] = kNoRank;
    next_[at] = next_[gone];
    if (next_[at] < n_) previous_[next_[at]] = at;
    find_pair(at);
    if (gone / kBlock != at / kBlock) find_lowest(gone);
    if (at > 0) {
      find_pair(previous_[at]);
      if (previous_[at] / kBlock != at / kBlock) find_lowest(previous_[at]);
    }
    find_lowest(at);
  }

  void find_pair(uint32_t at) {
    ranks_[at] = kNoRank;
    if (next_[at] == n_) return;
    const Merge merge = merges_.find(ids_[at], ids_[next_[at]]);
    if (!merge.exists()) return;
    ranks_[at] = static_cast<int32_t>(merge.rank);
    merged_[at] = merge.id;
  }

  /// For the block around `at`.
  void find_lowest(uint32_t at) {
    const int32_t* const ranks = ranks_ + at / kBlock * kBlock;
    int32_t lowest = kNoRank;
    for (uint32_t i = 0; i < kBlock; ++i)
      lowest = std::min(lowest, ranks[i]);
    lowest_[at / kBlock] = lowest;
  }

  const MergeTable& merges_;
  uint32_t* ids_;
  uint32_t n_, n_blocks_;
  int32_t *ranks_, *lowest_;
  uint32_t *merged_, *previous_, *next_;
};

/// A piece as a doubly linked list of symbols, and a queue of positions for each rank in it.
class LongPiece {
 public:
  LongPiece(const MergeTable& merges, std::vector<uint32_t>& symbols, BpeScratch& scratch)
      : merges_(merges),
        ids_(symbols),
        pairs_(scratch.pairs),
        previous_(scratch.previous),
        next_(scratch.next),
        n_(static_cast<uint32_t>(symbols.size())),
        cancel_(scratch.cancel) {
    pairs_.resize(n_);
    previous_.resize(n_);
    next_.resize(n_);
    for (uint32_t i = 0; i < n_; ++i) {
      previous_[i] = i - 1;  // of 0: wraps to a position no symbol has
      next_[i] = i + 1;
    }
    for (uint32_t i = 0; i < n_; ++i) {
      look_up_from_time_to_time(i);
      find_pair(i);
    }
  }

  void merge_all() {
    while (!ranks_.empty()) {
      const uint32_t rank = ranks_.top();
      ranks_.pop();
      const auto queue = queues_.find(rank);
      std::vector<uint32_t> positions = std::move(queue->second);
      queues_.erase(queue);
      // Positions arrive in runs from left to right, one run for each rank that made them.
      if (!std::is_sorted(positions.begin(), positions.end())) {
        std::sort(positions.begin(), positions.end());
      }
      merge_rank(rank, positions);
    }
    compact();
  }

 private:
  void merge_rank(uint32_t rank, const std::vector<uint32_t>& positions) {
    for (size_t i = 0; i < positions.size(); ++i) {
      look_up_from_time_to_time(i);
      const uint32_t at = positions[i];
      if (rank_of(pairs_[at]) != rank || pairs_[at] == kNoPair) continue;  // overtaken by another
      merge_at(at);
      // Only in an odd merges list can a merge bring up a pair that ranks before it.
      if (!ranks_.empty() && ranks_.top() < rank) {
        for (++i; i < positions.size(); ++i)
          enqueue(rank, positions[i]);
      }
    }
  }

  void look_up_from_time_to_time(size_t i) const {
    constexpr size_t kOften = 4096;  // some hundred microseconds
    if (cancel_ != nullptr && i % kOften == 0) cancel_->check("tokenizing");
  }

  void merge_at(uint32_t at) {
    const uint32_t gone = next_[at];
    ids_[at] = id_of(pairs_[at]);
    pairs_[gone] = kNoPair;
    next_[at] = next_[gone];
    if (next_[at] < n_) previous_[next_[at]] = at;
    if (previous_[at] < n_) find_pair(previous_[at]);
    find_pair(at);
  }

  void find_pair(uint32_t at) {
    pairs_[at] = next_[at] < n_ ? pack(merges_.find(ids_[at], ids_[next_[at]])) : kNoPair;
    if (pairs_[at] != kNoPair) enqueue(rank_of(pairs_[at]), at);
  }

  void enqueue(uint32_t rank, uint32_t at) {
    const auto [queue, fresh] = queues_.try_emplace(rank);
    if (fresh) ranks_.push(rank);
    queue->second.push_back(at);
  }

  void compact() {
    uint32_t n_out = 0;
    for (uint32_t at = 0; at < n_; at = next_[at])
      ids_[n_out++] = ids_[at];
    ids_.resize(n_out);
  }

  const MergeTable& merges_;
  std::vector<uint32_t>& ids_;
  std::vector<uint64_t>& pairs_;
  std::vector<uint32_t>&previous_, &next_;
  uint32_t n_;
  std::priority_queue<uint32_t, std::vector<uint32_t>, std::greater<>> ranks_;
  std::unordered_map<uint32_t, std::vector<uint32_t>> queues_;
  const CancelFlag* cancel_;
};

}  // namespace

MergeTable::MergeTable(size_t n_merges) : n_merges_(n_merges) {
  QW_CHECK(n_merges < size_t{1} << 31, "{} merges", n_merges);
  const size_t n_slots = std::bit_ceil(std::max<size_t>(16, n_merges + n_merges / 2));
  dense_.resize(size_t{kDense} * kDense);
  slots_.resize(n_slots);
  mask_ = n_slots - 1;
  shift_ = 64 - static_cast<unsigned>(std::countr_zero(n_slots));
  const size_t n_bits = std::bit_ceil(std::max<size_t>(64, n_merges * 8));
  bitmap_.resize(n_bits / 64);
  bitmap_shift_ = 64 - static_cast<unsigned>(std::countr_zero(n_bits));
}

void MergeTable::insert(uint32_t left, uint32_t right, Merge merge) {
  if ((left | right) < kDense) dense_[left * kDense + right] = merge;
  const uint64_t key = uint64_t{left} << 32 | right;
  const uint64_t bit = hash_of(key) >> bitmap_shift_;
  bitmap_[bit / 64] |= uint64_t{1} << (bit % 64);
  size_t i = hash_of(key) >> shift_;
  while (slots_[i].key != kEmpty && slots_[i].key != key)
    i = (i + 1) & mask_;
  if (slots_[i].key == kEmpty) {
    QW_CHECK(n_used_ < n_merges_, "more merges than announced");
    ++n_used_;
  }
  slots_[i] = {key, merge};
}

void bpe_merge(const MergeTable& merges, std::vector<uint32_t>& symbols, BpeScratch& scratch,
               size_t longest_short) {
  if (symbols.size() < 2) return;
  if (symbols.size() <= longest_short) {
    symbols.resize(ShortPiece(merges, symbols, scratch).merge_all());
  } else {
    LongPiece(merges, symbols, scratch).merge_all();
  }
}

}  // namespace qw
