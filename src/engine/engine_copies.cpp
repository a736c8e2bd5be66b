// Keys and values of kept tokens, copied out of the cache and back into it, piece by piece.
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
         "kept pages: expected tokens of an adapter that is loaded, got those of one that was "
         "unloaded meanwhile");
  }
  fail(ErrorKind::kUnsupported, "engine",
       "kept pages: expected a model whose bytes were hashed when it was loaded, got one without");
}

Engine::Held Engine::Impl::hold(const BlockScope& scope, std::span<const int32_t> tokens,
                                size_t which) {
  Held out;
  out.sequence.root = root_of(scope, which);
  out.sequence.page_bytes = kv_->page_bytes();
  out.id = scheduler_->hold(scope, tokens);
  const PagePool::Prefix& kept = *scheduler_->held(out.id);
  out.sequence.n_pages = std::ssize(kept.pages);
  out.sequence.tokens.assign(tokens.begin(),
                             tokens.begin() + static_cast<std::ptrdiff_t>(kept.n_tokens));
  return out;
}

void Engine::Impl::read_held(int64_t hold, int64_t first, std::span<std::byte> out) const {
  const PagePool::Prefix* held = scheduler_->held(hold);
  if (held == nullptr) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "kept pages: expected some that are held, got some that were let go of");
  }
  const auto size = static_cast<size_t>(kv_->page_bytes());
  const size_t n = out.size() / size;
  const auto begin = static_cast<size_t>(first);
  QW_CHECK(out.size() % size == 0 && begin + n <= held->pages.size());
  for (size_t i = 0; i < n; ++i)
    kv_->read_page(held->pages[begin + i], out.subspan(i * size, size));
}

bool Engine::Impl::takes(const BlockScope& scope, const KvSequence& sequence, size_t which) const {
  return sequence.root == root_of(scope, which) && sequence.page_bytes == kv_->page_bytes() &&
         sequence.n_pages == scheduler_->pages_for(std::ssize(sequence.tokens));
}

int64_t Engine::Impl::import_pages(const BlockScope& scope, const KvSequence& sequence,
                                   size_t which, int64_t first, std::span<const std::byte> pages) {
  if (!takes(scope, sequence, which)) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "kept pages: expected those of this model, adapter, cache_salt, KV cache type and "
         "build, got others");
  }
  check_token_ids("engine", "kept pages", sequence.tokens, vocab_);
  const auto size = static_cast<size_t>(sequence.page_bytes);
  const auto n = static_cast<int64_t>(pages.size() / size);
  QW_CHECK(pages.size() % size == 0 && first >= 0 && first + n <= sequence.n_pages);
  const int64_t end =
      std::min<int64_t>(std::ssize(sequence.tokens), (first + n) * scheduler_->page_tokens());
  return scheduler_->import_blocks(
      scope, std::span(sequence.tokens).first(static_cast<size_t>(end)), first,
      [&](int32_t page, int64_t block) {
        kv_->write_page(page, pages.subspan(static_cast<size_t>(block - first) * size, size));
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
