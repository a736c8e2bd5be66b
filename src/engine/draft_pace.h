// When to guess ahead and how much, for one answer: as much as makes it faster, by what guesses
// were worth so far and by what they cost.
//
// Level 6 (engine). No clock, no model: costs are told. With the probability a that a guess is
// right, given that those before it were, a step with n guesses gives
//   E(n) = 1 + a + a^2 + ... + a^n
// tokens, and so E(n) * plain / with(n) times the tokens of plain steps in the same time. Source:
// Leviathan et al., 2023, section 3.1, with measured times in the place of their cost coefficient.
#pragma once

#include <cstdint>
#include <vector>

namespace qw {

/// A running estimate of how often guesses are right: a mean at first, then one that forgets.
class Acceptance {
 public:
  /// `rate`: what to believe before anything was seen, with the weight of two guesses. `weight`: of
  /// the latest guess, at least.
  Acceptance(double rate, double weight) : rate_(rate), weight_(weight) {}

  /// Of a draft the first n_right were right, and then one was wrong unless all n_tried were right.
  void note(int64_t n_tried, int64_t n_right);
  double rate() const noexcept { return rate_; }

 private:
  double rate_, weight_;
  int64_t n_seen_ = 0;
};

/// What guessing costs, in any unit of time.
struct DraftCosts {
  double plain = 0;          // a step without guesses
  std::vector<double> with;  // [n - 1]: a step with n guesses for each answer, making them included
  double catch_up = 0;       // once, before the first guess
  double share = 1;          // of a step's tokens, those of the answers that guess
  int64_t tokens_left = 0;   // that the answer may still have
};

class DraftPace {
 public:
  static constexpr int64_t kMaxPause = 64;  // steps
  static constexpr double kMinGain = 1.02;  // less is not worth the trouble
  static constexpr int64_t kHorizon = 256;  // tokens within which a cost paid once must come back

  /// See Acceptance.
  DraftPace(double rate, double weight) : acceptance_(rate, weight) {}

  /// Guesses to make in the next step, of at most costs.with.size(). While they do not pay one is
  /// tried now and then, if that costs no more than `credit`: after a pause that doubles up to
  /// kMaxPause steps.
  int64_t next(const DraftCosts& costs, double credit);
  /// What became of a draft; see Acceptance::note.
  void note(int64_t n_tried, int64_t n_right) { acceptance_.note(n_tried, n_right); }
  double acceptance() const noexcept { return acceptance_.rate(); }

 private:
  Acceptance acceptance_;
  int64_t wait_ = 0;        // steps until the next trial
  int64_t next_pause_ = 1;  // after that
};

}  // namespace qw
