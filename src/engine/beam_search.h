// The bookkeeping of beam search: which hypotheses are finished, which beams go on.
//
// Level 6 (engine). Pure arithmetic on scores, no model. Transformers' BeamSearchScorer and
// BeamHypotheses (4.46), quirks included: only the best group_size candidates may end a beam, and
// the end token shown is always the first of the list.
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
  float score = 0;  // sum of log-probabilities
};

struct Hypothesis {
  double score = 0;                // sum / length^length_penalty
  std::vector<int32_t> generated;  // without the end token
  bool ended = false;              // by an end token
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

  /// How many candidates process() needs: enough that `size` of them do not end.
  int64_t n_candidates() const;

  /// candidates: descending. beams[b]: the generated tokens of beam b so far. Returns the beams of
  /// the next step (exactly `size`, unless there were too few candidates).
  std::vector<BeamCandidate> process(std::span<const BeamCandidate> candidates,
                                     std::span<const std::span<const int32_t>> beams);
  bool done() const noexcept { return done_; }

  /// Adds the beams that are still open as hypotheses, unless the group is done. With forced words:
  /// those that have said them all, and the others only if these are too few answers.
  void close(std::span<const std::span<const int32_t>> beams, std::span<const float> scores);
  const std::vector<Hypothesis>& hypotheses() const noexcept { return hypotheses_; }

 private:
  void add(std::span<const int32_t> generated, float sum, int64_t length, bool ended);
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
