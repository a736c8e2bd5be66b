// Byte-pair encoding proper: a table of merges by pairs of ids, and the merging of one piece.
//
// Level 3 (text). Rule (Sennrich et al., 2016; Hugging Face's and GPT-2's order): as long as any
// neighbours can be merged, merge the pair of lowest rank, the leftmost of equals. Short pieces by
// plain search, which is fastest there; long ones by queues per rank, so that a piece of ten
// million symbols takes O(n log n).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace qw {

/// What a pair of neighbours becomes. Lower rank first.
struct Merge {
  static constexpr uint32_t kNone = 0xFFFFFFFF;
  uint32_t rank = kNone;
  uint32_t id = 0;
  bool exists() const noexcept { return rank != kNone; }
};

/// Flat hash table (left id, right id) -> Merge, open addressing with linear probing.
class MergeTable {
 public:
  /// Room for `n_merges` without rehashing (insertions beyond it are a broken promise).
  explicit MergeTable(size_t n_merges);

  /// Ids below 2^31. A pair inserted twice keeps the later merge, as in Hugging Face.
  void insert(uint32_t left, uint32_t right, Merge merge);

  Merge find(uint32_t left, uint32_t right) const noexcept {
    const uint64_t key = uint64_t{left} << 32 | right;
    for (size_t i = home(key);; i = (i + 1) & mask_) {
      if (slots_[i].key == key) return slots_[i].merge;
      if (slots_[i].key == kEmpty) return Merge{};
    }
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  struct Slot {
    uint64_t key = kEmpty;
    Merge merge;
  };
  size_t home(uint64_t key) const noexcept {
    return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) >> shift_);  // Fibonacci hashing
  }

  std::vector<Slot> slots_;
  size_t mask_;
  size_t n_used_ = 0;
  unsigned shift_;
};

/// Memory that merging one piece after another uses again.
struct BpeScratch {
  std::vector<uint64_t> pairs;
  std::vector<uint32_t> previous, next;
};

/// Replaces `symbols` (ids of the single bytes or characters of a piece, fewer than 2^32) by the
/// ids of its tokens. Memory: 24 bytes and a queue entry per symbol.
void bpe_merge(const MergeTable& merges, std::vector<uint32_t>& symbols, BpeScratch& scratch);

}  // namespace qw
