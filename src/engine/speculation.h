// Guessing ahead: before each step, drafters guess what answers say next, so that the step can
// compute several of their tokens at once.
//
// Level 6 (engine). Answers ask one drafter after the other until one has a guess. How many guesses
// an answer gets follows how often they were right and what they cost in measured time
// (draft_pace.h); what is said never depends on either. The first drafter is the cheapest.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/draft_pace.h"
#include "engine/drafter.h"
#include "engine/scheduler.h"
#include "engine/step_times.h"

namespace qw {

class Speculation {
 public:
  /// Trials whether guesses pay again may take such a share of the time, and at most as much as so
  /// many steps at a time.
  static constexpr double kTrialShare = 0.01;
  static constexpr double kMaxTrial = 32;

  /// Ids from usable_vocab on are never guessed.
  explicit Speculation(int64_t usable_vocab) : usable_vocab_(usable_vocab) {}

  void add(std::unique_ptr<Drafter> drafter);
  const StepTimes& step_times() const { return times_; }

  /// An answer whose next token is all that it waits for.
  struct Answer {
    SeqId seq = 0;
    const GenerationConfig* config = nullptr;
    TokenChooser* chooser = nullptr;
    int64_t max_len = 0;  // of the sequence
  };
  /// Gives drafts to the sequences of those that want some. A drafter that fails is dropped, and so
  /// are guesses for an answer that it cannot follow: with a warning, and without harm to anyone.
  void guess(std::span<const Answer> answers, Scheduler& scheduler);
  /// A step was computed in so many seconds.
  void note_step(const StepPlan& step, double seconds);
  /// Of a sequence's draft so many tokens were computed, and the first n_right were right.
  void note_outcome(SeqId seq, int64_t n_drafted, int64_t n_right);
  /// A guess of a sequence's draft cannot even be computed.
  void note_broken(SeqId seq, int64_t n_drafted);
  /// Forgets the answers whose sequences are gone.
  void sweep(const Scheduler& scheduler);
  void check_integrity() const;

 private:
  struct Source {
    std::unique_ptr<Drafter> drafter;  // null: it failed
    Acceptance acceptance;             // over all answers: where a new one starts
    double credit = 0;                 // seconds that a trial may take now
  };
  struct AnswerState {
    std::vector<std::optional<DraftPace>> paces;  // one a source; none: it is not asked
    size_t source = 0;                            // of the latest draft
    bool rests = false;                           // makes the next step without guesses
  };
  struct Room {
    int64_t n_answers = 0;
    int64_t base = 0;        // rows of the step without guesses
    int64_t per_answer = 0;  // guesses that the step has room for
    bool is_measured = false;
  };

  AnswerState& state_of(const Answer& answer);
  void ask(size_t source, std::vector<DraftQuery>& queries, const Room& room, Scheduler& scheduler);
  int64_t wanted(size_t source, const DraftQuery& query, const Answer& answer, const Room& room);
  DraftCosts costs_of(const Drafter::Cost& cost, int64_t limit, const Room& room) const;
  bool propose(Source& source, std::span<DraftQuery> queries);
  void take(size_t source, DraftQuery& query, Scheduler& scheduler);
  void note(size_t source, AnswerState& state, int64_t n_tried, int64_t n_right);

  int64_t usable_vocab_;
  std::vector<Source> sources_;
  std::map<SeqId, AnswerState> answers_;
  StepTimes times_;
  double seconds_a_token_ = 0;  // of the latest step with guesses, if it had had none
};

}  // namespace qw
