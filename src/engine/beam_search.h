// The bookkeeping of beam search: which hypotheses are finished, which beams go on.
//
// Level 6 (engine). Pure arithmetic on scores, no model. Transformers' BeamSearchScorer and
// BeamHypotheses (4.46), quirks included: only the best group_size candidates may end a beam, and
// the end token shown is always the first of the list. A stop string ends a beam as an end token
// does (Transformers from 4.50 on; before, the search went on until all beams had met one).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/generation_config.h"

namespace qw {

class ForcedWords;

/// A candidate for the next step: beam `beam` of the group followed by `token`.
struct BeamCandidate {
  int beam = 0;
  int32_t token = 0;
  float score = 0;     // sum of log-probabilities
  bool stops = false;  // its token completes a stop string
  int64_t trace = -1;  // the caller's own mark, kept with the hypothesis
};

struct Hypothesis {
  double score = 0;                // sum / length^length_penalty
  std::vector<int32_t> generated;  // without the end token, with the token of a stop string
  bool ended = false;              // by an end token
  int64_t trace = -1;              // of the candidate that ended it, or given to close()
  int32_t end = -1;                // the token that ended it, if one did
};

/// One group of beams.
class BeamGroup {
 public:
  struct Options {
    int size = 1;  // beams of the group
    double length_penalty = 1;
    EarlyStopping early_stopping = EarlyStopping::kFalse;
    int64_t max_new = 0;
    std::vector<int32_t> eos;
    std::shared_ptr<const ForcedWords> forced;  // what an answer has to contain; null: nothing
    int64_t n_answers = 1;                      // wanted, for close() with forced words
  };
  explicit BeamGroup(Options options);

  /// How many candidates process() needs: enough that `size` of them are no end tokens.
  int64_t n_candidates() const;
  /// Whether a candidate ends its beam.
  bool ends(const BeamCandidate& candidate) const;

  /// candidates: descending. beams[b]: the generated tokens of beam b so far. Returns the beams of
  /// the next step (exactly `size`, unless there were too few candidates).
  std::vector<BeamCandidate> process(std::span<const BeamCandidate> candidates,
                                     std::span<const std::span<const int32_t>> beams);
  /// Adds the hypothesis of a candidate that ends `beam`, if it has said all forced words and is
  /// good enough.
  void end(const BeamCandidate& candidate, std::span<const int32_t> beam);
  bool done() const noexcept { return done_; }

  /// Adds the beams that are still open as hypotheses, unless the group is done. With forced words:
  /// those that have said them all, and the others only if these are too few answers.
  void close(std::span<const std::span<const int32_t>> beams, std::span<const float> scores,
             std::span<const int64_t> traces);
  const std::vector<Hypothesis>& hypotheses() const noexcept { return hypotheses_; }

 private:
  void add(Hypothesis hypothesis, float sum, int64_t length);
  bool is_done(float best_sum, int64_t length) const;

  Options options_;
  std::vector<Hypothesis> hypotheses_;
  double worst_ = 1e9;
  bool done_ = false;
};

/// The n best hypotheses of all groups, best first; of equal ones the later comes first, as when
/// Python pops from a sorted list.
std::vector<Hypothesis> best_hypotheses(std::span<const BeamGroup> groups, int64_t n);

}  // namespace qw
