// Byte-pair encoding proper: a table of merges by pairs of ids, and the merging of one piece.
//
// Level 3 (text). Rule (Sennrich et al., 2016; Hugging Face's and GPT-2's order): as long as any
// neighbours can be merged, merge the pair of lowest rank, the leftmost of equals. Short pieces by
// plain search, which is fastest there; long ones by queues per rank, so that a piece of ten
// million symbols takes O(n log n). Either way most of the time goes into looking up pairs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/cancel.h"

namespace qw {

/// What a pair of neighbours becomes. Lower rank first.
struct Merge {
  static constexpr uint32_t kNone = 0xFFFFFFFF;
  uint32_t rank = kNone;
  uint32_t id = 0;
  bool exists() const noexcept { return rank != kNone; }
};

/// Flat hash table (left id, right id) -> Merge, open addressing with linear probing. A real table
/// is larger than the caches near the core, so most questions are answered from less: pairs of low
/// ids, which are those of single bytes, from a square table; nine in ten of the pairs that do not
/// merge by a bitmap with eight bits or more per merge.
class MergeTable {
 public:
  /// Room for `n_merges` < 2^31 without rehashing (insertions beyond it are a broken promise).
  explicit MergeTable(size_t n_merges);

  /// Ids and rank below 2^31 - 1. A pair inserted twice keeps the later merge, as in Hugging Face.
  void insert(uint32_t left, uint32_t right, Merge merge);

  Merge find(uint32_t left, uint32_t right) const noexcept {
    if ((left | right) < kDense) return dense_[left * kDense + right];
    const uint64_t key = uint64_t{left} << 32 | right, hash = hash_of(key);
    const uint64_t bit = hash >> bitmap_shift_;
    if ((bitmap_[bit / 64] >> (bit % 64) & 1) == 0) return Merge{};
    for (size_t i = hash >> shift_;; i = (i + 1) & mask_) {
      if (slots_[i].key == key) return slots_[i].merge;
      if (slots_[i].key == kEmpty) return Merge{};
    }
  }

 private:
  static constexpr uint32_t kDense = 256;
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  struct Slot {
    uint64_t key = kEmpty;
    Merge merge;
  };
  /// Fibonacci hashing: the high bits are the well-mixed ones.
  static uint64_t hash_of(uint64_t key) noexcept { return key * 0x9E3779B97F4A7C15u; }

  std::vector<Merge> dense_;  // [kDense, kDense]
  std::vector<Slot> slots_;
  std::vector<uint64_t> bitmap_;  // a bit for each value of the hash's highest bits
  size_t mask_;
  size_t n_merges_, n_used_ = 0;
  unsigned shift_, bitmap_shift_;
};

/// Memory that merging one piece after another uses again.
struct BpeScratch {
  std::vector<uint64_t> pairs;           // long pieces
  std::vector<int32_t> ranks;            // short ones
  std::vector<uint32_t> merged;          // short ones
  std::vector<uint32_t> previous, next;  // both
  const CancelFlag* cancel = nullptr;    // ends long pieces once it is set; null: nothing does
};

/// Up to this many symbols searching wins: measured on one core of an EPYC of family 25 (Zen 3),
/// runs of Chinese, Japanese, Thai and English letters with the Qwen vocabulary, November 2026.
inline constexpr size_t kShortPiece = 2000;

/// Replaces `symbols` (ids of the single bytes or characters of a piece, fewer than 2^32) by the
/// ids of its tokens. Memory: 24 bytes and a queue entry per symbol. Pieces of more than
/// `longest_short` symbols go through queues; the outcome does not depend on it. Errors: cancelled
/// (by scratch.cancel, of a long piece).
void bpe_merge(const MergeTable& merges, std::vector<uint32_t>& symbols, BpeScratch& scratch,
               size_t longest_short = kShortPiece);

}  // namespace qw
