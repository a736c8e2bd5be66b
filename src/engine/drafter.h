// A way to guess what an answer says next. Guesses are checked by the model that answers, which
// chooses every token as if there were none, so a drafter cannot change an answer, only its speed.
//
// Level 6 (engine). Two ways: what the text said before (prompt_lookup.h), and a smaller model
// (model_drafter.h). speculation.h decides whom to ask, when, and for how much.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/generation_config.h"
#include "engine/scheduler.h"

namespace qw {

/// How an answer chooses its tokens: a drafter that chooses in the same way, with the random number
/// of the same position, is right as often as it can be.
class TokenChooser {
 public:
  struct Choice {
    int32_t id = -1;  // below the usable vocabulary
    /// Among those that could be chosen, where assistant_confidence_threshold asks; else 1.
    double probability = 1;
  };
  /// From a row of logits (of any length: ids without one are not chosen) after `tokens`. Throws
  /// what choosing throws: a row that is not finite, processors that leave nothing.
  virtual Choice choose(std::span<const float> logits, std::span<const int32_t> tokens) = 0;

 protected:
  ~TokenChooser() = default;
};

/// An answer that wants guesses.
struct DraftQuery {
  SeqId seq = 0;                    // names the answer, from step to step
  int64_t lineage = 0;              // answers of a lineage have their prompt in common
  CacheSalt salt{};                 // whose prompts it may share
  std::span<const int32_t> tokens;  // prompt and answer so far
  const GenerationConfig* config = nullptr;
  TokenChooser* chooser = nullptr;
  int64_t n = 0;  // guesses wanted at most, from 1

  // What came of it.
  std::vector<int32_t> guess = {};
  bool declined = false;   // it was thought about, and nothing was likely enough to be said
  std::string fault = {};  // not empty: why this answer is not to be asked for again
};

class Drafter {
 public:
  /// What to believe of its guesses before any was checked; how much the latest one counts.
  struct Trust {
    double acceptance = 0.5, weight = 0.5;
  };
  /// Times of a drafter, estimates in seconds.
  struct Cost {
    double per_guess = 0;  // for all answers together
    double catch_up = 0;   // of one answer, before its first guess
  };

  virtual ~Drafter() = default;
  virtual std::string_view name() const = 0;
  virtual Trust trust() const = 0;
  /// Most guesses in a step that a request asks of it. 0: none.
  virtual int64_t limit(const GenerationConfig& config) const = 0;
  /// What guesses would cost, with n_answers of them in a step like that of `query`.
  virtual Cost cost(const DraftQuery& query, int64_t n_answers) const = 0;
  /// Fills in what came of each query, of all together. Whatever it throws ends the drafter.
  virtual void propose(std::span<DraftQuery> queries) = 0;
  /// The answer has ended.
  virtual void forget(SeqId /*seq*/) {}
  /// Throws Error{kInternal} when its state contradicts itself.
  virtual void check_integrity() const {}
};

}  // namespace qw
