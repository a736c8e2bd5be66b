#include "text/token_table.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "base/error.h"

namespace qw {

void StringArena::push_back(std::string_view text) {
  if (text.size() > std::numeric_limits<uint32_t>::max() - bytes_.size()) {
    fail(ErrorKind::kCorrupt, "tokenizer", "vocabulary: expected under 4 GiB of text, got more");
  }
  bytes_.append(text);
  ends_.push_back(static_cast<uint32_t>(bytes_.size()));
}

uint64_t hash_string(std::string_view text) noexcept {
  // Eight bytes at a time; the shift brings the well-mixed high bits down to where tables look.
  const auto mix = [](uint64_t h, uint64_t word) {
    h = (h ^ word) * 0x9E3779B97F4A7C15u;
    return h ^ (h >> 32);
  };
  uint64_t hash = 0x243F6A8885A308D3u + text.size(), word = 0;
  const char* p = text.data();
  size_t left = text.size();
  for (; left >= 8; left -= 8, p += 8) {
    std::memcpy(&word, p, 8);
    hash = mix(hash, word);
  }
  word = 0;
  if (left != 0) std::memcpy(&word, p, left);
  return mix(hash, word);
}

StringIndex::StringIndex(size_t n_strings)
    : slots_(std::bit_ceil(std::max<size_t>(16, n_strings * 2)), kEmpty) {}

size_t StringIndex::slot_of(const StringArena& arena, std::string_view text) const noexcept {
  const size_t mask = slots_.size() - 1;
  size_t i = static_cast<size_t>(hash_string(text)) & mask;
  while (slots_[i] != kEmpty && arena[slots_[i]] != text)
    i = (i + 1) & mask;
  return i;
}

bool StringIndex::insert(const StringArena& arena, uint32_t i) {
  uint32_t& slot = slots_[slot_of(arena, arena[i])];
  if (slot != kEmpty) return false;
  slot = i;
  return true;
}

std::optional<uint32_t> StringIndex::find(const StringArena& arena,
                                          std::string_view text) const noexcept {
  const uint32_t found = slots_[slot_of(arena, text)];
  return found == kEmpty ? std::nullopt : std::optional<uint32_t>(found);
}

}  // namespace qw
