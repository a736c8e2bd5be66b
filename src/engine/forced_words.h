// Words that an answer must contain, and how beam search is steered towards them.
//
// Level 6 (engine). Pure bookkeeping, no model. Transformers' constrained beam search (4.46):
// PhrasalConstraint, DisjunctiveConstraint, ConstraintListState and the banks of
// ConstrainedBeamSearchScorer, after "Fast lexically constrained decoding" (Post and Vilar, 2018).
// As there, a word that stands in the prompt counts as said, and where too few beams have said all
// at the last position, the others compete with them by score.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "engine/beam_search.h"
#include "engine/generation_config.h"

namespace qw {

/// How much of the forced words a sequence has said. Words are said one after another: once one is
/// begun, a token that does not continue it undoes it.
class ForcedWordsState {
 public:
  /// `words` must outlive the state.
  explicit ForcedWordsState(const std::vector<ForcedWord>& words);

  void add(int32_t token);
  bool all_said() const noexcept { return pending_.empty() && !in_progress_; }
  /// Tokens that bring the sequence further; each at most once for every word.
  std::vector<int32_t> advances() const;
  /// Progress in tokens: every word said counts as much as the longest of all.
  int64_t bank() const noexcept;

 private:
  /// A word under way, or not yet begun (said empty).
  struct Word {
    const ForcedWord* word = nullptr;
    std::vector<int32_t> said;

    std::vector<int32_t> next() const;
    bool is_complete() const;
    int64_t longest() const;
  };

  std::vector<Word> pending_;  // in the order in which they will be looked for
  std::optional<Word> in_progress_;
  int64_t n_said_ = 0;
  int64_t longest_ = 0;
};

/// The forced words of one request.
class ForcedWords {
 public:
  ForcedWords(std::vector<ForcedWord> words, std::span<const int32_t> prompt);
  ForcedWords(const ForcedWords&) = delete;
  ForcedWords& operator=(const ForcedWords&) = delete;

  ForcedWordsState state_after(std::span<const int32_t> generated) const;
  bool all_said(std::span<const int32_t> generated) const {
    return state_after(generated).all_said();
  }

  /// The beams to go on with: of `chosen` (what plain beam search would do) and of every beam's
  /// next steps towards a word, `size` candidates, taken from the banks in turn, the most advanced
  /// bank first. score(beam, token) is the sum of log-probabilities, -infinity when banned.
  std::vector<BeamCandidate> steer(std::span<const BeamCandidate> chosen,
                                   std::span<const std::span<const int32_t>> beams,
                                   const std::function<float(int, int32_t)>& score,
                                   size_t size) const;

 private:
  std::vector<ForcedWord> words_;
  ForcedWordsState after_prompt_;
};

}  // namespace qw
