#include "backend/cpu_linear_memory.h"

#include <algorithm>

namespace qw {

namespace {

constexpr int64_t kLine = 64;
/// A piece is as large as all before it, within these: what is left over of the last one is address
/// space, but for a part of one huge page.
constexpr int64_t kLeastPiece = int64_t{8} << 20, kLargestPiece = int64_t{256} << 20;

}  // namespace

std::shared_ptr<uint8_t> WeightMemory::take(int64_t bytes, std::string_view what) {
  const std::lock_guard lock(mutex_);
  const int64_t rounded = round_up(bytes, kLine);
  if (piece_ != nullptr && piece_.use_count() == 1) used_ = 0;  // all that was cut from it is gone
  if (piece_ == nullptr || rounded > piece_->size() - used_) {
    const int64_t size = std::clamp(taken_, kLeastPiece, kLargestPiece);
    if (rounded > size / 2) {  // alone
      const auto own = std::make_shared<const AlignedBytes>(bytes, what);
      taken_ += rounded;
      return {own, own->data()};
    }
    piece_ = std::make_shared<const AlignedBytes>(size, what);
    used_ = 0;
  }
  uint8_t* const data = piece_->data() + used_;
  used_ += rounded;
  taken_ += rounded;
  return {piece_, data};
}

}  // namespace qw
