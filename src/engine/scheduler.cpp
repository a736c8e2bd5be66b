#include "engine/scheduler.h"

#include <algorithm>
#include <set>

#include "base/checked.h"
#include "base/error.h"

namespace qw {

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options),
      pool_(options.n_pages, options.page_tokens,
            options.keep_prefixes && !options.rope_follows_length) {
  QW_CHECK(options.page_tokens > 0 && options.max_tokens > 0 && options.max_families > 0 &&
           options.max_rows > 0);
}

int64_t Scheduler::pages_for(int64_t n_tokens) const {
  return ceil_div<int64_t>(n_tokens, options_.page_tokens);
}

int64_t Scheduler::pages_at_worst(int64_t prompt_len, int64_t max_len, int64_t width) const {
  // Full pages of the prompt stay shared; everything after them may differ in every fork. The last
  // token of the prompt is computed by each fork, so the page it lies in is not shared either.
  const int64_t shared = std::max<int64_t>(prompt_len - 1, 0) / options_.page_tokens;
  return shared + width * (pages_for(max_len) - shared);
}

// ---- sequences and units -----------------------------------------------------------------------

UnitId Scheduler::add_unit(int64_t family, const Turn& turn) {
  const UnitId id = next_unit_++;
  units_[id].family = family;
  Family& own = families_[family];
  if (own.units.empty()) queue_.enter(family, turn);
  own.units.push_back(id);
  if (own.order) waiting_.insert({*own.order, id});
  return id;
}

SeqId Scheduler::add_sequence(UnitId unit, Sequence spec) {
  QW_CHECK(!spec.tokens.empty());
  spec.id = next_seq_++;
  spec.unit = unit;
  spec.n_computed = 0;
  spec.pages.clear();
  unit_at(unit).sequences.push_back(spec.id);
  const SeqId id = spec.id;
  lineages_[spec.lineage].push_back(id);
  sequences_.emplace(id, std::move(spec));
  return id;
}

SeqId Scheduler::fork(SeqId parent) {
  Sequence child = at(parent);
  child.id = next_seq_++;
  for (const int32_t page : child.pages)
    pool_.retain(page);
  unit_at(child.unit).sequences.push_back(child.id);
  const SeqId id = child.id;
  lineages_[child.lineage].push_back(id);
  sequences_.emplace(id, std::move(child));
  return id;
}

void Scheduler::append(SeqId id, int32_t token) {
  Sequence& sequence = at(id);
  const bool is_computed =
      sequence.n_pending() == 0 && !sequence.draft.empty() && sequence.draft.front() == token;
  sequence.tokens.push_back(token);
  if (!is_computed) return drop_draft(sequence);
  sequence.draft.erase(sequence.draft.begin());
  ++sequence.n_computed;
  queue_.take(unit_at(sequence.unit).family, 1);
  if (pool_.keeps_blocks()) publish_blocks({id, sequence.n_computed - 1, sequence.n_computed});
}

void Scheduler::set_draft(SeqId id, std::vector<int32_t> draft) {
  Sequence& sequence = at(id);
  QW_CHECK(sequence.n_pending() == 1 && sequence.draft.empty());
  sequence.draft = std::move(draft);
}

/// Forgets guesses that came to nothing; keys and values written for them are written over.
void Scheduler::drop_draft(Sequence& sequence) {
  if (sequence.draft.empty()) return;
  sequence.draft.clear();
  trim_pages(sequence);
}

/// Gives back the pages beyond the tokens that are computed.
void Scheduler::trim_pages(Sequence& sequence) {
  while (static_cast<int64_t>(sequence.pages.size()) > pages_for(sequence.n_computed)) {
    pool_.release(sequence.pages.back());
    sequence.pages.pop_back();
  }
}

void Scheduler::replace_tokens(SeqId id, std::span<const int32_t> tokens) {
  Sequence& sequence = at(id);
  QW_CHECK(!tokens.empty() && !sequence.under_way);
  sequence.draft.clear();
  const auto [old, parting] =
      std::mismatch(sequence.tokens.begin(), sequence.tokens.end(), tokens.begin(), tokens.end());
  const int64_t common = parting - tokens.begin();
  sequence.tokens.erase(old, sequence.tokens.end());
  sequence.tokens.insert(sequence.tokens.end(), parting, tokens.end());
  sequence.n_computed = std::min({sequence.n_computed, common, sequence.size() - 1});
  trim_pages(sequence);
}

void Scheduler::remove_sequence(SeqId id) {
  Sequence& sequence = at(id);
  drop_pages(sequence);
  std::erase(unit_at(sequence.unit).sequences, id);
  const auto lineage = lineages_.find(sequence.lineage);
  std::erase(lineage->second, id);
  if (lineage->second.empty()) lineages_.erase(lineage);
  sequences_.erase(id);
}

void Scheduler::remove_unit(UnitId id) {
  const std::vector<SeqId> members = unit_at(id).sequences;
  for (const SeqId seq : members) {
    publish_tail(at(seq));
    remove_sequence(seq);
  }
  if (unit_at(id).running) stop(id);
  const auto family = families_.find(unit_at(id).family);
  if (family->second.order) waiting_.erase(place_of(id));
  std::erase(family->second.units, id);
  if (family->second.units.empty()) {
    queue_.leave(family->first);
    families_.erase(family);
  }
  units_.erase(id);
}

/// Of a unit whose family has had its turn.
Scheduler::Place Scheduler::place_of(UnitId id) const {
  return {*families_.at(unit_at(id).family).order, id};
}

Sequence& Scheduler::at(SeqId id) {
  const auto it = sequences_.find(id);
  QW_CHECK(it != sequences_.end(), "no sequence {}", id);
  return it->second;
}

const Sequence& Scheduler::sequence(SeqId id) const {
  const auto it = sequences_.find(id);
  QW_CHECK(it != sequences_.end(), "no sequence {}", id);
  return it->second;
}

void Scheduler::drop_pages(Sequence& sequence) {
  // The last first: of the blocks of a sequence that nobody uses, the end is to make room first.
  for (auto page = sequence.pages.rbegin(); page != sequence.pages.rend(); ++page)
    pool_.release(*page);
  sequence.pages.clear();
  sequence.draft.clear();
  sequence.n_computed = 0;
  sequence.under_way = false;
}

Scheduler::Demand Scheduler::demand() const {
  Demand out;
  const auto add = [&](const Unit& unit) {
    for (const SeqId seq : unit.sequences) {
      const int64_t n = sequences_.at(seq).n_pending();
      out.n_tokens += n;
      out.n_sequences += n > 0 ? 1 : 0;
    }
  };
  for (const Place& place : running_)
    add(unit_at(place.id));
  int64_t n_places = options_.max_families - n_families_running_;
  // Whichever of them start, so many do.
  for (const Waiting& waiting : first_in_line(std::ssize(waiting_) + n_places)) {
    const Unit& unit = unit_at(waiting.id);
    if (families_.at(unit.family).n_running == 0 && n_places-- <= 0) break;
    if (!has_pages_for(unit)) break;
    add(unit);
  }
  return out;
}

int64_t Scheduler::n_guesses_that_fit(const Demand& demand) const noexcept {
  return std::max<int64_t>(
      std::min(options_.max_tokens - demand.n_tokens, options_.max_rows - demand.n_sequences), 0);
}

// ---- one step ----------------------------------------------------------------------------------

StepPlan Scheduler::schedule() {
  StepPlan step;
  Budget budget{options_.max_tokens, options_.max_rows};
  // Ids first: preempting changes flags of later units, never the map.
  std::vector<UnitId> ids;
  for (const Place& place : running_)
    ids.push_back(place.id);
  for (const UnitId id : ids)
    schedule_unit(id, false, step, budget);
  for (const UnitId id : ids)
    schedule_unit(id, true, step, budget);
  admit(step, budget);
  extend_by_drafts(step, budget);

  for (const StepPlan::Chunk& chunk : step.chunks) {
    append_chunk(at(chunk.seq), chunk.begin, chunk.end, options_, step);
  }
  if (!step.batch.tokens.empty()) {
    step.batch.seq_begin.push_back(static_cast<int32_t>(step.batch.n_tokens()));
    step.batch.page_begin.push_back(static_cast<int32_t>(step.batch.pages.size()));
  }
  return step;
}

/// Schedules the sequences of a running unit that decode (one token pending) or that prefill.
void Scheduler::schedule_unit(UnitId id, bool prefill, StepPlan& step, Budget& budget) {
  for (const SeqId seq : unit_at(id).sequences) {
    if (!unit_at(id).running) return;  // not admitted, or preempted just now
    Sequence& sequence = at(seq);
    const bool decodes = sequence.n_pending() == 1 && sequence.n_computed > 0;
    if (sequence.n_pending() == 0 || decodes == prefill) continue;
    const bool placed = std::any_of(step.chunks.begin(), step.chunks.end(),
                                    [&](const StepPlan::Chunk& chunk) { return chunk.seq == seq; });
    if (placed) continue;  // a sequence made warm by sharing in this very step
    if (sequence.pages.empty() && !share_prefix(sequence)) continue;
    schedule_sequence(sequence, sequence.n_pending(), step, budget);
  }
}

void Scheduler::schedule_sequence(Sequence& sequence, int64_t n_tokens, StepPlan& step,
                                  Budget& budget) {
  const int64_t begin = sequence.n_computed;
  int64_t n = std::min(n_tokens, budget.tokens);
  // So many tokens yield no row.
  const int64_t unasked =
      std::max<int64_t>(std::min(sequence.logits_from, sequence.size() - 1) - begin, 0);
  n = std::min(n, unasked + budget.rows);
  if (n <= 0) return;
  // Perhaps fewer than wanted, when pages are short even after preempting everything younger.
  n = reserve(sequence, begin + n, step) - begin;
  if (n <= 0) return;
  step.chunks.push_back({sequence.id, begin, begin + n});
  sequence.under_way = true;
  budget.tokens -= n;
  budget.rows -= std::max<int64_t>(n - unasked, 0);
}

/// Lets the chunks that decode go on into their drafts, with what the budget has left and without
/// taking pages from anyone.
void Scheduler::extend_by_drafts(StepPlan& step, Budget& budget) {
  for (StepPlan::Chunk& chunk : step.chunks) {
    Sequence& sequence = at(chunk.seq);
    if (sequence.draft.empty()) continue;
    int64_t n = std::max<int64_t>(std::min({sequence.n_draft(), budget.tokens, budget.rows}), 0);
    while (static_cast<int64_t>(sequence.pages.size()) < pages_for(chunk.end + n)) {
      if (const std::optional<int32_t> page = pool_.allocate()) {
        sequence.pages.push_back(*page);
      } else {
        n = static_cast<int64_t>(sequence.pages.size()) * options_.page_tokens - chunk.end;
      }
    }
    sequence.draft.resize(static_cast<size_t>(n));
    chunk.end += n;
    budget.tokens -= n;
    budget.rows -= n;
  }
}

/// Takes pages, so that the positions from n_computed on can be written without harm to others.
/// Returns where they end: `end`, or less when pages are short.
int64_t Scheduler::reserve(Sequence& sequence, int64_t end, StepPlan& step) {
  const auto first = static_cast<size_t>(sequence.n_computed / options_.page_tokens);
  const auto used = static_cast<int>(sequence.n_computed % options_.page_tokens);
  if (first < sequence.pages.size() && !make_writable(sequence, first, used, step))
    return sequence.n_computed;
  while (static_cast<int64_t>(sequence.pages.size()) < pages_for(end)) {
    const std::optional<int32_t> page = allocate_or_preempt(sequence.unit, step);
    if (!page) break;
    sequence.pages.push_back(*page);
  }
  return std::min(end, static_cast<int64_t>(sequence.pages.size()) * options_.page_tokens);
}

/// Sees to it that the sequence may write to its page after the first `used` tokens; false when
/// there is no page for a copy.
bool Scheduler::make_writable(Sequence& sequence, size_t page, int used, StepPlan& step) {
  const int32_t old = sequence.pages[page];
  if (pool_.is_writable(old)) return true;
  // A kept block without another holder is written over only where a copy would cost a page that is
  // not there: others who begin alike, and come while this sequence is under way, find it still.
  if (!pool_.is_shared(old) && pool_.n_free() == 0) {
    pool_.unpublish(old);
    return true;
  }
  const std::optional<int32_t> own = allocate_or_preempt(sequence.unit, step);
  if (!own) return false;
  if (used > 0) step.copies.push_back({sequence.id, old, *own, used});
  pool_.release(old);
  sequence.pages[page] = *own;
  return true;
}

/// A free page, taken from the last running unit in line if need be; nothing when only units before
/// `for_unit` and itself hold any.
std::optional<int32_t> Scheduler::allocate_or_preempt(UnitId for_unit, StepPlan& step) {
  while (true) {
    if (const std::optional<int32_t> page = pool_.allocate()) return page;
    const std::optional<UnitId> victim = last_running();
    if (!victim || place_of(*victim) <= place_of(for_unit)) return std::nullopt;
    preempt(*victim, step);
  }
}

std::optional<UnitId> Scheduler::last_running() const {
  if (running_.empty()) return std::nullopt;
  return running_.rbegin()->id;
}

/// Moves a unit between those that wait and those that run.
void Scheduler::start(UnitId id) {
  unit_at(id).running = true;
  waiting_.erase(place_of(id));
  running_.insert(place_of(id));
  if (family_of(id).n_running++ == 0) ++n_families_running_;
}

void Scheduler::stop(UnitId id) {
  unit_at(id).running = false;
  running_.erase(place_of(id));
  waiting_.insert(place_of(id));
  if (--family_of(id).n_running == 0) --n_families_running_;
}

void Scheduler::preempt(UnitId id, StepPlan& step) {
  const Unit& unit = unit_at(id);
  stop(id);
  ++n_preemptions_;
  for (const SeqId seq : unit.sequences) {
    publish_tail(at(seq));
    drop_pages(at(seq));
    std::erase_if(step.chunks, [seq](const StepPlan::Chunk& chunk) { return chunk.seq == seq; });
    std::erase_if(step.copies, [seq](const StepPlan::Copy& copy) { return copy.seq == seq; });
  }
}

/// Lets a sequence without pages start with pages that hold its first tokens. False: better wait.
bool Scheduler::share_prefix(Sequence& sequence) {
  Sharable sharable = find_sharable(sequence);
  if (sharable.wait) return false;
  sequence.pages = std::move(sharable.prefix.pages);
  for (const int32_t page : sequence.pages)
    pool_.retain(page);
  sequence.n_computed = sharable.prefix.n_tokens;
  return true;
}

int64_t Scheduler::hold(const BlockScope& scope, std::span<const int32_t> tokens) {
  PagePool::Prefix kept = pool_.find_prefix(scope, tokens);
  const int64_t id = next_hold_++;
  const auto& held = holds_.emplace(id, std::move(kept)).first->second;
  for (const int32_t page : held.pages)
    pool_.retain(page);
  return id;
}

const PagePool::Prefix* Scheduler::held(int64_t id) const {
  const auto it = holds_.find(id);
  return it == holds_.end() ? nullptr : &it->second;
}

void Scheduler::let_go(int64_t id) {
  const auto it = holds_.find(id);
  if (it == holds_.end()) return;
  // The last first, as in drop_pages().
  for (auto page = it->second.pages.rbegin(); page != it->second.pages.rend(); ++page)
    pool_.release(*page);
  holds_.erase(it);
}

bool Scheduler::holds_pages() const {
  return std::ranges::any_of(holds_, [](const auto& hold) { return !hold.second.pages.empty(); });
}

int64_t Scheduler::import_blocks(const BlockScope& scope, std::span<const int32_t> tokens,
                                 int64_t first,
                                 FunctionRef<void(int32_t page, int64_t block)> fill) {
  if (!pool_.keeps_blocks()) return 0;
  const auto size = static_cast<size_t>(options_.page_tokens);
  const PagePool::Prefix kept = pool_.find_prefix(scope, tokens);
  const int64_t n_full = kept.n_tokens / options_.page_tokens;
  if (n_full < first || kept.n_tokens == std::ssize(tokens)) return kept.n_tokens;
  // Held while others are taken, which could be these; and let go whatever `fill` throws.
  struct Chain {
    PagePool& pool;
    std::vector<int32_t> pages;
    ~Chain() {
      for (; !pages.empty(); pages.pop_back())
        pool.release(pages.back());
    }
  } chain{pool_, {kept.pages.begin(), kept.pages.begin() + n_full}};
  for (const int32_t page : chain.pages)
    pool_.retain(page);
  for (size_t at = chain.pages.size() * size; at < tokens.size(); at = chain.pages.size() * size) {
    const std::optional<int32_t> page = pool_.allocate();
    if (!page) break;
    const int32_t parent = chain.pages.empty() ? PrefixIndex::kNone : chain.pages.back();
    chain.pages.push_back(*page);
    fill(*page, std::ssize(chain.pages) - 1);
    chain.pages.back() =
        pool_.publish(*page, parent, scope, tokens.subspan(at, std::min(size, tokens.size() - at)));
  }
  return std::min<int64_t>(std::ssize(tokens), std::ssize(chain.pages) * options_.page_tokens);
}

void Scheduler::commit(const StepPlan& step) {
  for (const StepPlan::Chunk& chunk : step.chunks) {
    Sequence& sequence = at(chunk.seq);
    sequence.n_computed = std::min(chunk.end, sequence.size());  // a draft must first prove right
    queue_.take(unit_at(sequence.unit).family, sequence.n_computed - chunk.begin);
    sequence.under_way = false;
    if (pool_.keeps_blocks()) publish_blocks({chunk.seq, chunk.begin, sequence.n_computed});
  }
}

void Scheduler::abandon(const StepPlan& step) {
  for (const StepPlan::Chunk& chunk : step.chunks) {
    if (has_sequence(chunk.seq)) at(chunk.seq).under_way = false;
  }
}

/// Publishes the pages that a chunk has filled: only now are their keys and values written. Where
/// another page holds the same block, the sequence goes on with that one.
void Scheduler::publish_blocks(const StepPlan::Chunk& chunk) {
  Sequence& sequence = at(chunk.seq);
  const auto size = static_cast<size_t>(options_.page_tokens);
  const size_t end = static_cast<size_t>(chunk.end) / size;
  for (size_t i = static_cast<size_t>(chunk.begin) / size; i < end; ++i) {
    const int32_t parent = i == 0 ? PrefixIndex::kNone : sequence.pages[i - 1];
    sequence.pages[i] = pool_.publish(sequence.pages[i], parent, sequence.scope(),
                                      std::span(sequence.tokens).subspan(i * size, size));
  }
}

/// Publishes the last page of a sequence that is about to go, as far as it is filled.
void Scheduler::publish_tail(const Sequence& sequence) {
  const auto size = static_cast<size_t>(options_.page_tokens);
  const auto full = static_cast<size_t>(sequence.n_computed) / size;
  const auto used = static_cast<size_t>(sequence.n_computed) % size;
  // A step under way may not have written the page yet: not even the copy that it starts with.
  if (!pool_.keeps_blocks() || used == 0 || sequence.under_way) return;
  if (!pool_.is_writable(sequence.pages[full])) return;
  const int32_t parent = full == 0 ? PrefixIndex::kNone : sequence.pages[full - 1];
  pool_.publish(sequence.pages[full], parent, sequence.scope(),
                std::span(sequence.tokens).subspan(full * size, used));
}

// ---- the batch ---------------------------------------------------------------------------------

void Scheduler::append_chunk(const Sequence& sequence, int64_t begin, int64_t end,
                             const SchedulerOptions& options, StepPlan& step) {
  BatchPlan& batch = step.batch;
  for (int64_t entry = begin; entry < end;) {
    // The prompt is one entry (its rotation follows the whole prompt's length); what was decoded
    // is one entry, or one per token where each had a length of its own.
    const bool in_prompt = entry < sequence.prompt_len;
    const int64_t decoded_end = options.rope_follows_length ? entry + 1 : end;
    const int64_t entry_end = in_prompt ? std::min(end, sequence.prompt_len) : decoded_end;
    batch.seq_begin.push_back(static_cast<int32_t>(batch.n_tokens()));
    batch.seq_context.push_back(static_cast<int32_t>(entry_end));
    batch.seq_rope_length.push_back(
        static_cast<int32_t>(in_prompt ? sequence.prompt_len : entry_end));
    batch.adapters.push_back(sequence.adapter);
    batch.page_begin.push_back(static_cast<int32_t>(batch.pages.size()));
    const int64_t n_pages = ceil_div<int64_t>(entry_end, options.page_tokens);
    batch.pages.insert(batch.pages.end(), sequence.pages.begin(), sequence.pages.begin() + n_pages);
    for (int64_t position = entry; position < entry_end; ++position) {
      const auto row = static_cast<int32_t>(batch.n_tokens());
      const int32_t page = sequence.pages[static_cast<size_t>(position / options.page_tokens)];
      batch.tokens.push_back(sequence.token_at(position));
      batch.positions.push_back(static_cast<int32_t>(position));
      batch.slots.push_back(
          static_cast<int32_t>(page * options.page_tokens + position % options.page_tokens));
      if (position < sequence.logits_from && position + 1 < sequence.size()) continue;
      batch.logit_rows.push_back(row);
      step.rows.push_back({sequence.id, position, row});
    }
    entry = entry_end;
  }
}

// ---- pages outside the schedule, and checks ----------------------------------------------------

std::vector<int32_t> Scheduler::take_pages(int64_t n) {
  QW_CHECK(n <= pool_.n_free());
  std::vector<int32_t> pages;
  for (int64_t i = 0; i < n; ++i)
    pages.push_back(*pool_.allocate());
  return pages;
}

void Scheduler::release_pages(std::span<const int32_t> pages) {
  for (const int32_t page : pages)
    pool_.release(page);
}

void Scheduler::check_integrity() const {
  std::vector<int32_t> held;
  for (const auto& [id, hold] : holds_)
    held.insert(held.end(), hold.pages.begin(), hold.pages.end());
  for (const auto& [id, sequence] : sequences_) {
    held.insert(held.end(), sequence.pages.begin(), sequence.pages.end());
    const auto capacity = static_cast<int64_t>(sequence.pages.size()) * options_.page_tokens;
    QW_CHECK(sequence.n_computed <= capacity, "sequence {}: {} tokens in {} places", id,
             sequence.n_computed, capacity);
    QW_CHECK(sequence.n_computed <= sequence.size());
    const std::set<int32_t> distinct(sequence.pages.begin(), sequence.pages.end());
    QW_CHECK(distinct.size() == sequence.pages.size(), "sequence {} holds a page twice", id);
    const Unit& unit = unit_at(sequence.unit);
    QW_CHECK(std::count(unit.sequences.begin(), unit.sequences.end(), id) == 1);
    QW_CHECK(unit.running || sequence.pages.empty(), "sequence {} waits and holds pages", id);
    if (!pool_.keeps_blocks()) continue;
    // Every full page is a block, and together they are the sequence's tokens.
    const int64_t full = sequence.n_computed / options_.page_tokens;
    const PagePool::Prefix blocks = pool_.find_prefix(
        sequence.scope(),
        std::span(sequence.tokens).first(static_cast<size_t>(full * options_.page_tokens)));
    QW_CHECK(std::equal(blocks.pages.begin(), blocks.pages.end(), sequence.pages.begin(),
                        sequence.pages.begin() + full),
             "sequence {} holds pages that do not hold its tokens", id);
  }
  pool_.check_integrity(held);
  int64_t n_waiting = 0, n_running = 0;
  for (const auto& [id, family] : families_) {
    n_running += family.n_running > 0 ? 1 : 0;
    n_waiting += family.order ? std::ssize(family.units) - family.n_running : 0;
  }
  QW_CHECK(n_running == n_families_running_ && n_waiting == std::ssize(waiting_));
  QW_CHECK(queue_.n_open() == std::ssize(families_));
}

}  // namespace qw
