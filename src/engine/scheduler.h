// Which tokens the next step computes: running decodes before prefill, units in their order.
//
// Level 6 (engine). Pure host code: no tensors, no clock, no I/O. A *sequence* is a list of tokens
// of which the first n_computed are in the KV cache; a *unit* is the set of sequences that advance
// in lock-step (one for plain decoding; the beams of a search) and that lose their pages together.
// Units of one request form a *family*; families take turns that are fair between clients
// (engine/fair_queue.h). When pages run out the last unit gives its pages back and is computed
// again later; a sequence starts with the pages that hold its first tokens already. By the numeric
// contract neither changes a bit. A sequence may carry a *draft*, tokens guessed to come next: what
// a step has left over computes them along, and those that turn out right need not be computed
// again. Source: Orca (Yu et al., 2022), vLLM, Sarathi (chunked prefill), speculative decoding
// (Leviathan et al., 2023).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "backend/batch_plan.h"
#include "base/function_ref.h"
#include "engine/fair_queue.h"
#include "engine/kv_pages.h"

namespace qw {

using SeqId = int64_t;
using UnitId = int64_t;

struct SchedulerOptions {
  static constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

  int64_t n_pages = 0;
  int page_tokens = 0;
  int64_t max_tokens = 512;  // of a step
  int64_t max_families = 1;  // requests running at the same time, whatever their widths
  int64_t max_rows = 64;     // of logits in a step; sequences that find none left wait
  /// Dynamic NTK scaling: a token's rotation depends on the length its sequence had when it was
  /// computed, so tokens that were decoded one by one must be recomputed one by one.
  bool rope_follows_length = false;
  /// Pages keep their tokens after their sequence has gone, for later ones that start alike. Not
  /// with rope_follows_length, where equal tokens may have unequal keys.
  bool keep_prefixes = false;
  /// Of the first so many that wait, the unit starts first whose kept prefix is the largest for its
  /// length. No unit is overtaken more often than max_overtakes, which bounds what it can wait; 0:
  /// strictly in order. Tried out by tools/simulate_scheduler (docs/performance.md, "Scheduling").
  int64_t overtake_window = 128;
  int64_t max_overtakes = 512;
  bool weighs_length = true;  // false: the longest kept prefix first, for comparison
  /// How far this goes between clients: see Scheduler::may_start().
  int64_t lead_per_kept = 2;
  int64_t pass_tokens = 4096;
  /// A unit does not start while another of its scope computes tokens that both begin with.
  bool await_prefixes = true;
};

struct Sequence {
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  SeqId id = 0;
  UnitId unit = 0;
  int64_t lineage = 0;  // sequences of a lineage share the KV of the tokens they have in common
  std::vector<int32_t> tokens;
  int64_t prompt_len = 0;
  int32_t adapter = -1;
  CacheSalt salt{};
  int64_t logits_from = kNever;  // rows wanted from this position on, besides the last one
  int64_t hidden_from = kNever;  // hidden states wanted from this position on

  int64_t n_computed = 0;
  /// Guesses for tokens[size()] and on. Once the last token has been computed: those that were
  /// computed with it, each of which has a row of logits.
  std::vector<int32_t> draft;
  std::vector<int32_t> pages;
  bool under_way = false;  // part of a step that is not yet committed

  BlockScope scope() const { return {adapter, salt}; }
  int64_t size() const noexcept { return static_cast<int64_t>(tokens.size()); }
  int64_t n_pending() const noexcept { return size() - n_computed; }
  int64_t n_draft() const noexcept { return static_cast<int64_t>(draft.size()); }
  /// Position below size() + n_draft().
  int32_t token_at(int64_t position) const {
    return position < size() ? tokens[static_cast<size_t>(position)]
                             : draft[static_cast<size_t>(position - size())];
  }
  /// How many tokens another's pages may stand in for: what they yield is not wanted. The last
  /// token's logits always are.
  int64_t n_sharable() const noexcept { return std::min({size() - 1, logits_from, hidden_from}); }
};

/// A row of logits that a step yields: what follows token_at(position) of the sequence.
struct WantedRow {
  SeqId seq = 0;
  int64_t position = 0;
  int32_t batch_row = 0;  // row of the batch; rows are in the order of BatchPlan::logit_rows
};

struct StepPlan {
  struct Chunk {
    SeqId seq = 0;
    int64_t begin = 0, end = 0;  // positions computed
  };
  struct Copy {
    SeqId seq = 0;
    int32_t from = 0, to = 0;
    int n_tokens = 0;
  };
  BatchPlan batch;
  std::vector<Copy> copies;  // to be made, in order, before the forward pass
  std::vector<Chunk> chunks;
  std::vector<WantedRow> rows;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  /// Pages that a unit of `width` forks of one prompt holds at worst, grown to max_len tokens
  /// each. The caller refuses what exceeds n_pages().
  int64_t pages_at_worst(int64_t prompt_len, int64_t max_len, int64_t width) const;

  /// Units of one family (the answers to one request) take one place among max_families, and one
  /// turn: the first one's.
  UnitId add_unit(int64_t family, const Turn& turn = {});
  /// `spec`: lineage, tokens (not empty), prompt_len, adapter, salt, logits_from.
  SeqId add_sequence(UnitId unit, Sequence spec);
  /// A sequence of the same unit with the same tokens that shares all pages until one is written.
  SeqId fork(SeqId parent);
  /// Where the token is the next one of a draft that was computed, so is the token; otherwise what
  /// is left of the draft is dropped, with its pages.
  void append(SeqId id, int32_t token);
  /// Guesses what follows, for a sequence that has one token pending. A guess costs nobody a place:
  /// it is computed as far as the next step has tokens, rows and free pages left.
  void set_draft(SeqId id, std::vector<int32_t> draft);
  void drop_draft(SeqId id) { drop_draft(at(id)); }
  /// The sequence has these tokens (at least one) from now on. What it had in common with them at
  /// the start stays computed, but for the last token, whose row is wanted (again).
  void replace_tokens(SeqId id, std::span<const int32_t> tokens);
  void set_logits_from(SeqId id, int64_t position) { at(id).logits_from = position; }
  void set_hidden_from(SeqId id, int64_t position) { at(id).hidden_from = position; }
  /// A unit that is held is not admitted, and those behind it are: something that it needs is on
  /// its way.
  void set_held(UnitId id, bool held) { unit_at(id).held = held; }
  void remove_sequence(SeqId id);
  void remove_unit(UnitId id);

  const Sequence& sequence(SeqId id) const;
  bool has_sequence(SeqId id) const { return sequences_.count(id) != 0; }
  bool has_unit(UnitId id) const { return units_.count(id) != 0; }

  /// The next step; empty when nothing is pending. Pages are taken, n_computed is not yet changed:
  /// call commit() once the step is computed, or abandon() when its copies were made and the rest
  /// came to nothing: its sequences are scheduled again.
  StepPlan schedule();
  void commit(const StepPlan& step);
  void abandon(const StepPlan& step);

  bool idle() const noexcept { return units_.empty(); }
  int64_t n_pages() const noexcept { return pool_.n_pages(); }
  /// What running units, and those that can be admitted, want to have computed, guesses not
  /// counted.
  struct Demand {
    int64_t n_tokens = 0;
    int64_t n_sequences = 0;
  };
  Demand demand() const;
  /// Guesses that a step has room for once it computes what is demanded.
  int64_t n_guesses_that_fit(const Demand& demand) const noexcept;
  /// Pages that a sequence of so many tokens holds.
  int64_t pages_for(int64_t n_tokens) const;
  /// Pages without a holder, kept prefixes included: these make room when pages are wanted.
  int64_t n_free_pages() const noexcept { return pool_.n_free(); }
  /// How many of these tokens, from the first on, a new sequence would find in kept pages.
  int64_t n_kept_tokens(const BlockScope& scope, std::span<const int32_t> tokens) const {
    return pool_.find_prefix(scope, tokens).n_tokens;
  }
  int64_t n_kept_pages() const noexcept { return pool_.n_unused_blocks(); }
  int64_t n_touched_pages() const noexcept { return pool_.n_touched(); }
  void drop_kept_pages() { pool_.drop_unused_blocks(); }
  PagePool::Prefix kept_prefix(const BlockScope& scope, std::span<const int32_t> tokens) const {
    return pool_.find_prefix(scope, tokens);
  }
  /// Holds what is kept of these tokens, for who copies it out over several steps: its pages stay
  /// as they are until let_go(), whoever wants pages. Units that find too few beside them wait or
  /// are preempted as ever, but those that were promised to fit alone may now have to wait, too:
  /// a step may be empty while pages are held, and is no longer so once they have been let go of.
  int64_t hold(const BlockScope& scope, std::span<const int32_t> tokens);
  /// nullptr: no such hold, or not any more.
  const PagePool::Prefix* held(int64_t id) const;
  /// Others are ignored.
  void let_go(int64_t id);
  bool holds_pages() const;
  /// Puts blocks of `tokens` that were computed elsewhere into kept pages: those from number
  /// `first` on that are not there yet, as far as there are pages without a holder. `fill` writes
  /// keys and values of one to its page. Returns how many tokens, from the first on, are kept then;
  /// none are put there unless all before `first` are.
  int64_t import_blocks(const BlockScope& scope, std::span<const int32_t> tokens, int64_t first,
                        FunctionRef<void(int32_t page, int64_t block)> fill);
  /// The pages of running sequences and kept ones, for who keeps their blocks elsewhere as well.
  PagePool& pool() noexcept { return pool_; }
  int64_t n_preemptions() const noexcept { return n_preemptions_; }
  int page_tokens() const noexcept { return options_.page_tokens; }
  /// Throws Error{kInternal} when pages, sequences and units disagree.
  void check_integrity() const;

  /// Takes pages for a sequence outside the schedule (score); free them with release_pages.
  std::vector<int32_t> take_pages(int64_t n);
  void release_pages(std::span<const int32_t> pages);

  /// Appends the tokens [begin, end) of a sequence, draft included, to a batch, as one entry or,
  /// where rope_follows_length demands it, as several. `wanted` gets the rows of logits.
  static void append_chunk(const Sequence& sequence, int64_t begin, int64_t end,
                           const SchedulerOptions& options, StepPlan& step);

 private:
  /// Of a unit among those that have had their turn.
  struct Place {
    int64_t order = 0;
    UnitId id = 0;
    auto operator<=>(const Place&) const = default;
  };
  struct Unit {
    int64_t family = 0;
    bool running = false, held = false;
    int64_t n_overtaken = 0;  // by units later in line that started first
    std::vector<SeqId> sequences;
  };
  struct Family {
    std::vector<UnitId> units;
    int64_t n_running = 0;
    std::optional<int64_t> order;  // of its units, once it has had its turn
  };
  /// A unit that waits; its family's place in line, if that has not had its turn.
  struct Waiting {
    UnitId id = 0;
    std::optional<FairQueue::Place> place;
    bool may_start = false;
  };
  struct Gain {
    double rank = 0;     // who gains most starts first
    int64_t n_kept = 0;  // tokens
  };
  struct Budget {
    int64_t tokens = 0, rows = 0;
  };

  Sequence& at(SeqId id);
  Place place_of(UnitId id) const;
  Unit& unit_at(UnitId id) { return units_.at(id); }
  const Unit& unit_at(UnitId id) const { return units_.at(id); }
  Family& family_of(UnitId id) { return families_.at(unit_at(id).family); }
  void schedule_unit(UnitId id, bool prefill, StepPlan& step, Budget& budget);
  void schedule_sequence(Sequence& sequence, int64_t n_tokens, StepPlan& step, Budget& budget);
  void extend_by_drafts(StepPlan& step, Budget& budget);
  void drop_draft(Sequence& sequence);
  void admit(StepPlan& step, Budget& budget);
  std::vector<Waiting> first_in_line(int64_t n) const;
  std::optional<size_t> next_to_admit(std::vector<Waiting>& line) const;
  bool may_start(const std::vector<Waiting>& line, const Waiting& waiting, const Gain& gain,
                 std::optional<bool>& is_short) const;
  bool has_place_for(const Unit& unit) const;
  int64_t pages_to_take(const Unit& unit) const;
  bool has_pages_for(const Unit& unit) const;
  bool is_short_of_pages(const std::vector<Waiting>& line) const;
  std::optional<Gain> gain_of(const Unit& unit) const;
  void begin(UnitId id);
  void start(UnitId id);
  void stop(UnitId id);
  /// What a sequence without pages could take over: from another of its lineage, or kept pages.
  struct Sharable {
    PagePool::Prefix prefix;
    bool wait = false;  // another is still on its way through more of the common tokens
  };
  Sharable find_sharable(const Sequence& sequence) const;
  bool is_on_the_way(const Sequence& sequence, std::span<const int32_t> tokens,
                     int64_t n_kept) const;
  bool share_prefix(Sequence& sequence);
  void publish_blocks(const StepPlan::Chunk& chunk);
  void publish_tail(const Sequence& sequence);
  bool make_writable(Sequence& sequence, size_t page, int used, StepPlan& step);
  int64_t reserve(Sequence& sequence, int64_t end, StepPlan& step);
  std::optional<int32_t> allocate_or_preempt(UnitId for_unit, StepPlan& step);
  std::optional<UnitId> last_running() const;
  void preempt(UnitId id, StepPlan& step);
  void drop_pages(Sequence& sequence);
  void trim_pages(Sequence& sequence);

  SchedulerOptions options_;
  PagePool pool_;
  FairQueue queue_;  // of families that have not had their turn
  std::unordered_map<int64_t, Family> families_;
  std::unordered_map<UnitId, Unit> units_;
  std::set<Place> running_, waiting_;  // whose families have, whose turn was first, first
  int64_t n_families_running_ = 0;
  std::map<SeqId, Sequence> sequences_;
  std::unordered_map<int64_t, std::vector<SeqId>> lineages_;
  std::map<int64_t, PagePool::Prefix> holds_;
  int64_t next_hold_ = 1;
  UnitId next_unit_ = 1;
  SeqId next_seq_ = 1;
  int64_t n_preemptions_ = 0;
};

}  // namespace qw
