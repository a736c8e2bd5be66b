// Tokens by id and by text: two arenas and a hash index, no allocation per token.
//
// Level 3 (text).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace qw {

/// A list of strings in one buffer.
class StringArena {
 public:
  void reserve(size_t n_strings, size_t n_bytes) {
    ends_.reserve(n_strings);
    bytes_.reserve(n_bytes);
  }
  /// Error{kCorrupt} when the whole would pass 4 GiB.
  void push_back(std::string_view text);
  size_t size() const noexcept { return ends_.size(); }
  std::string_view operator[](size_t i) const noexcept {
    const uint32_t begin = i == 0 ? 0 : ends_[i - 1];
    return {bytes_.data() + begin, ends_[i] - begin};
  }

 private:
  std::string bytes_;
  std::vector<uint32_t> ends_;
};

/// 64-bit hash of a short string (not for adversaries: a flood of collisions costs time only).
uint64_t hash_string(std::string_view text) noexcept;

/// Finds the index of a string in a StringArena: open addressing over indices.
class StringIndex {
 public:
  explicit StringIndex(size_t n_strings);
  /// Adds arena[i]; false, changing nothing, when an equal string is there already.
  bool insert(const StringArena& arena, uint32_t i);
  std::optional<uint32_t> find(const StringArena& arena, std::string_view text) const noexcept;

 private:
  static constexpr uint32_t kEmpty = 0xFFFFFFFF;
  size_t slot_of(const StringArena& arena, std::string_view text) const noexcept;
  std::vector<uint32_t> slots_;
};

}  // namespace qw
