// Constrained decoding as a logits processor: only tokens that the grammar allows stay.
//
// Level 6 (engine). A pure function of the tokens generated so far: sequences may be forked,
// preempted, resumed and guessed ahead. What it remembers of earlier calls (the grammar's place
// after each token of a few sequences) only saves time.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/grammar/token_masks.h"
#include "engine/logits_process.h"

namespace qw {

class GrammarProcessor : public LogitsProcessor {
 public:
  /// eos_ids: end tokens, allowed where the text may end and forced where it must.
  /// GrammarMatchers are shared between requests; processors belong to one request.
  GrammarProcessor(std::shared_ptr<GrammarMatcher> matcher, std::vector<int32_t> eos_ids);

  /// Errors: invalid_argument (the generated tokens are not the grammar's, which takes other
  /// processors to bring about; or none of the tokens that it allows is left by these).
  void process(const TokenHistory& history, LogitsRow& row) const override;
  std::string_view name() const override { return "grammar"; }

 private:
  using ConfigId = grammar::ConfigId;
  /// One sequence and where the grammar is after each of its tokens.
  struct Track {
    std::vector<int32_t> ids;
    std::vector<ConfigId> configs;  // configs[n]: after n tokens
    uint64_t last_used = 0;
  };

  ConfigId config_after(std::span<const int32_t> generated, GrammarMatcher::Session& session) const;
  Track& track_for(std::span<const int32_t> generated, GrammarMatcher::Session& session) const;
  ConfigId next(ConfigId config, int32_t id, GrammarMatcher::Session& session) const;
  bool is_eos(int32_t id) const;
  void apply(const TokenMask& mask, LogitsRow& row, int64_t position) const;
  void keep(std::vector<int32_t> ids, LogitsRow& row, int64_t position) const;

  std::shared_ptr<GrammarMatcher> matcher_;
  std::vector<int32_t> eos_ids_;  // ascending
  mutable std::mutex mutex_;
  mutable std::vector<Track> tracks_;
  mutable uint64_t generation_ = 0;  // of the matcher, that configs belong to
  mutable uint64_t clock_ = 0;
};

}  // namespace qw
