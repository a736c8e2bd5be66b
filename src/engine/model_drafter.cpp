#include "engine/model_drafter.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "base/checked.h"
#include "base/error.h"
#include "engine/current_error.h"

namespace qw {
namespace {

SchedulerOptions scheduler_options(const Model& draft, const EngineOptions& options) {
  const int page_tokens = draft.backend().kv_page_tokens();
  const int64_t n_pages =
      std::min(ceil_div<int64_t>(options.kv_tokens, page_tokens),
               checked_mul(ceil_div<int64_t>(draft_context(draft.config(), options), page_tokens),
                           options.n_slots, "pages of the draft model's cache"));
  return {.n_pages = n_pages,
          .page_tokens = page_tokens,
          .max_tokens = options.chunk_tokens,
          .max_families = std::numeric_limits<int64_t>::max(),
          .max_rows = draft_logit_rows(options),
          .rope_follows_length = draft.config().rope.scaling == RopeScaling::kDynamic,
          .keep_prefixes = options.prefix_cache,
          // Whoever is asked for is computed in the step that asks.
          .max_overtakes = 0,
          .await_prefixes = false};
}

/// Of two models that read their weights from memory as fast: the bytes of a token.
double cost_ratio_of(const Model& draft, const Model& answering) {
  const auto own = static_cast<double>(draft.read_bytes_per_token());
  const auto other = static_cast<double>(answering.read_bytes_per_token());
  return own > 0 && other > 0 ? own / other : 0.1;
}

}  // namespace

int64_t draft_logit_rows(const EngineOptions& options) {
  return std::max<int64_t>(options.n_slots, 8);
}

int64_t draft_context(const ModelConfig& draft, const EngineOptions& options) {
  return std::min(trained_context(draft), options.ctx);
}

ModelDrafter::ModelDrafter(Model& draft, const Model& answering, const StepTimes& answering_times,
                           const EngineOptions& options, DType kv_type)
    : model_(draft),
      answering_times_(answering_times),
      cost_ratio_(cost_ratio_of(draft, answering)),
      vocab_(draft.config().vocab),
      ctx_(draft_context(draft.config(), options)),
      options_(scheduler_options(draft, options)),
      scheduler_(options_),
      kv_(draft.make_kv(options_.n_pages, kv_type)) {}

ModelDrafter::~ModelDrafter() = default;

/// A step of ours: as measured, or, for one smaller than all that were, as its bytes say.
double ModelDrafter::seconds(int64_t rows) const {
  const double expected = cost_ratio_ * answering_times_.seconds(rows);
  if (times_.empty()) return expected;
  return rows < times_.smallest() ? std::min(expected, times_.seconds(rows)) : times_.seconds(rows);
}

Drafter::Cost ModelDrafter::cost(const DraftQuery& query, int64_t n_answers) const {
  const auto followed = followed_.find(query.seq);
  int64_t n_known = 0;
  if (followed == followed_.end()) {
    n_known = scheduler_.n_kept_tokens({-1, query.salt}, query.tokens);
  } else {
    const Sequence& sequence = scheduler_.sequence(followed->second.id);
    const auto [parting, other] = std::mismatch(sequence.tokens.begin(), sequence.tokens.end(),
                                                query.tokens.begin(), query.tokens.end());
    n_known = std::min<int64_t>(parting - sequence.tokens.begin(), sequence.n_computed);
  }
  const int64_t n_behind = std::ssize(query.tokens) - n_known;
  const double step = seconds(n_answers);
  return {.per_guess = step,
          .catch_up = n_behind > 2 ? std::max(seconds(n_behind + n_answers - 1) - step, 0.0) : 0};
}

void ModelDrafter::forget(SeqId seq) {
  broken_.erase(seq);
  const auto followed = followed_.find(seq);
  if (followed == followed_.end()) return;
  scheduler_.remove_unit(followed->second.unit);
  followed_.erase(followed);
}

void ModelDrafter::check_integrity() const {
  scheduler_.check_integrity();
}

// ---- one proposal ------------------------------------------------------------------------------

void ModelDrafter::propose(std::span<DraftQuery> queries) {
  Asked asked;
  for (DraftQuery& query : queries)
    follow(query, asked);
  make_room(asked);
  while (!asked.empty()) {
    const auto start = std::chrono::steady_clock::now();
    const StepPlan step = scheduler_.schedule();
    if (step.chunks.empty()) return;
    if (!compute(step, asked)) continue;
    const size_t n_asked = asked.size();
    const bool all_chose = choose(step, asked) == n_asked;
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    times_.note(step.batch.n_tokens(), took.count());
    // Some answers are still catching up with a long text, a chunk each time they are asked for.
    if (!all_chose) return;
  }
}

/// Takes over what the answer says by now. One that cannot be followed is not asked for.
void ModelDrafter::follow(DraftQuery& query, Asked& asked) {
  if (const auto broken = broken_.find(query.seq); broken != broken_.end()) {
    query.fault = broken->second;
    return;
  }
  const auto unknown =
      std::ranges::find_if(query.tokens, [this](int32_t id) { return id >= vocab_; });
  if (unknown != query.tokens.end()) {
    query.fault = fmt::format("token {}: expected an id below the draft's {}", *unknown, vocab_);
    return;
  }
  // The last guess is not computed.
  query.n = std::min(query.n, ctx_ - std::ssize(query.tokens) + 1);
  if (query.n < 1) return;
  const auto [entry, is_new] = followed_.try_emplace(query.seq);
  Followed& followed = entry->second;
  if (is_new) {
    Sequence spec;
    spec.tokens.assign(query.tokens.begin(), query.tokens.end());
    spec.prompt_len = spec.size();
    spec.lineage = query.lineage;
    spec.salt = query.salt;
    followed.unit = scheduler_.add_unit(query.seq);
    followed.id = scheduler_.add_sequence(followed.unit, std::move(spec));
  } else {
    scheduler_.replace_tokens(followed.id, query.tokens);
  }
  asked[followed.id] = &query;
}

/// Sees to it that nobody who is asked for loses pages: answers that are not asked for give theirs,
/// and when that is not enough the youngest wait for another time.
void ModelDrafter::make_room(Asked& asked) {
  const auto n_wanted = [&] {
    int64_t n = 0;
    for (const auto& [id, query] : asked) {
      const Sequence& sequence = scheduler_.sequence(id);
      n += scheduler_.pages_for(sequence.size() + query->n) - std::ssize(sequence.pages);
    }
    return n;
  };
  while (n_wanted() > scheduler_.n_free_pages() && !asked.empty()) {
    const auto idle = std::ranges::find_if(followed_, [&](const auto& entry) {
      const SeqId id = entry.second.id;
      return asked.count(id) == 0 && !scheduler_.sequence(id).pages.empty();
    });
    if (idle != followed_.end()) {
      forget(SeqId{idle->first});
    } else {
      const auto youngest = std::prev(asked.end());
      forget(youngest->second->seq);
      asked.erase(youngest);
    }
  }
}

/// The forward pass of a step. False when it came to nothing and the rest is to be tried again.
bool ModelDrafter::compute(const StepPlan& step, Asked& asked) {
  for (const StepPlan::Copy& copy : step.copies)
    kv_->copy_page(copy.from, copy.to, copy.n_tokens);
  logits_.resize(std::max(logits_.size(), step.rows.size() * static_cast<size_t>(vocab_)));
  try {
    model_.forward(step.batch, *kv_, step.rows.empty() ? nullptr : logits_.data());
  } catch (const NumericError& error) {
    drop_broken(step, error, asked);
    return false;
  }
  scheduler_.commit(step);
  return true;
}

/// Leaves the answer with a broken row to itself.
void ModelDrafter::drop_broken(const StepPlan& step, const NumericError& error, Asked& asked) {
  int64_t end = 0;
  for (const StepPlan::Chunk& chunk : step.chunks) {
    end += chunk.end - chunk.begin;
    if (error.row() >= end) continue;
    scheduler_.abandon(step);
    const auto followed = std::ranges::find_if(
        followed_, [&](const auto& entry) { return entry.second.id == chunk.seq; });
    QW_CHECK(followed != followed_.end());
    const SeqId answer = followed->first;
    forget(answer);
    broken_[answer] = error.message();
    if (const auto query = asked.find(chunk.seq); query != asked.end()) {
      query->second->guess.clear();
      query->second->fault = error.message();
      asked.erase(query);
    }
    return;
  }
  throw error;
}

/// The next guess of every answer whose row is there; how many those are. Who has enough is not
/// asked for any more.
size_t ModelDrafter::choose(const StepPlan& step, Asked& asked) {
  size_t n_chose = 0;
  for (size_t i = 0; i < step.rows.size(); ++i) {
    const SeqId id = step.rows[i].seq;
    const auto entry = asked.find(id);
    if (entry == asked.end()) continue;
    ++n_chose;
    if (!choose_one(logits_.data() + i * static_cast<size_t>(vocab_), id, *entry->second))
      asked.erase(entry);
  }
  return n_chose;
}

/// False when this was the last one.
bool ModelDrafter::choose_one(const float* logits, SeqId id, DraftQuery& query) {
  TokenChooser::Choice choice;
  try {
    choice = query.chooser->choose({logits, static_cast<size_t>(vocab_)},
                                   scheduler_.sequence(id).tokens);
  } catch (...) {
    // What the answer itself does without error may fail on our logits.
    query.guess.clear();
    query.fault = current_error().message();
    return false;
  }
  if (choice.probability < query.config->assistant_confidence_threshold) {
    query.declined = query.guess.empty();
    return false;
  }
  query.guess.push_back(choice.id);
  if (std::ssize(query.guess) >= query.n || choice.id >= vocab_) return false;
  scheduler_.append(id, choice.id);
  return true;
}

}  // namespace qw
