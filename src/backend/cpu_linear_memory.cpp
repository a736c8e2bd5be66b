#include "backend/cpu_linear_memory.h"

#include <algorithm>
#include <utility>

namespace qw {

namespace {

constexpr int64_t kLine = 64;
/// A piece is as large as all before it, within these, so that a small model asks for little. What
/// is left over at the end of a piece is address space, but for a part of one huge page.
constexpr int64_t kLeastPiece = int64_t{8} << 20, kLargestPiece = int64_t{256} << 20;

/// Null: there is no memory for it.
std::shared_ptr<const AlignedBytes> piece_of(int64_t size, std::string_view what) {
  try {
    return std::make_shared<const AlignedBytes>(size, what);
  } catch (const Error&) {
    return nullptr;
  }
}

}  // namespace

std::shared_ptr<uint8_t> WeightMemory::take(int64_t bytes, std::string_view what) {
  const std::lock_guard lock(mutex_);
  const int64_t rounded = round_up(bytes, kLine);
  if (piece_ == nullptr || rounded > piece_->size() - used_) {
    const int64_t size = std::clamp(taken_, kLeastPiece, kLargestPiece);
    // More than half a piece stands alone, as does what there is no whole piece for.
    auto piece = rounded <= size / 2 ? piece_of(size, what) : nullptr;
    if (piece == nullptr) {
      const auto own = std::make_shared<const AlignedBytes>(bytes, what);
      taken_ += rounded;
      return {own, own->data()};
    }
    piece_ = std::move(piece);
    used_ = 0;
  }
  uint8_t* const data = piece_->data() + used_;
  used_ += rounded;
  taken_ += rounded;
  return {piece_, data};
}

}  // namespace qw
