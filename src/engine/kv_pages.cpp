#include "engine/kv_pages.h"

#include <algorithm>

#include "base/error.h"

namespace qw {

PagePool::PagePool(int64_t n_pages, int page_tokens, bool keeps_blocks)
    : references_(static_cast<size_t>(n_pages), 0) {
  empty_.reserve(references_.size());
  for (int64_t page = n_pages - 1; page >= 0; --page)
    empty_.push_back(static_cast<int32_t>(page));
  if (!keeps_blocks) return;
  index_.emplace(n_pages, page_tokens);
  const auto ring = static_cast<int32_t>(n_pages);
  links_.assign(references_.size() + 1, Link{ring, ring});
}

std::optional<int32_t> PagePool::allocate() {
  int32_t page = 0;
  if (!empty_.empty()) {
    page = empty_.back();
    empty_.pop_back();
  } else if (n_unused_ > 0) {
    page = links_.back().after;
    remove_unused(page);
    index_->erase(page);
  } else {
    return std::nullopt;
  }
  references_[static_cast<size_t>(page)] = 1;
  return page;
}

void PagePool::drop_unused_blocks() {
  while (n_unused_ > 0)
    drop_unused_block(links_.back().after);
}

void PagePool::drop_unused_block(int32_t page) {
  QW_CHECK(!is_in_use(page) && has_block(page), "page {} holds no unused block", page);
  remove_unused(page);
  index_->erase(page);
  empty_.push_back(page);
}

void PagePool::retain(int32_t page) {
  int32_t& count = references_.at(static_cast<size_t>(page));
  if (count == 0) {
    QW_CHECK(has_block(page), "page {} is free", page);
    remove_unused(page);
  }
  ++count;
}

void PagePool::release(int32_t page) {
  int32_t& count = references_.at(static_cast<size_t>(page));
  QW_CHECK(count > 0, "page {} is free", page);
  if (--count > 0) return;
  if (has_block(page)) {
    append_unused(page);
  } else {
    empty_.push_back(page);
  }
}

void PagePool::append_unused(int32_t page) {
  const auto ring = static_cast<int32_t>(n_pages());
  const int32_t last = links_.back().before;
  links_[static_cast<size_t>(page)] = {last, ring};
  links_[static_cast<size_t>(last)].after = page;
  links_.back().before = page;
  ++n_unused_;
}

void PagePool::remove_unused(int32_t page) {
  const Link link = links_[static_cast<size_t>(page)];
  links_[static_cast<size_t>(link.before)].after = link.after;
  links_[static_cast<size_t>(link.after)].before = link.before;
  --n_unused_;
}

// ---- blocks ------------------------------------------------------------------------------------

int32_t PagePool::publish(int32_t page, int32_t parent, const BlockScope& scope,
                          std::span<const int32_t> tokens) {
  QW_CHECK(keeps_blocks() && is_in_use(page));
  if (std::ssize(tokens) == index_->page_tokens()) {
    const int32_t same = index_->find(parent, scope, tokens);
    if (same != PrefixIndex::kNone) {
      retain(same);
      release(page);
      return same;
    }
  }
  const PrefixIndex::Tail known = index_->find_tail(parent, scope, tokens);
  if (known.n_tokens == std::ssize(tokens)) return page;
  index_->insert(page, parent, scope, tokens);
  // A part of what the page holds now would be kept twice: who begins with it finds it here.
  if (known.n_tokens > 0 && known.n_tokens == block_tokens(known.page) && !is_in_use(known.page))
    drop_unused_block(known.page);
  if (notes_published_ && std::ssize(tokens) == index_->page_tokens())
    published_.push_back({page, parent, scope, index_->serial_of(page), index_->serial_of(parent)});
  return page;
}

void PagePool::unpublish(int32_t page) {
  QW_CHECK(references(page) == 1, "page {} has {} holders", page, references(page));
  index_->erase(page);
}

PagePool::Prefix PagePool::find_prefix(const BlockScope& scope,
                                       std::span<const int32_t> tokens) const {
  Prefix found;
  if (!keeps_blocks()) return found;
  const auto block = static_cast<size_t>(index_->page_tokens());
  int32_t last = PrefixIndex::kNone;
  while (tokens.size() >= block) {
    const int32_t page = index_->find(last, scope, tokens.first(block));
    if (page == PrefixIndex::kNone) break;
    found.pages.push_back(page);
    found.n_tokens += static_cast<int64_t>(block);
    tokens = tokens.subspan(block);
    last = page;
  }
  const PrefixIndex::Tail tail = index_->find_tail(last, scope, tokens);
  if (tail.n_tokens > 0) {
    found.pages.push_back(tail.page);
    found.n_tokens += tail.n_tokens;
  }
  return found;
}

void PagePool::check_integrity(std::span<const int32_t> held) const {
  std::vector<int32_t> count(references_.size(), 0);
  for (const int32_t page : held)
    ++count.at(static_cast<size_t>(page));
  for (size_t page = 0; page < count.size(); ++page) {
    QW_CHECK(count[page] == references_[page], "page {}: {} holders, {} references", page,
             count[page], references_[page]);
  }
  std::vector<bool> seen(references_.size(), false);
  const auto see = [&](int32_t page, std::string_view where) {
    QW_CHECK(!seen[static_cast<size_t>(page)], "page {} is {} twice", page, where);
    QW_CHECK(count[static_cast<size_t>(page)] == 0, "page {} is {} and held", page, where);
    seen[static_cast<size_t>(page)] = true;
  };
  for (const int32_t page : empty_) {
    see(page, "empty");
    QW_CHECK(!has_block(page), "page {} is empty and holds a block", page);
  }
  int64_t n_unused = 0;
  if (keeps_blocks()) {
    const auto ring = static_cast<int32_t>(n_pages());
    for (int32_t page = links_.back().after; page != ring;
         page = links_[static_cast<size_t>(page)].after) {
      see(page, "an unused block");
      QW_CHECK(has_block(page), "page {} is listed without a block", page);
      ++n_unused;
    }
  }
  QW_CHECK(n_unused == n_unused_, "{} unused blocks, {} counted", n_unused, n_unused_);
  int64_t n_blocks = 0;
  for (size_t page = 0; page < count.size(); ++page) {
    QW_CHECK(count[page] > 0 || seen[page], "page {} is lost", page);
    n_blocks += has_block(static_cast<int32_t>(page)) ? 1 : 0;
  }
  QW_CHECK(!keeps_blocks() || n_blocks == index_->size(), "{} blocks, {} counted", n_blocks,
           index_->size());
}

}  // namespace qw
