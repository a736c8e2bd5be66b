// What keys and values of a prefix go by besides its tokens.
//
// Level 6 (engine). Two sequences share pages only where all of it is equal: the adapter, because
// the bits depend on it, and the salt, because their owners want to be kept apart (vLLM's
// cache_salt: who may not share cannot tell by the time whether another has asked the same).
#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/sha256.h"

namespace qw {

/// The SHA-256 of Request::cache_salt; zeros: none, which is the one that all others share.
using CacheSalt = Sha256::Digest;

inline CacheSalt hash_salt(std::string_view text) {
  if (text.empty()) return {};
  Sha256 hash;
  hash.update(std::as_bytes(std::span(text)));
  return hash.finish();
}

struct BlockScope {
  int32_t adapter = -1;
  CacheSalt salt{};

  BlockScope() = default;
  // An adapter is a scope: most callers know of nothing else.
  BlockScope(int32_t of_adapter, const CacheSalt& of_salt = {})  // NOLINT(google-explicit-*)
      : adapter(of_adapter), salt(of_salt) {}

  bool is_salted() const { return salt != CacheSalt{}; }
  auto operator<=>(const BlockScope&) const = default;
};

}  // namespace qw
