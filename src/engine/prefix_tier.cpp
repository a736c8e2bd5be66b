#include "engine/prefix_tier.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "base/program_identity.h"

namespace qw {

namespace {

/// Copied for the store in one step, while others wait for it.
constexpr int64_t kStepBytes = int64_t{16} << 20;

/// A block's time of use is so much before that of the block before it, in nanoseconds.
constexpr int64_t kBefore = 1000;

/// The minute that it is: a block that is used again within it has its mark already, and the blocks
/// of a chain stay in order whichever of them had theirs.
int64_t now() {
  const auto since_1970 = std::chrono::system_clock::now().time_since_epoch();
  const auto minute = std::chrono::duration_cast<std::chrono::minutes>(since_1970);
  return std::chrono::nanoseconds(minute).count();
}

}  // namespace

std::optional<KvName> kv_root_of(const Model& model, const KvCache& kv, const BlockScope& scope,
                                 size_t which) {
  const std::string weights = model.content_name(-1, which);
  const std::string own = scope.adapter < 0 ? "none" : model.content_name(scope.adapter, which);
  if (weights.empty() || own.empty()) return std::nullopt;
  std::string facts =
      fmt::format("weights {}\nadapter {}\nlayout {}\nnumerics {}\nprogram {}\n", weights, own,
                  kv.layout_name(), model.backend().numerics(), program_identity());
  if (scope.is_salted()) facts += fmt::format("salt {}\n", to_hex(scope.salt));
  return kv_root_name(facts);
}

PrefixTier::PrefixTier(std::shared_ptr<PrefixStore> store, size_t which, const Model& model,
                       KvCache& kv, Scheduler& scheduler, int64_t chunk_tokens)
    : store_(std::move(store)),
      which_(which),
      model_(model),
      kv_(kv),
      scheduler_(scheduler),
      page_tokens_(scheduler.page_tokens()),
      blocks_per_step_(std::max<int64_t>(chunk_tokens / page_tokens_, 1)),
      names_(static_cast<size_t>(scheduler.n_pages())) {
  scheduler_.pool().note_published();
}

PrefixTier::~PrefixTier() {
  try {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point end = Clock::now() + kEnd;
    name_published();
    for (; !to_keep_.empty() && Clock::now() < end; to_keep_.pop_front()) {
      while (!store_->has_room(kv_.page_bytes()) && Clock::now() < end)
        store_->wait_for_progress(store_->progress(), kWaitMs);
      keep(to_keep_.front());
    }
    store_->end_read();
    store_->flush(std::chrono::ceil<std::chrono::milliseconds>(
        std::max(end - Clock::now(), Clock::duration::zero())));
  } catch (...) {
    // Nothing is lost but time.
  }
}

// ---- reading -----------------------------------------------------------------------------------

std::vector<KvName> PrefixTier::names_of(const BlockScope& scope,
                                         std::span<const int32_t> blocks) const {
  std::vector<KvName> names;
  const std::optional<KvName> root = kv_root_of(model_, kv_, scope, which_);
  if (!root) return names;
  const auto size = static_cast<size_t>(page_tokens_);
  for (; blocks.size() >= size; blocks = blocks.subspan(size))
    names.push_back(kv_block_name(names.empty() ? *root : names.back(), blocks.first(size)));
  return names;
}

int64_t PrefixTier::n_in_memory(const Lookup& lookup) const {
  return scheduler_.n_kept_tokens(lookup.scope, lookup.tokens) / page_tokens_;
}

bool PrefixTier::enter(RequestId id, const BlockScope& scope, std::span<const int32_t> prompt) {
  // The last token is computed in any case: its logits are wanted.
  const int64_t n_blocks = (std::ssize(prompt) - 1) / page_tokens_;
  if (n_blocks <= 0) return false;
  prompt = prompt.first(static_cast<size_t>(n_blocks * page_tokens_));
  Lookup lookup{id, scope, {prompt.begin(), prompt.end()}, names_of(scope, prompt)};
  if (lookup.names.empty()) return false;
  note_use(lookup);
  const int64_t n_known = n_in_memory(lookup);
  if (n_known == n_blocks) return false;
  stats_.n_queried_tokens += (n_blocks - n_known) * page_tokens_;
  if (!store_->contains(lookup.names[static_cast<size_t>(n_known)])) return false;
  waiting_.push_back(std::move(lookup));
  return true;
}

/// What is used from memory is used: on disk it is to stay as long.
void PrefixTier::note_use(const Lookup& lookup) {
  const PagePool::Prefix kept = scheduler_.kept_prefix(lookup.scope, lookup.tokens);
  int64_t used = now();
  for (size_t i = 0; i < static_cast<size_t>(kept.n_tokens / page_tokens_); ++i, used -= kBefore) {
    names_[static_cast<size_t>(kept.pages[i])].used = used;
    store_->touch(lookup.names[i], used);
  }
}

void PrefixTier::leave(RequestId id) {
  const auto it = std::ranges::find(waiting_, id, &Lookup::id);
  if (it == waiting_.end()) return;
  if (it == waiting_.begin() && std::exchange(reading_, false)) store_->end_read();
  waiting_.erase(it);
}

std::vector<RequestId> PrefixTier::take_ready(bool others_wait) {
  seen_ = store_->progress();
  std::vector<RequestId> ready;
  while (!waiting_.empty()) {
    const Lookup& lookup = waiting_.front();
    const int64_t most = others_wait ? blocks_per_step_ : std::ssize(lookup.names);
    const bool goes_on = reading_ ? import(lookup, most) : begin_read(lookup);
    if (goes_on) break;
    if (std::exchange(reading_, false)) store_->end_read();
    ready.push_back(lookup.id);
    waiting_.pop_front();
  }
  return ready;
}

/// False: there is nothing to read (what was missing has come to memory meanwhile, or has gone).
bool PrefixTier::begin_read(const Lookup& lookup) {
  const auto size = static_cast<size_t>(page_tokens_);
  std::vector<PrefixStore::Block> blocks;
  next_block_ = n_in_memory(lookup);
  const int64_t time = now();
  for (auto i = static_cast<size_t>(next_block_); i < lookup.names.size(); ++i) {
    const auto tokens = std::span(lookup.tokens).subspan(i * size, size);
    blocks.push_back({lookup.names[i],
                      time - static_cast<int64_t>(i) * kBefore,
                      {tokens.begin(), tokens.end()}});
  }
  if (blocks.empty()) return false;
  store_->begin_read(std::move(blocks), kv_.page_bytes());
  reading_ = true;
  return true;
}

/// False: all has come that will.
bool PrefixTier::import(const Lookup& lookup, int64_t most) {
  const std::vector<PrefixStore::Pages> blocks = store_->take_read(most);
  if (!blocks.empty()) {
    const int64_t first = std::exchange(next_block_, next_block_ + std::ssize(blocks));
    const auto end = static_cast<size_t>(next_block_);
    const int64_t kept = scheduler_.import_blocks(
        lookup.scope, std::span(lookup.tokens).first(end * static_cast<size_t>(page_tokens_)),
        first, [&](int32_t page, int64_t block) {
          kv_.write_page(page, blocks[static_cast<size_t>(block - first)].bytes);
        });
    stats_.n_hit_tokens += std::max<int64_t>(kept - first * page_tokens_, 0);
    if (kept < next_block_ * page_tokens_) return false;  // memory is short
  }
  return !store_->read_ended();
}

// ---- writing -----------------------------------------------------------------------------------

/// Gives blocks that were published their names. To be called before pages are taken again.
void PrefixTier::name_published() {
  for (const PagePool::Published& block : scheduler_.pool().take_published()) {
    const std::span<const int32_t> tokens = scheduler_.pool().tokens_of(block.page);
    if (scheduler_.pool().block_serial(block.page) != block.serial) continue;
    Named named{block.serial, {}, now()};
    if (block.parent == PrefixIndex::kNone) {
      const std::optional<KvName> root = kv_root_of(model_, kv_, block.scope, which_);
      if (!root) continue;
      named.name = kv_block_name(*root, tokens);
    } else {
      const Named& parent = names_[static_cast<size_t>(block.parent)];
      if (parent.serial != block.parent_serial) continue;
      named.name = kv_block_name(parent.name, tokens);
      named.used = parent.used - kBefore;
    }
    names_[static_cast<size_t>(block.page)] = named;
    to_keep_.push_back({block.page, block.serial});
  }
}

/// Where the store has lost all files, those of the blocks in memory are written once more: later
/// ones of their chains are of no use without them.
void PrefixTier::keep_again() {
  if (const int64_t seen = store_->stats().n_restored; std::exchange(n_restored_, seen) == seen)
    return;
  for (size_t page = 0; page < names_.size(); ++page) {
    const uint64_t serial = names_[page].serial;
    if (serial != 0 && scheduler_.pool().block_serial(static_cast<int32_t>(page)) == serial)
      to_keep_.push_back({static_cast<int32_t>(page), serial});
  }
}

void PrefixTier::keep_published(bool others_wait) {
  name_published();
  keep_again();
  int64_t bytes = 0;
  while (!to_keep_.empty()) {
    const int64_t page_bytes = kv_.page_bytes();
    if (others_wait && bytes > 0 && bytes + page_bytes > kStepBytes) return;
    if (!store_->has_room(page_bytes)) break;
    bytes += page_bytes;
    keep(to_keep_.front());
    to_keep_.pop_front();
  }
  // Where the disk is slower than what comes, those that are in memory no longer make way.
  while (std::ssize(to_keep_) > 2 * scheduler_.n_pages()) {
    to_keep_.pop_front();
    ++stats_.n_dropped_blocks;
  }
}

void PrefixTier::keep(const ToKeep& block) {
  if (scheduler_.pool().block_serial(block.page) != block.serial) {
    ++stats_.n_dropped_blocks;
    return;
  }
  const Named& named = names_[static_cast<size_t>(block.page)];
  if (store_->contains(named.name)) return store_->touch(named.name, named.used);
  const std::span<const int32_t> tokens = scheduler_.pool().tokens_of(block.page);
  const auto size = static_cast<size_t>(kv_.page_bytes());
  PrefixStore::Pages pages{std::make_unique_for_overwrite<std::byte[]>(size), {}};
  kv_.read_page(block.page, {pages.memory.get(), size});
  pages.bytes = {pages.memory.get(), size};
  store_->put({named.name, named.used, {tokens.begin(), tokens.end()}}, std::move(pages));
}

}  // namespace qw
