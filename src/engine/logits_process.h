// What stands between the model's logits and the choice of a token: an ordered list of processors.
//
// Level 6 (engine). The order and the arithmetic are Transformers' (_get_logits_processor): first
// penalties and constraints, then, when sampling, the warpers. One of the two entry points for what
// steers generation from outside (grammars); the other is the adapter id. Every processor is a
// function of the token history, so sequences can be forked, preempted and resumed freely.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/generation_config.h"

namespace qw {

class Tokenizer;

/// The tokens of one sequence so far.
struct TokenHistory {
  std::span<const int32_t> ids;  // prompt, then generated
  int64_t prompt_len = 0;
  uint64_t stream = 0;  // of random numbers: which of a request's answers it is

  int64_t size() const noexcept { return static_cast<int64_t>(ids.size()); }
  std::span<const int32_t> prompt() const { return ids.first(static_cast<size_t>(prompt_len)); }
  std::span<const int32_t> generated() const {
    return ids.subspan(static_cast<size_t>(prompt_len));
  }
};

/// One row of scores [vocab] under way. Once a warper has cut it down to few tokens, `live` lists
/// them, so that later passes cost O(live) instead of O(vocab).
class LogitsRow {
 public:
  explicit LogitsRow(std::span<float> values) : values_(values) {}

  std::span<float> values() noexcept { return values_; }
  std::span<const float> values() const noexcept { return values_; }
  float& operator[](int32_t id) noexcept { return values_[static_cast<size_t>(id)]; }
  bool is_sparse() const noexcept { return sparse_; }
  /// Every id that may be above -infinity, ascending. is_sparse() only.
  std::span<const int32_t> live() const noexcept { return live_; }

  /// Sets every value but those of `ids` (ascending) to -infinity.
  void keep_only(std::vector<int32_t> ids);
  /// The live ids and their values as a compact list: the row itself when it is not sparse.
  struct Compact {
    std::vector<int32_t> ids;  // empty: 0, 1, 2, ...
    std::vector<float> gathered;
    std::span<const float> values;
    int32_t id(size_t i) const { return ids.empty() ? static_cast<int32_t>(i) : ids[i]; }
  };
  Compact compact() const;

 private:
  std::span<float> values_;
  bool sparse_ = false;
  std::vector<int32_t> live_;
};

/// Of processors that a request brings (Request::processors), those of one request are used by one
/// thread at a time, whichever it is.
class LogitsProcessor {
 public:
  virtual ~LogitsProcessor() = default;
  /// Changes `row` in place. history.ids and the row's length are the caller's promise: every id
  /// that the processor was made with is below row.values().size().
  virtual void process(const TokenHistory& history, LogitsRow& row) const = 0;
  virtual std::string_view name() const = 0;
};

using ProcessorList = std::vector<std::shared_ptr<const LogitsProcessor>>;

/// The samplers of a request that change something, in the order in which they apply.
struct SamplerChain {
  std::vector<SamplerKind> penalties;  // those before any warper
  std::vector<SamplerKind> warpers;    // from the first warper on; penalties may be among them
};

/// Without sampling every penalty is among the first and there are no warpers, but where the
/// temperature is 0 and penalties come after warpers: then those warpers decide what is left to be
/// penalised, and what comes after the last penalty changes no choice.
SamplerChain sampler_chain(const GenerationConfig& config);

/// The processors of a request, in Transformers' order or its own (sampler_order).
struct LogitsPipeline {
  ProcessorList processors;  // penalties and constraints
  ProcessorList warpers;     // of sampler_chain(); the renormalisation comes last
  int64_t usable_vocab = 0;  // ids from here on are padding: always -infinity
  size_t n_biases = 0;       // so many processors come before the diversity penalty
  double diversity_penalty = 0;

  /// row <- the scores to choose from. Padding ids are masked first and last. Errors: those of the
  /// processors, and of check_scores, so that warpers meet numbers and -infinity only.
  /// chosen_by_earlier_groups: the tokens of this step that diverse beam search keeps away from.
  void apply(const TokenHistory& history, LogitsRow& row,
             std::span<const int32_t> chosen_by_earlier_groups = {}) const;
  void mask_padding(LogitsRow& row) const;
};

/// Throws Error{kInvalidArgument} naming the first score that is NaN or +infinity: parameters or a
/// request's own processors left the range of floats, and nothing can be chosen among such.
void check_scores(std::span<const float> scores, int64_t position);

/// prompt: what the "encoder" processors look at. max_length: the length at which a forced end
/// token comes (prompt included). extra: the request's own, after the configured ones. tokenizer:
/// for what is told as text (dry_sequence_breakers). Errors: invalid_argument, where it is null and
/// needed.
LogitsPipeline make_pipeline(const GenerationConfig& config, std::span<const int32_t> prompt,
                             int64_t max_length, int64_t usable_vocab,
                             std::span<const std::shared_ptr<LogitsProcessor>> extra = {},
                             const std::shared_ptr<const Tokenizer>& tokenizer = nullptr);

/// cond <- guidance_scale * (lp(cond) - lp(uncond)) + lp(uncond), lp = log_softmax
/// (UnbatchedClassifierFreeGuidanceLogitsProcessor). Both rows have the same length.
void apply_guidance(std::span<float> cond, std::span<float> uncond, double guidance_scale);

}  // namespace qw
