#include "engine/speculation.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "engine/current_error.h"

namespace qw {

void Speculation::add(std::unique_ptr<Drafter> drafter) {
  // Over all answers the estimate changes slowly.
  const Acceptance start(drafter->trust().acceptance, 1.0 / 64);
  sources_.push_back({std::move(drafter), start});
}

void Speculation::check_integrity() const {
  for (const Source& source : sources_) {
    if (source.drafter) source.drafter->check_integrity();
  }
}

void Speculation::sweep(const Scheduler& scheduler) {
  std::erase_if(answers_, [&](const auto& entry) {
    if (scheduler.has_sequence(entry.first)) return false;
    for (const Source& source : sources_) {
      if (source.drafter) source.drafter->forget(entry.first);
    }
    return true;
  });
}

// ---- before a step -----------------------------------------------------------------------------

void Speculation::guess(std::span<const Answer> answers, Scheduler& scheduler) {
  if (answers.empty()) return;
  const auto n_answers = std::ssize(answers);
  const Scheduler::Demand demand = scheduler.demand();
  const int64_t base = demand.n_tokens;
  const Room room{n_answers, base, scheduler.n_guesses_that_fit(demand) / n_answers,
                  times_.is_fresh(base)};
  seconds_a_token_ = times_.seconds(base) / static_cast<double>(base);
  std::vector<const Answer*> open;
  for (const Answer& answer : answers) {
    if (!std::exchange(state_of(answer).rests, false)) open.push_back(&answer);
  }
  for (size_t source = 0; source < sources_.size() && !open.empty(); ++source) {
    if (!sources_[source].drafter) continue;
    std::vector<DraftQuery> queries;
    for (const Answer* answer : open) {
      const Sequence& sequence = scheduler.sequence(answer->seq);
      DraftQuery query{.seq = answer->seq,
                       .lineage = sequence.lineage,
                       .salt = sequence.salt,
                       .tokens = sequence.tokens,
                       .config = answer->config,
                       .chooser = answer->chooser};
      query.n = wanted(source, query, *answer, room);
      if (query.n > 0) queries.push_back(std::move(query));
    }
    ask(source, queries, room, scheduler);
    std::erase_if(
        open, [&](const Answer* answer) { return scheduler.sequence(answer->seq).n_draft() > 0; });
  }
}

Speculation::AnswerState& Speculation::state_of(const Answer& answer) {
  const auto [entry, is_new] = answers_.try_emplace(answer.seq);
  AnswerState& state = entry->second;
  if (!is_new) return state;
  const bool remembers =
      answer.config->num_assistant_tokens_schedule != AssistantSchedule::kHeuristicTransient;
  for (const Source& source : sources_) {
    auto& pace = state.paces.emplace_back();
    if (!source.drafter || source.drafter->limit(*answer.config) == 0) continue;
    const Drafter::Trust trust = source.drafter->trust();
    pace.emplace(remembers ? source.acceptance.rate() : trust.acceptance, trust.weight);
  }
  return state;
}

/// How many guesses an answer wants of a source now.
int64_t Speculation::wanted(size_t source, const DraftQuery& query, const Answer& answer,
                            const Room& room) {
  std::optional<DraftPace>& pace = state_of(answer).paces[source];
  if (!pace) return 0;
  const Drafter& drafter = *sources_[source].drafter;
  // The last token of the answer follows from the one before it: there is no use in a guess of it.
  const int64_t left = answer.max_len - std::ssize(query.tokens) - 1;
  const int64_t limit = std::min({drafter.limit(*answer.config), left, room.per_answer});
  if (limit < 1) return 0;
  if (answer.config->num_assistant_tokens_schedule == AssistantSchedule::kConstant) return limit;
  // A plain step now and then shows what one costs.
  if (!room.is_measured) return 0;
  DraftCosts costs = costs_of(drafter.cost(query, room.n_answers), limit, room);
  costs.tokens_left = left;
  return pace->next(costs, sources_[source].credit);
}

/// What steps with 1, 2, ... guesses take.
DraftCosts Speculation::costs_of(const Drafter::Cost& cost, int64_t limit, const Room& room) const {
  // As long as it does not show in the times, a row counts for so much of a plain step.
  constexpr double kLeastRow = 0.01;
  // Sizes far beyond all that were met are reached in several steps.
  const int64_t known = std::max<int64_t>((2 * times_.largest() - room.base) / room.n_answers, 1);
  DraftCosts out;
  out.plain = times_.seconds(room.base);
  out.catch_up = cost.catch_up;
  out.share = static_cast<double>(room.n_answers) / static_cast<double>(room.base);
  for (int64_t n = 1; n <= std::min(limit, known); ++n) {
    const double step = std::max(times_.seconds(room.base + room.n_answers * n),
                                 out.plain * (1 + kLeastRow * static_cast<double>(n)));
    out.with.push_back(step + cost.per_guess * static_cast<double>(n));
  }
  return out;
}

void Speculation::ask(size_t source, std::vector<DraftQuery>& queries, const Room& room,
                      Scheduler& scheduler) {
  if (queries.empty() || !propose(sources_[source], queries)) return;
  int64_t n_guesses = 0;
  for (DraftQuery& query : queries) {
    take(source, query, scheduler);
    n_guesses += std::ssize(query.guess);
  }
  sources_[source].credit -= times_.seconds(room.base + n_guesses) - times_.seconds(room.base);
}

/// False when the drafter failed, which nobody may notice but by the speed.
bool Speculation::propose(Source& source, std::span<DraftQuery> queries) {
  const auto start = std::chrono::steady_clock::now();
  try {
    source.drafter->propose(queries);
  } catch (...) {
    logger().warn("{}: {}; everything goes on without it", source.drafter->name(),
                  current_error().message());
    source.drafter.reset();
    return false;
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  source.credit -= took.count();
  return true;
}

/// Makes of a query's guesses the draft of its sequence.
void Speculation::take(size_t source, DraftQuery& query, Scheduler& scheduler) {
  AnswerState& state = answers_.at(query.seq);
  if (!query.fault.empty()) {
    logger().warn("{}: {}; the answer goes on without it", sources_[source].drafter->name(),
                  query.fault);
    state.paces[source].reset();
    return;
  }
  if (query.declined) note(source, state, 1, 0);
  // An end token follows from the one before it, too.
  const auto useless = std::ranges::find_if(
      query.guess, [&](int32_t id) { return id >= usable_vocab_ || query.config->ends_at(id); });
  query.guess.erase(useless, query.guess.end());
  if (query.guess.empty()) return;
  state.source = source;
  scheduler.set_draft(query.seq, query.guess);
}

// ---- after a step ------------------------------------------------------------------------------

void Speculation::note_step(const StepPlan& step, double seconds) {
  // The last layer takes its part only of the rows that are wanted, which is no matter where there
  // are many others.
  constexpr int64_t kMany = 64;
  const int64_t n_tokens = step.batch.n_tokens();
  if (n_tokens > kMany || n_tokens == std::ssize(step.rows)) times_.note(n_tokens, seconds);
  const double most = kMaxTrial * times_.seconds(1);
  for (Source& source : sources_) {
    if (source.credit < most) source.credit += kTrialShare * seconds;
  }
}

void Speculation::note_outcome(SeqId seq, int64_t n_drafted, int64_t n_right) {
  const auto answer = answers_.find(seq);
  if (answer == answers_.end() || n_drafted == 0) return;
  note(answer->second.source, answer->second, n_drafted, n_right);
  Source& source = sources_[answer->second.source];
  const double most = kMaxTrial * times_.seconds(1);
  source.credit = std::clamp(source.credit + seconds_a_token_ * static_cast<double>(n_right), -most,
                             std::max(most, source.credit));
}

void Speculation::note_broken(SeqId seq, int64_t n_drafted) {
  note_outcome(seq, n_drafted, 0);
  // The same guess would come again: a step without it takes the answer past the place.
  if (const auto answer = answers_.find(seq); answer != answers_.end()) answer->second.rests = true;
}

void Speculation::note(size_t source, AnswerState& state, int64_t n_tried, int64_t n_right) {
  sources_[source].acceptance.note(n_tried, n_right);
  if (state.paces[source]) state.paces[source]->note(n_tried, n_right);
}

}  // namespace qw
