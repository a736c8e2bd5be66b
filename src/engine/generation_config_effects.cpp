// Which parameters cannot change an answer, given the others.
//
// Level 6 (engine). Transformers warns of some of these (GenerationConfig.validate) and ignores the
// rest in silence; here each has its sentence. What contradicts itself is refused instead, see
// generation_config_checks.cpp.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "engine/generation_config.h"
#include "engine/logits_process.h"

namespace qw {
namespace {

using Names = std::initializer_list<std::string_view>;

/// Collects the sentences of one configuration.
class Notes {
 public:
  explicit Notes(const GenerationConfig& config) : config_(config) {}

  /// What the checkpoint recommends was not asked for, so it may go unused without a word.
  void add(Names names, std::string_view why) {
    static const GenerationConfig defaults;
    for (const std::string_view name : names) {
      const nlohmann::ordered_json value = config_.get(name);
      // None, or the likeliest alone: what is done anyway where nothing is drawn.
      const bool is_off = name == "top_k" && (value == 0 || value == 1);
      if (config_.source_of(name) == ParameterSource::kUser && value != defaults.get(name) &&
          !is_off)
        out_.push_back({std::string(name), value.dump(), std::string(why)});
    }
  }
  void add_draft_model(std::string_view why) {
    out_.push_back({"draft model", "", std::string(why)});
  }
  std::vector<GenerationConfig::Idle> take() { return std::move(out_); }

 private:
  const GenerationConfig& config_;
  std::vector<GenerationConfig::Idle> out_;
};

void note_dry(const GenerationConfig& c, Notes& notes) {
  if (c.dry_multiplier == 0) {
    notes.add({"dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"},
              "dry_multiplier is 0");
  } else if (c.dry_penalty_last_n == 0) {
    notes.add({"dry_multiplier"}, "dry_penalty_last_n is 0");
  }
}

/// What shapes the distribution that tokens are drawn from.
void note_warpers(const GenerationConfig& c, Notes& notes) {
  if (c.xtc_probability == 0) notes.add({"xtc_threshold"}, "xtc_probability is 0");
  if (!c.samples()) {
    const std::string_view why = c.temperature == 0 ? "temperature is 0" : "do_sample is false";
    // What comes before a penalty says which tokens there are to be penalised.
    if (sampler_chain(c).warpers.empty()) {
      notes.add({"top_n_sigma", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
                 "xtc_probability"},
                why);
      if (!c.is_contrastive()) notes.add({"top_k"}, why);
    }
    if (!c.do_sample && c.temperature != 0) notes.add({"temperature"}, why);
    if (c.top_k <= 1)
      notes.add({"penalty_alpha"},
                fmt::format("top_k is {}, of which nothing can be chosen", c.top_k));
    return;
  }
  notes.add({"penalty_alpha"}, "do_sample is true");
  if (c.xtc_threshold > 0.5)
    notes.add({"xtc_probability"},
              "xtc_threshold is above 0.5, which two tokens cannot both reach");
  if (c.epsilon_cutoff == 1) notes.add({"epsilon_cutoff"}, "only values below 1 cut");
  if (c.eta_cutoff == 1) notes.add({"eta_cutoff"}, "only values below 1 cut");
}

/// What belongs to one strategy. The seed is left out: its promise, the same answer again, is kept
/// where nothing is drawn too.
void note_strategy(const GenerationConfig& c, Notes& notes) {
  if (c.num_beams == 1) {
    // A constant added to all scores changes no choice between them, only sums of several.
    notes.add({"length_penalty", "early_stopping", "diversity_penalty", "renormalize_logits"},
              "num_beams is 1");
  } else if (c.num_beam_groups == 1) {
    notes.add({"diversity_penalty"}, "num_beam_groups is 1");
  }
  if (c.num_beam_groups == 1) notes.add({"pad_token_id"}, "no answer is padded");
  notes.add({"bos_token_id"}, "the prompt is taken as it is");
}

/// What only makes it faster.
void note_guesses(const GenerationConfig& c, bool has_draft_model, Notes& notes) {
  const Names of_lookup = {"prompt_lookup_num_tokens", "max_matching_ngram_size"};
  const Names of_draft = {"num_assistant_tokens", "assistant_confidence_threshold"};
  if (!c.can_guess_ahead()) {
    const std::string_view why = c.num_beams > 1      ? "beam search does not guess ahead"
                                 : c.is_contrastive() ? "contrastive search does not guess ahead"
                                                      : "guidance does not guess ahead";
    notes.add(of_lookup, why);
    notes.add(of_draft, why);
    notes.add({"num_assistant_tokens_schedule"}, why);
    if (has_draft_model) notes.add_draft_model(why);
    return;
  }
  if (c.prompt_lookup_num_tokens == 0)
    notes.add({"max_matching_ngram_size"}, "prompt_lookup_num_tokens is 0");
  if (!has_draft_model) {
    notes.add(of_draft, "there is no draft model");
    if (c.prompt_lookup_num_tokens == 0)
      notes.add({"num_assistant_tokens_schedule"},
                "there is no draft model, and prompt_lookup_num_tokens is 0");
  } else if (c.num_assistant_tokens == 0) {
    notes.add({"assistant_confidence_threshold"}, "num_assistant_tokens is 0");
    notes.add_draft_model("num_assistant_tokens is 0");
  }
}

/// When an answer begins and ends.
void note_lengths(const GenerationConfig& c, std::optional<int64_t> prompt_len, Notes& notes) {
  if (c.max_new_tokens) notes.add({"max_length"}, "max_new_tokens is set");
  if (c.stop_strings.empty() && c.stop_token_ids.empty())
    notes.add({"include_stop_str_in_output"}, "there is no stop string");
  const std::string_view why = c.ignore_eos ? "ignore_eos is true" : "there is no end token";
  if (c.eos_token_id.empty()) {
    notes.add({"ignore_eos"}, "there is no end token");
  } else if (c.ignore_eos) {
    notes.add({"eos_token_id"}, why);
  }
  if (c.effective_eos().empty()) notes.add({"exponential_decay_length_penalty"}, why);
  if (c.ends().empty()) {
    notes.add({"min_new_tokens", "min_length"}, why);
  } else if (prompt_len && c.min_length <= *prompt_len) {
    notes.add({"min_length"}, fmt::format("the length of the prompt alone is {}", *prompt_len));
  }
  if (prompt_len && *prompt_len > 1)
    notes.add({"forced_bos_token_id"}, "it follows a prompt of one token only");
}

}  // namespace

std::vector<GenerationConfig::Idle> GenerationConfig::idle(std::optional<int64_t> prompt_len,
                                                           bool has_draft_model) const {
  Notes notes(*this);
  note_dry(*this, notes);
  note_warpers(*this, notes);
  note_strategy(*this, notes);
  note_guesses(*this, has_draft_model, notes);
  note_lengths(*this, prompt_len, notes);
  return notes.take();
}

std::vector<std::string> GenerationConfig::without_effect(std::optional<int64_t> prompt_len,
                                                          bool has_draft_model) const {
  std::vector<std::string> out;
  for (const Idle& idle : idle(prompt_len, has_draft_model)) {
    const std::string what = idle.value.empty() ? idle.name : idle.name + " " + idle.value;
    out.push_back(fmt::format("{} has no effect: {}", what, idle.why));
  }
  return out;
}

}  // namespace qw
