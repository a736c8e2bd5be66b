// Every parameter of generation under Transformers' names, and where each value came from.
//
// Level 6 (engine). Defaults are Transformers' own; a checkpoint's generation_config.json is read
// over them, the user's choices over that, and applied() tells which is which. Nothing is clamped:
// a value out of range is an error that names the field. Source: Transformers' GenerationConfig.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/sampler_order.h"

namespace qw {

enum class EarlyStopping { kFalse, kTrue, kNever };

/// How many guesses a step gets: always as many as there may be; as many as pay, by what earlier
/// guesses were worth; or the same with each answer's own guesses only.
enum class AssistantSchedule { kConstant, kHeuristic, kHeuristicTransient };

/// Where the value of a parameter came from.
enum class ParameterSource { kDefault, kFile, kUser };

/// A token sequence and what is added to the logit of its last token once the others stand.
struct SequenceBias {
  std::vector<int32_t> ids;
  float bias = 0;
  bool operator==(const SequenceBias&) const = default;
};

/// A word that must be said: one of these token sequences, none of which begins another.
struct ForcedWord {
  std::vector<std::vector<int32_t>> forms;
  bool operator==(const ForcedWord&) const = default;
};

struct GenerationConfig {
  // How long. Unset maxima mean: as far as the context goes.
  std::optional<int64_t> max_new_tokens;  // new tokens; goes before max_length
  std::optional<int64_t> max_length;      // prompt included
  int64_t min_new_tokens = 0;
  int64_t min_length = 0;  // prompt included
  std::vector<std::string> stop_strings;
  static constexpr size_t kMaxStopBytes = 16384;  // of all of them
  bool include_stop_str_in_output = false;  // Transformers keeps the stop string, servers cut it
  bool ignore_eos = false;                  // go on after end tokens (benchmarks)

  // Which strategy.
  bool do_sample = false;
  int64_t num_beams = 1;
  int64_t num_beam_groups = 1;
  double diversity_penalty = 0;
  double length_penalty = 1;
  EarlyStopping early_stopping = EarlyStopping::kFalse;
  int64_t num_return_sequences = 1;
  double penalty_alpha = 0;   // contrastive search when > 0 and top_k > 1 and not do_sample
  double guidance_scale = 1;  // above 0; classifier-free guidance when not 1
  /// Guess up to so many tokens per step from what the sequence says already (0: none). Changes the
  /// speed, no token. The end that is looked up: Transformers takes 2 tokens; more guess better.
  int64_t prompt_lookup_num_tokens = 0;
  int64_t max_matching_ngram_size = 8;
  /// The same by a draft model, where there is one and prompt lookup finds nothing. A guess that
  /// the draft model gives less than assistant_confidence_threshold ends a draft.
  int64_t num_assistant_tokens = 20;
  AssistantSchedule num_assistant_tokens_schedule = AssistantSchedule::kHeuristic;
  double assistant_confidence_threshold = 0;
  uint64_t seed = 0;

  // Warpers (do_sample only), in the order in which they apply. temperature 0 means greedy.
  double top_n_sigma = 0;  // 0: off
  double temperature = 1;
  int64_t top_k = 50;  // 0: off
  double top_p = 1;
  double min_p = 0;
  double typical_p = 1;
  double epsilon_cutoff = 0;
  double eta_cutoff = 0;
  double xtc_probability = 0;
  double xtc_threshold = 0.1;
  /// Another order: those named apply in it, each as often as it is named; then the others, in
  /// their own. Penalties that are not named come first, as they do where this is empty.
  std::vector<SamplerKind> sampler_order;
  static constexpr size_t kMaxSamplerOrder = 64;

  // Processors (always).
  double repetition_penalty = 1;
  double encoder_repetition_penalty = 1;
  double presence_penalty = 0;   // generated tokens only (OpenAI's)
  double frequency_penalty = 0;  // generated tokens only (OpenAI's)
  /// "Don't repeat yourself" (engine/dry_penalty.h): off at 0, and where dry_penalty_last_n is 0.
  double dry_multiplier = 0;
  double dry_base = 1.75;
  int64_t dry_allowed_length = 2;
  int64_t dry_penalty_last_n = 64;  // -1: the whole text
  std::vector<std::string> dry_sequence_breakers = {"\n", ":", "\"", "*"};
  static constexpr size_t kMaxDryBreakers = 64, kMaxDryBreakerBytes = 256;
  int64_t no_repeat_ngram_size = 0;
  int64_t encoder_no_repeat_ngram_size = 0;
  std::vector<std::vector<int32_t>> bad_words_ids;
  /// Constrained beam search: words that must be said, [[ids], ...], or [[[ids], [ids]], ...] where
  /// any one form will do.
  std::vector<ForcedWord> force_words_ids;
  std::vector<SequenceBias> sequence_bias;
  std::vector<std::pair<int32_t, float>> logit_bias;  // (id, added); OpenAI's
  std::vector<int32_t> suppress_tokens;
  std::vector<int32_t> begin_suppress_tokens;
  std::optional<int32_t> forced_bos_token_id;
  std::vector<int32_t> forced_eos_token_id;
  std::optional<std::pair<int64_t, double>> exponential_decay_length_penalty;  // (start, factor)
  bool remove_invalid_values = false;
  bool renormalize_logits = false;

  // Special tokens.
  std::vector<int32_t> eos_token_id;  // every one ends the answer; duplicates are kept
  /// These end the answer, too, whatever ignore_eos says. They are words like any other: grammars
  /// and bans know nothing of them (vLLM's name).
  std::vector<int32_t> stop_token_ids;
  std::optional<int32_t> pad_token_id, bos_token_id;

  // What to report. nullopt: nothing; N: the chosen token and the N most likely.
  std::optional<int64_t> logprobs, prompt_logprobs;

  /// Sets one parameter by Transformers' name. JSON null leaves the default. Unknown names and
  /// values of the wrong type or out of range are Error{kInvalidArgument}, naming the field.
  void set(std::string_view name, const nlohmann::ordered_json& value, ParameterSource source);
  /// The same from a command-line value: "0.7", "true", "never", "[[1,2],[3]]", "151645,151643";
  /// stop_strings takes the text itself (each call adds one).
  void set_text(std::string_view name, std::string_view value, ParameterSource source);
  /// One parameter's value; null where it is unset.
  nlohmann::ordered_json get(std::string_view name) const;
  /// What set() takes for it, as a JSON schema: type and range.
  static nlohmann::ordered_json schema(std::string_view name);
  /// Names that set() and set_text() know, in the order of this struct.
  static const std::vector<std::string>& names();

  /// Reads a generation_config.json over this one, as ParameterSource::kFile. `file` names it in
  /// errors. Returns warnings: fields that are unknown, or known but without effect here, each in
  /// one sentence. Errors: corrupt (not JSON, wrong type), invalid_argument (out of range).
  std::vector<std::string> read_json(std::string_view text, std::string_view file);

  /// Checks every range and combination for a vocabulary of `vocab` ids (0: unknown).
  /// Error{kInvalidArgument} naming the field, the accepted range and the value.
  void validate(int64_t vocab) const;

  /// {"temperature": {"value": 0.7, "source": "file"}, ...}: every parameter that is not at its
  /// default, and those that the file or the user set to it.
  nlohmann::ordered_json applied() const;
  ParameterSource source_of(std::string_view name) const;

  /// One sentence for each parameter that the user set and that cannot change the answer, given the
  /// others ("temperature 0.7 has no effect: do_sample is false") and the prompt's length, where it
  /// is known. The file's values are not the user's; a draft model is.
  std::vector<std::string> without_effect(std::optional<int64_t> prompt_len = std::nullopt,
                                          bool has_draft_model = false) const;
  /// The same in parts, for who calls parameters by other names.
  struct Idle {
    std::string name;   // of the parameter, or "draft model"
    std::string value;  // as JSON; "" of a draft model
    std::string why;
  };
  std::vector<Idle> idle(std::optional<int64_t> prompt_len, bool has_draft_model) const;

  /// Whether tokens are drawn at random: do_sample and temperature != 0.
  bool samples() const { return do_sample && temperature != 0; }
  /// Whether the strategy is contrastive search.
  bool is_contrastive() const {
    return penalty_alpha > 0 && top_k > 1 && num_beams == 1 && !samples();
  }
  /// Whether tokens can be guessed ahead: they are chosen one after the other, from one sequence.
  bool can_guess_ahead() const {
    return num_beams == 1 && !is_contrastive() && guidance_scale == 1;
  }
  bool penalises_repetitions() const { return dry_multiplier > 0 && dry_penalty_last_n != 0; }
  bool is_eos(int32_t id) const;
  bool is_stop_token(int32_t id) const;
  /// Whether the answer ends with this token.
  bool ends_at(int32_t id) const { return is_eos(id) || is_stop_token(id); }
  /// Every sampler, in the order in which they apply.
  std::vector<SamplerKind> samplers() const;
  /// The end tokens that count: none where they are to be ignored.
  std::vector<int32_t> effective_eos() const;
  /// All tokens that end the answer, each once.
  std::vector<int32_t> ends() const;

 private:
  std::map<std::string, ParameterSource, std::less<>> sources_;
};

std::string_view name_of(ParameterSource source);

}  // namespace qw
