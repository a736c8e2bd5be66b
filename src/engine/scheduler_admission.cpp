// Which unit starts next, and what it can start with.
//
// Level 6 (engine). A part of Scheduler; the steps are in scheduler.cpp.
#include <algorithm>
#include <cmath>

#include "engine/scheduler.h"

namespace qw {
namespace {

int64_t n_common(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

bool Scheduler::has_place_for(const Unit& unit) const {
  return std::ssize(n_running_) < options_.max_families || n_running_.contains(unit.family);
}

bool Scheduler::has_pages_for(const Unit& unit) const {
  // Alone, every unit that was accepted fits, but beside pages that are held.
  if (running_.empty() && !holds_pages()) return true;
  int64_t need = 0;
  for (const SeqId seq : unit.sequences) {
    const Sequence& sequence = sequences_.at(seq);
    const Sharable sharable = find_sharable(sequence);
    need += pages_for(sequence.size() + 1);
    // Full pages that others hold as well cost nothing; kept ones count as free until they are
    // used.
    const auto full = static_cast<size_t>(sharable.prefix.n_tokens / options_.page_tokens);
    for (size_t i = 0; i < full; ++i)
      need -= pool_.is_in_use(sharable.prefix.pages[i]) ? 1 : 0;
  }
  return need <= pool_.n_free();
}

/// How much is gained by starting the unit while its prefix is kept: the tokens that are, over the
/// root of all, which is between the longest prefix first (what is kept is used before it makes
/// room) and the largest part first (what is nearly done goes before what is long). nullopt: more
/// of its tokens are on the way.
std::optional<double> Scheduler::gain_of(const Unit& unit) const {
  double n_kept = 0, n_tokens = 0;
  for (const SeqId seq : unit.sequences) {
    const Sequence& sequence = sequences_.at(seq);
    const Sharable sharable = find_sharable(sequence);
    if (sharable.wait) return std::nullopt;
    n_kept += static_cast<double>(sharable.prefix.n_tokens);
    n_tokens += static_cast<double>(sequence.size());
  }
  return options_.weighs_length ? n_kept / std::sqrt(n_tokens) : n_kept;
}

/// The unit that starts next, if one can. Among the first in line the one that gains most; one
/// that was overtaken often enough lets nobody pass. Where the chosen one finds no pages, all wait
/// with it: a large unit is not kept out by small ones.
std::optional<Scheduler::Place> Scheduler::next_to_admit() const {
  std::optional<Place> best;
  double largest_gain = -1;
  int64_t priority = 0, n_seen = 0;
  for (const Place& place : waiting_) {
    const Unit& unit = units_.at(place);
    if (unit.held) continue;
    if (n_seen == options_.overtake_window) break;
    if (n_seen++ == 0) priority = unit.priority;
    if (unit.priority != priority) break;
    if (has_place_for(unit)) {
      const std::optional<double> gain = gain_of(unit);
      if (gain && *gain > largest_gain) {
        best = place;
        largest_gain = *gain;
      }
    }
    if (unit.n_overtaken >= options_.max_overtakes) break;
  }
  if (!best || !has_pages_for(units_.at(*best))) return std::nullopt;
  return best;
}

void Scheduler::admit(StepPlan& step, Budget& budget) {
  while (budget.tokens > 0) {
    const std::optional<Place> next = next_to_admit();
    if (!next) return;
    for (const Place& passed : waiting_) {
      if (passed == *next) break;
      ++units_.at(passed).n_overtaken;
    }
    start(*next);
    schedule_unit(next->id, true, step, budget);
    schedule_unit(next->id, false, step, budget);
  }
}

Scheduler::Sharable Scheduler::find_sharable(const Sequence& sequence) const {
  const std::span<const int32_t> tokens =
      std::span(sequence.tokens).first(static_cast<size_t>(sequence.n_sharable()));
  Sharable best{pool_.find_prefix(sequence.scope(), tokens), false};
  const int64_t n_kept = best.prefix.n_tokens;
  for (const SeqId id : lineages_.at(sequence.lineage)) {
    const Sequence& other = sequences_.at(id);
    if (id == sequence.id || !unit_at(other.unit).running) continue;
    const int64_t common = n_common(tokens, other.tokens);
    const bool goes_first = !other.pages.empty() || id < sequence.id;
    if (goes_first && other.n_computed < common && n_kept < common) best.wait = true;
    const int64_t shared = std::min(common, other.n_computed);
    if (shared > best.prefix.n_tokens) {
      best.prefix.pages.assign(other.pages.begin(), other.pages.begin() + pages_for(shared));
      best.prefix.n_tokens = shared;
    }
  }
  best.wait = best.wait || is_on_the_way(sequence, tokens, best.prefix.n_tokens);
  return best;
}

/// Whether the step under way computes pages that the sequence could start with, beyond the first
/// `n_kept` tokens.
bool Scheduler::is_on_the_way(const Sequence& sequence, std::span<const int32_t> tokens,
                              int64_t n_kept) const {
  if (!options_.await_prefixes || !pool_.keeps_blocks()) return false;
  for (const Place& place : running_) {
    for (const SeqId id : units_.at(place).sequences) {
      const Sequence& other = sequences_.at(id);
      if (!other.under_way || other.n_pending() < 2 || other.scope() != sequence.scope()) continue;
      if (id == sequence.id || other.lineage == sequence.lineage) continue;
      const int64_t common =
          n_common(tokens, other.tokens) / options_.page_tokens * options_.page_tokens;
      if (common > n_kept && common > other.n_computed) return true;
    }
  }
  return false;
}

}  // namespace qw
