// Keys and values of kept tokens, copied out of the cache and back into it.
//
// Level 6 (engine). A part of Engine::Impl.
#include <algorithm>

#include "base/error.h"
#include "engine/engine_impl.h"
#include "engine/generation_config_checks.h"

namespace qw {

KvName Engine::Impl::root_of(const BlockScope& scope, size_t which) const {
  if (const std::optional<KvName> root = kv_root_of(model_, *kv_, scope, which)) return *root;
  if (scope.adapter >= 0 && !model_.content_name(-1, which).empty()) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "snapshot: expected tokens of an adapter that is loaded, got those of one that was "
         "unloaded meanwhile");
  }
  fail(ErrorKind::kUnsupported, "engine",
       "snapshot: expected a model whose bytes were hashed when it was loaded, got one without");
}

KvSnapshot Engine::Impl::snapshot(const BlockScope& scope, std::span<const int32_t> tokens,
                                  size_t which) const {
  KvSnapshot out;
  out.root = root_of(scope, which);
  out.page_bytes = kv_->page_bytes();
  const PagePool::Prefix kept = scheduler_->kept_prefix(scope, tokens);
  const auto n_tokens = static_cast<size_t>(kept.n_tokens);
  out.tokens.assign(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n_tokens));
  const auto size = static_cast<size_t>(out.page_bytes);
  out.pages.resize(kept.pages.size() * size);
  for (size_t i = 0; i < kept.pages.size(); ++i)
    kv_->read_page(kept.pages[i], std::span(out.pages).subspan(i * size, size));
  return out;
}

bool Engine::Impl::takes(const BlockScope& scope, const KvSnapshot& snapshot, size_t which) const {
  const int64_t n_pages = scheduler_->pages_for(std::ssize(snapshot.tokens));
  return snapshot.root == root_of(scope, which) && snapshot.page_bytes == kv_->page_bytes() &&
         std::ssize(snapshot.pages) == n_pages * snapshot.page_bytes;
}

int64_t Engine::Impl::restore(const BlockScope& scope, const KvSnapshot& snapshot, size_t which) {
  if (!takes(scope, snapshot, which)) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "snapshot: expected one of this model, adapter, cache_salt, KV cache type and "
         "build, got another");
  }
  check_token_ids("engine", "snapshot", snapshot.tokens, vocab_);
  const auto size = static_cast<size_t>(snapshot.page_bytes);
  return scheduler_->import_blocks(scope, snapshot.tokens, 0, [&](int32_t page, int64_t block) {
    kv_->write_page(page,
                    std::span(snapshot.pages).subspan(static_cast<size_t>(block) * size, size));
  });
}

int64_t Engine::Impl::forget(const BlockScope& scope, std::span<const int32_t> tokens) {
  const PagePool::Prefix kept = scheduler_->kept_prefix(scope, tokens);
  // From the end: blocks that others hold stay, and so do those before them.
  PagePool& pool = scheduler_->pool();
  int64_t n_dropped = 0;
  for (auto page = kept.pages.rbegin(); page != kept.pages.rend(); ++page) {
    if (pool.is_in_use(*page)) break;
    n_dropped += pool.block_tokens(*page);
    pool.drop_unused_block(*page);
  }
  return std::min(n_dropped, kept.n_tokens);
}

}  // namespace qw
