// Speculation without a second model: guess that the sequence goes on as it did before.
//
// Level 6 (engine). Pure functions of the tokens. Quotations, edits of code and lists repeat what
// stands in the prompt or in the answer already, so what followed there is a good guess here.
// Source: "prompt lookup decoding" (Saxena, 2023), Transformers' prompt_lookup_num_tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace qw {

/// n tokens that followed the longest end of `history`, of max_ngram tokens at most, where it stood
/// before; of equally long ones the latest. Where that runs into the end of the history it goes on
/// with itself, as a period does. Empty when the last token is new, or n is 0. O(history).
std::vector<int32_t> look_up(std::span<const int32_t> history, int64_t max_ngram, int64_t n);

/// Decides when to guess and how much, for one answer. A step with a draft costs more than one
/// without, little more when the draft is short: guesses start with one token, double while they
/// are right, and a wrong one is followed by a pause that doubles up to kMaxPause steps. Text that
/// never repeats itself thus pays for one short draft in kMaxPause steps.
class PromptLookup {
 public:
  static constexpr int64_t kMaxPause = 64;

  PromptLookup(int64_t max_draft, int64_t max_ngram)
      : max_draft_(max_draft), max_ngram_(max_ngram) {}

  /// The guess for the next step, of at most `room` tokens; empty: none this time.
  std::vector<int32_t> propose(std::span<const int32_t> history, int64_t room);
  /// What became of a step's draft: so many tokens were computed, the first n_right were right.
  void report(int64_t n_drafted, int64_t n_right);

 private:
  int64_t max_draft_, max_ngram_;
  int64_t size_ = 1;        // of the next draft
  int64_t wait_ = 0;        // steps until then
  int64_t next_pause_ = 1;  // after the next wrong guess
};

}  // namespace qw
