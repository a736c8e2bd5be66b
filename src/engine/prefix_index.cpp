#include "engine/prefix_index.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace qw {
namespace {

/// Spreads equally over 64 bits; equality of blocks is decided by comparing them.
uint64_t hash_block(uint64_t parent, const BlockScope& scope,
                    std::span<const int32_t> tokens) noexcept {
  uint64_t h = 0;
  const auto mix = [&h](uint64_t value) {
    h = (h ^ value) * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
  };
  mix(parent);
  mix(static_cast<uint32_t>(scope.adapter));
  uint64_t salt = 0;
  std::memcpy(&salt, scope.salt.data(), sizeof(salt));
  mix(salt);
  for (const int32_t token : tokens)
    mix(static_cast<uint32_t>(token));
  return h;
}

}  // namespace

PrefixIndex::PrefixIndex(int64_t n_pages, int page_tokens)
    : page_tokens_(page_tokens),
      blocks_(static_cast<size_t>(n_pages)),
      tokens_(static_cast<size_t>(n_pages) * static_cast<size_t>(page_tokens)) {}

std::span<const int32_t> PrefixIndex::tokens_of(int32_t page) const {
  return std::span(tokens_).subspan(static_cast<size_t>(page) * static_cast<size_t>(page_tokens_),
                                    static_cast<size_t>(at(page).n_tokens));
}

int32_t PrefixIndex::find(int32_t parent, const BlockScope& scope,
                          std::span<const int32_t> tokens) const {
  const uint64_t before = serial_of(parent);
  const auto [begin, end] = pages_.equal_range(hash_block(before, scope, tokens));
  for (auto it = begin; it != end; ++it) {
    const Block& block = at(it->second);
    const std::span<const int32_t> own = tokens_of(it->second);
    if (block.parent == before && block.scope == scope &&
        std::equal(own.begin(), own.end(), tokens.begin(), tokens.end())) {
      return it->second;
    }
  }
  return kNone;
}

PrefixIndex::Tail PrefixIndex::find_tail(int32_t parent, const BlockScope& scope,
                                         std::span<const int32_t> tokens) const {
  int32_t page = kNone;
  if (parent != kNone) {
    page = at(parent).youngest;
  } else if (const auto it = first_pages_.find(scope); it != first_pages_.end()) {
    page = it->second;
  }
  // The page may have come to hold something else since.
  if (page == kNone || !holds(page)) return {};
  if (at(page).parent != serial_of(parent) || at(page).scope != scope) return {};
  const std::span<const int32_t> own = tokens_of(page);
  const auto mismatch = std::mismatch(own.begin(), own.end(), tokens.begin(), tokens.end());
  const auto n = static_cast<int>(mismatch.first - own.begin());
  return n > 0 ? Tail{page, n} : Tail{};
}

void PrefixIndex::insert(int32_t page, int32_t parent, const BlockScope& scope,
                         std::span<const int32_t> tokens) {
  QW_CHECK(!holds(page) && !tokens.empty() && std::ssize(tokens) <= page_tokens_);
  QW_CHECK(parent == kNone || n_tokens(parent) == page_tokens_, "page {} is no full block", parent);
  Block& block = at(page);
  block = {next_serial_++, serial_of(parent), 0, scope, kNone, static_cast<int>(tokens.size())};
  std::copy(tokens.begin(), tokens.end(),
            tokens_.begin() + static_cast<std::ptrdiff_t>(page) * page_tokens_);
  if (block.n_tokens == page_tokens_) {
    block.hash = hash_block(block.parent, scope, tokens);
    pages_.emplace(block.hash, page);
  }
  (parent == kNone ? first_pages_[scope] : at(parent).youngest) = page;
  ++n_blocks_;
}

void PrefixIndex::erase(int32_t page) {
  QW_CHECK(holds(page), "page {} holds no block", page);
  const auto [begin, end] = pages_.equal_range(at(page).hash);
  const auto it =
      std::find_if(begin, end, [page](const auto& entry) { return entry.second == page; });
  if (it != end) pages_.erase(it);
  const auto first = first_pages_.find(at(page).scope);
  if (first != first_pages_.end() && first->second == page) first_pages_.erase(first);
  at(page) = {};
  --n_blocks_;
}

}  // namespace qw
