// Which unit starts next, and what it can start with.
//
// Level 6 (engine). A part of Scheduler; the steps are in scheduler.cpp.
#include <algorithm>
#include <cmath>
#include <set>

#include "engine/scheduler.h"

namespace qw {
namespace {

int64_t n_common(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

bool Scheduler::has_place_for(const Unit& unit) const {
  return n_families_running_ < options_.max_families || families_.at(unit.family).n_running > 0;
}

/// Pages that the unit would take from those that are free.
int64_t Scheduler::pages_to_take(const Unit& unit) const {
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
  return need;
}

bool Scheduler::has_pages_for(const Unit& unit) const {
  // Alone, every unit that was accepted fits, but beside pages that are held.
  if (running_.empty() && !holds_pages()) return true;
  return pages_to_take(unit) <= pool_.n_free();
}

/// How much is gained by starting the unit while its prefix is kept: the tokens that are, over the
/// root of all, which is between the longest prefix first (what is kept is used before it makes
/// room) and the largest part first (what is nearly done goes before what is long). Less than a
/// page of them, as all begin alike that one template was put around, is not worth passing others.
/// nullopt: more of its tokens are on the way.
std::optional<Scheduler::Gain> Scheduler::gain_of(const Unit& unit) const {
  int64_t n_kept = 0, n_tokens = 0;
  for (const SeqId seq : unit.sequences) {
    const Sequence& sequence = sequences_.at(seq);
    const Sharable sharable = find_sharable(sequence);
    if (sharable.wait) return std::nullopt;
    n_kept += sharable.prefix.n_tokens;
    n_tokens += sequence.size();
  }
  const auto kept = static_cast<double>(n_kept);
  if (!options_.weighs_length) return Gain{kept, n_kept};
  if (n_kept < options_.page_tokens) return Gain{0, n_kept};
  return Gain{kept / std::sqrt(static_cast<double>(n_tokens)), n_kept};
}

/// The first n units that could start but for place, pages and what is on the way: those whose
/// families have had their turn, and of each other family one.
std::vector<Scheduler::Waiting> Scheduler::first_in_line(int64_t n) const {
  std::vector<Waiting> line;
  for (const Place& place : waiting_) {
    if (std::ssize(line) == n) return line;
    if (!unit_at(place.id).held) line.push_back({place.id, std::nullopt});
  }
  const auto first_free = [this](int64_t family) -> std::optional<UnitId> {
    for (const UnitId id : families_.at(family).units) {
      if (!unit_at(id).held) return id;
    }
    return std::nullopt;
  };
  const std::vector<FairQueue::Place> places = queue_.first(
      n - std::ssize(line), [&](int64_t family) { return first_free(family).has_value(); });
  for (const FairQueue::Place& place : places)
    line.push_back({*first_free(place.id), place});
  return line;
}

/// Whether one request of every client that waits would not fit beside the others. Only then does
/// it matter to what is kept whose turn it is.
bool Scheduler::is_short_of_pages(const std::vector<Waiting>& line) const {
  std::set<int64_t> clients;
  int64_t n_pages = 0;
  for (const Waiting& waiting : line) {
    if (waiting.place && clients.insert(waiting.place->client).second)
      n_pages += pages_to_take(unit_at(waiting.id));
  }
  return n_pages > pool_.n_free();
}

/// Whether it is fair to others that a unit of the line starts.
///
/// A client that has had less than others is due; what starts all the same is out of turn. It saves
/// work where it finds tokens that would otherwise have to be computed again, so its client may be
/// ahead by lead_per_kept times as many, and no further: however often it passes, the lead is all
/// that it gains. Twice, because the first request of a client, which computed them, brought it
/// ahead by once already.
///
/// Where what waits does not fit into the cache side by side, that is not enough: those that are
/// due would come one by one, each of them would find nothing kept, and a machine that many clients
/// keep busy, each with a prefix of its own, would compute those over and over and fall behind.
/// There the order is that of arrival, for a while: a client that is due sees pass_tokens begin out
/// of turn for every other one that waits, and then has its turn.
bool Scheduler::may_start(const std::vector<Waiting>& line, const Waiting& waiting,
                          const Gain& gain, std::optional<bool>& is_short) const {
  if (!waiting.place) return true;  // its family has had its turn
  const int64_t n_worth = gain.rank > 0 ? gain.n_kept : 0;
  if (waiting.place->lead <= options_.lead_per_kept * n_worth) return true;
  const int64_t n_others = queue_.n_clients_waiting() - 1;
  if (waiting.place->n_passed > n_others * options_.pass_tokens) return false;
  if (!is_short) is_short = is_short_of_pages(line);
  return *is_short;
}

/// Which of the first in line starts next, if one can: the one that gains most; one that was
/// overtaken often enough lets nobody pass. Where the chosen one finds no pages, all wait with it:
/// a large unit is not kept out by small ones.
std::optional<size_t> Scheduler::next_to_admit(std::vector<Waiting>& line) const {
  std::optional<size_t> best;
  std::optional<bool> is_short;
  double largest = -1;
  for (size_t i = 0; i < line.size(); ++i) {
    Waiting& waiting = line[i];
    const Unit& unit = unit_at(waiting.id);
    if (!has_place_for(unit) || (waiting.place && !waiting.place->is_level)) continue;
    const std::optional<Gain> gain = gain_of(unit);
    waiting.may_start = gain && may_start(line, waiting, *gain, is_short);
    if (waiting.may_start && gain->rank > largest) {
      best = i;
      largest = gain->rank;
    }
    // Whom fairness keeps back keeps nobody back: those that are due may come after it.
    if ((waiting.may_start || !gain) && unit.n_overtaken >= options_.max_overtakes) break;
  }
  if (!best || !has_pages_for(unit_at(line[*best].id))) return std::nullopt;
  return best;
}

void Scheduler::admit(StepPlan& step, Budget& budget) {
  while (budget.tokens > 0) {
    if (waiting_.empty() && n_families_running_ == options_.max_families) return;
    std::vector<Waiting> line = first_in_line(options_.overtake_window);
    const std::optional<size_t> next = next_to_admit(line);
    if (!next) return;
    for (size_t i = 0; i < *next; ++i)
      unit_at(line[i].id).n_overtaken += line[i].may_start ? 1 : 0;
    begin(line[*next].id);
    start(line[*next].id);
    schedule_unit(line[*next].id, true, step, budget);
    schedule_unit(line[*next].id, false, step, budget);
  }
}

/// The unit's family has its turn, unless it had it before.
void Scheduler::begin(UnitId id) {
  const Unit& unit = unit_at(id);
  Family& family = families_.at(unit.family);
  if (family.order) return;
  family.order = queue_.begin(unit.family, gain_of(unit)->n_kept);
  for (const UnitId member : family.units)
    waiting_.insert({*family.order, member});
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
    for (const SeqId id : unit_at(place.id).sequences) {
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
