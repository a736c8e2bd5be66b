// Penalties, biases, bans and forced tokens: the processors that apply in every strategy.
//
// Level 6 (engine). Each class is Transformers' of the same name, in one pass over the history
// and none over the vocabulary where that is possible.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/logits_process.h"

namespace qw {

/// x[t] / penalty if x[t] > 0 else x[t] * penalty, once per distinct token t of the history.
class RepetitionPenalty : public LogitsProcessor {
 public:
  explicit RepetitionPenalty(double penalty) : penalty_(static_cast<float>(penalty)) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "repetition_penalty"; }

 private:
  float penalty_;
};

/// The inverse for the tokens of the prompt: > 1 favours them.
class EncoderRepetitionPenalty : public LogitsProcessor {
 public:
  EncoderRepetitionPenalty(double penalty, std::vector<int32_t> prompt);
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "encoder_repetition_penalty"; }

 private:
  float penalty_;
  std::vector<int32_t> prompt_;  // distinct
};

/// x[t] -= frequency * count(t) + presence * (count(t) > 0), counted over the generated tokens.
class PresenceFrequencyPenalty : public LogitsProcessor {
 public:
  PresenceFrequencyPenalty(double presence, double frequency)
      : presence_(static_cast<float>(presence)), frequency_(static_cast<float>(frequency)) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "presence_frequency_penalty"; }

 private:
  float presence_, frequency_;
};

/// Bans every token that would repeat an n-gram of the history (of the prompt: encoder form).
class NoRepeatNgram : public LogitsProcessor {
 public:
  explicit NoRepeatNgram(int64_t n) : n_(n) {}
  NoRepeatNgram(int64_t n, std::vector<int32_t> prompt)
      : n_(n), source_(std::move(prompt)), from_prompt_(true) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override {
    return from_prompt_ ? "encoder_no_repeat_ngram" : "no_repeat_ngram";
  }

 private:
  int64_t n_;
  std::vector<int32_t> source_;
  bool from_prompt_ = false;
};

/// Adds each bias to the last token of its sequence when the history ends with the others.
/// The biases of several sequences add up before they meet the logit.
class SequenceBiasProcessor : public LogitsProcessor {
 public:
  explicit SequenceBiasProcessor(std::vector<SequenceBias> biases);
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "sequence_bias"; }

 private:
  std::vector<SequenceBias> biases_;  // by last token, so that their sums are formed in one pass
};

/// bad_words_ids as sequence biases of -infinity; entries that are exactly one end token are left
/// out, as in Transformers.
std::vector<SequenceBias> bad_word_biases(const std::vector<std::vector<int32_t>>& bad_words,
                                          const std::vector<int32_t>& eos);

/// -infinity for `ids` always, or only when the history is `at_length` long (begin_suppress).
class SuppressTokens : public LogitsProcessor {
 public:
  explicit SuppressTokens(std::vector<int32_t> ids, int64_t at_length = -1)
      : ids_(std::move(ids)), at_length_(at_length) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override {
    return at_length_ < 0 ? "suppress_tokens" : "begin_suppress_tokens";
  }

 private:
  std::vector<int32_t> ids_;
  int64_t at_length_;
};

/// No end token before the whole sequence is min_length tokens long.
class MinLength : public LogitsProcessor {
 public:
  MinLength(int64_t min_length, std::vector<int32_t> eos)
      : min_length_(min_length), eos_(std::move(eos)) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "min_length"; }

 private:
  int64_t min_length_;
  std::vector<int32_t> eos_;
};

/// Forces one of `ids` (score 0, everything else -infinity) when the history is `at_length` long.
class ForcedTokens : public LogitsProcessor {
 public:
  ForcedTokens(std::vector<int32_t> ids, int64_t at_length)
      : ids_(std::move(ids)), at_length_(at_length) {}
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "forced_tokens"; }

 private:
  std::vector<int32_t> ids_;
  int64_t at_length_;
};

/// x[eos] += |x[eos]| * (factor^(len - start) - 1) once the history is longer than start.
class ExponentialDecayLength : public LogitsProcessor {
 public:
  ExponentialDecayLength(int64_t start, double factor, std::vector<int32_t> eos);
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "exponential_decay_length_penalty"; }

 private:
  int64_t start_;
  double factor_;
  std::vector<int32_t> eos_;
};

/// NaN -> 0, +-infinity -> the largest and smallest float (remove_invalid_values).
class RemoveInvalid : public LogitsProcessor {
 public:
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "remove_invalid_values"; }
};

/// x <- x - log_sum_exp(x) (renormalize_logits).
class Renormalize : public LogitsProcessor {
 public:
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "renormalize"; }
};

/// x[t] -= penalty * (how often earlier groups chose t in this step): diverse beam search.
void apply_hamming_diversity(double penalty, std::span<const int32_t> chosen_by_earlier_groups,
                             LogitsRow& row);

}  // namespace qw
