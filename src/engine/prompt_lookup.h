// Guesses without a second model: that the sequence goes on as it did before.
//
// Level 6 (engine). Pure functions of the tokens. Quotations, edits of code and lists repeat what
// stands in the prompt or in the answer already, so what followed there is a good guess here.
// Source: "prompt lookup decoding" (Saxena, 2023), Transformers' prompt_lookup_num_tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/drafter.h"

namespace qw {

/// n tokens that followed the longest end of `history`, of max_ngram tokens at most, where it stood
/// before; of equally long ones the latest. Where that runs into the end of the history it goes on
/// with itself, as a period does. Empty when the last token is new, or n is 0. O(history).
std::vector<int32_t> look_up(std::span<const int32_t> history, int64_t max_ngram, int64_t n);

class LookupDrafter final : public Drafter {
 public:
  std::string_view name() const override { return "prompt lookup"; }
  /// A text quotes or it does not: what was just seen counts for more than all before.
  Trust trust() const override { return {.acceptance = 0.5, .weight = 0.5}; }
  int64_t limit(const GenerationConfig& config) const override {
    return config.prompt_lookup_num_tokens;
  }
  Cost cost(const DraftQuery&, int64_t) const override { return {}; }
  void propose(std::span<DraftQuery> queries) override;
};

}  // namespace qw
