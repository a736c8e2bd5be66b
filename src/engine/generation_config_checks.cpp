#include "engine/generation_config_checks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "base/error.h"

namespace qw {
namespace {

constexpr int64_t kMaxTokensAsked = int64_t{1} << 31;  // no context is longer
constexpr int64_t kMaxSequences = 1024;                // beams, answers: beyond is a mistake
constexpr size_t kMaxStopStrings = 1024;
constexpr int64_t kMaxForcedForms = 256;  // of all words; every beam looks for them at every step

/// Of what logits are multiplied or divided by. Floats and their results go on far beyond, but what
/// any published setting asks for lies well inside.
constexpr double kSmallestFactor = 1e-6, kLargestFactor = 1e6;

constexpr double kHuge = 1e9;
constexpr auto kRanges = std::to_array<ParameterRange>({
    {"max_new_tokens", 1, double{kMaxTokensAsked}},
    {"max_length", 1, double{kMaxTokensAsked}},
    {"min_new_tokens", 0, double{kMaxTokensAsked}},
    {"min_length", 0, double{kMaxTokensAsked}},
    {"num_beams", 1, double{kMaxSequences}},
    {"num_beam_groups", 1, double{kMaxSequences}},
    {"num_return_sequences", 1, double{kMaxSequences}},
    {"prompt_lookup_num_tokens", 0, 1024},
    {"max_matching_ngram_size", 1, 1024},
    {"num_assistant_tokens", 0, 1024},
    {"top_k", 0, double{kMaxTokensAsked}},
    {"top_p", 0, 1},
    {"min_p", 0, 1},
    {"assistant_confidence_threshold", 0, 1},
    {"epsilon_cutoff", 0, 1},
    {"eta_cutoff", 0, 1},
    {"dry_multiplier", 0, 1e6},
    {"dry_base", 1, 1000},
    {"dry_allowed_length", 0, double{kMaxTokensAsked}},
    {"dry_penalty_last_n", -1, double{kMaxTokensAsked}},
    {"top_n_sigma", 0, 1000},
    {"xtc_probability", 0, 1},
    {"xtc_threshold", 0, 1},
    {"presence_penalty", -kHuge, kHuge},
    {"frequency_penalty", -kHuge, kHuge},
    {"diversity_penalty", 0, kHuge},
    {"length_penalty", -1000, 1000},
    {"penalty_alpha", 0, 1},
    {"no_repeat_ngram_size", 0, double{kMaxTokensAsked}},
    {"encoder_no_repeat_ngram_size", 0, double{kMaxTokensAsked}},
    {"logprobs", 0, double{kMaxTokensAsked}},
    {"prompt_logprobs", 0, double{kMaxTokensAsked}},
    {"repetition_penalty", kSmallestFactor, kLargestFactor},
    {"encoder_repetition_penalty", kSmallestFactor, kLargestFactor},
    {"typical_p", 0, 1, true},
    {"guidance_scale", 0, 1000, true},
    {"temperature", kSmallestFactor, kLargestFactor, false, true},
});

bool is_factor(double value) {
  return value >= kSmallestFactor && value <= kLargestFactor;  // not NaN
}

void in_range(std::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return;
  fail(ErrorKind::kInvalidArgument, "generation", "{}: expected {} to {}, got {}", name, low, high,
       value);
}

void in_range(std::string_view name, double value, double low, double high) {
  if (value >= low && value <= high) return;  // NaN fails too
  fail(ErrorKind::kInvalidArgument, "generation", "{}: expected {} to {}, got {}", name, low, high,
       value);
}

const ParameterRange& known_range(std::string_view name) {
  const ParameterRange* range = range_of(name);
  QW_CHECK(range != nullptr, "no range of {}", name);
  return *range;
}

void in_range(std::string_view name, int64_t value) {
  const ParameterRange& range = known_range(name);
  in_range(name, value, static_cast<int64_t>(range.low), static_cast<int64_t>(range.high));
}
void in_range(std::string_view name, double value) {
  const ParameterRange& range = known_range(name);
  in_range(name, value, range.low, range.high);
}

void positive(std::string_view name, double value, double high) {
  if (value > 0 && value <= high) return;
  fail(ErrorKind::kInvalidArgument, "generation",
       "{}: expected a number above 0 and up to {}, got {}", name, high, value);
}
void positive(std::string_view name, double value) {
  positive(name, value, known_range(name).high);
}

void check_dry(const GenerationConfig& c) {
  in_range("dry_multiplier", c.dry_multiplier);
  in_range("dry_base", c.dry_base);
  in_range("dry_allowed_length", c.dry_allowed_length);
  in_range("dry_penalty_last_n", c.dry_penalty_last_n);
  in_range("dry_sequence_breakers (how many)", std::ssize(c.dry_sequence_breakers), 0,
           static_cast<int64_t>(GenerationConfig::kMaxDryBreakers));
  for (const std::string& breaker : c.dry_sequence_breakers) {
    in_range("dry_sequence_breakers (bytes of each)", std::ssize(breaker), 1,
             static_cast<int64_t>(GenerationConfig::kMaxDryBreakerBytes));
  }
}

void check_ids(std::string_view name, const std::vector<int32_t>& ids, int64_t vocab) {
  check_token_ids("generation", name, ids, vocab);
}

void check_sequence(std::string_view name, const std::vector<int32_t>& ids, int64_t vocab) {
  if (ids.empty())
    fail(ErrorKind::kInvalidArgument, "generation", "{}: expected lists that are not empty, got []",
         name);
  check_ids(name, ids, vocab);
}

void check_forced_word(const ForcedWord& word, int64_t vocab) {
  in_range("force_words_ids (forms of a word)", std::ssize(word.forms), 1, kMaxForcedForms);
  for (const std::vector<int32_t>& form : word.forms) {
    check_sequence("force_words_ids", form, vocab);
    const auto begins = [&](const std::vector<int32_t>& other) {
      return &form != &other && form.size() <= other.size() &&
             std::equal(form.begin(), form.end(), other.begin());
    };
    if (std::any_of(word.forms.begin(), word.forms.end(), begins)) {
      fail(ErrorKind::kInvalidArgument, "generation",
           "force_words_ids: expected forms of a word of which none begins another, got [{}]",
           fmt::join(form, ","));
    }
  }
}

}  // namespace

const ParameterRange* range_of(std::string_view name) {
  const auto* it = std::ranges::find(kRanges, name, &ParameterRange::name);
  return it == kRanges.end() ? nullptr : it;
}

void check_token_ids(std::string_view component, std::string_view name,
                     std::span<const int32_t> ids, int64_t vocab) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && (vocab == 0 || ids[i] < vocab)) continue;
    const std::string range = vocab == 0 ? "from 0" : fmt::format("from 0 to {}", vocab - 1);
    fail(ErrorKind::kInvalidArgument, component, "{}: expected token ids {}, got {} (at {})", name,
         range, ids[i], i);
  }
}

void check_lengths(const GenerationConfig& c) {
  if (c.max_new_tokens) in_range("max_new_tokens", *c.max_new_tokens);
  if (c.max_length) in_range("max_length", *c.max_length);
  in_range("min_new_tokens", c.min_new_tokens);
  in_range("min_length", c.min_length);
  in_range("num_beams", c.num_beams);
  in_range("num_beam_groups", c.num_beam_groups);
  in_range("num_return_sequences", c.num_return_sequences);
  in_range("prompt_lookup_num_tokens", c.prompt_lookup_num_tokens);
  in_range("max_matching_ngram_size", c.max_matching_ngram_size);
  in_range("num_assistant_tokens", c.num_assistant_tokens);
  if (c.stop_strings.size() > kMaxStopStrings) {
    in_range("stop_strings (how many)", static_cast<int64_t>(c.stop_strings.size()), 0,
             static_cast<int64_t>(kMaxStopStrings));
  }
  size_t n_bytes = 0;
  for (const std::string& stop : c.stop_strings) {
    if (stop.empty())
      fail(ErrorKind::kInvalidArgument, "generation",
           "stop_strings: expected strings that are not empty, got \"\"");
    n_bytes += stop.size();
  }
  in_range("stop_strings (bytes in all)", static_cast<int64_t>(n_bytes), 0,
           static_cast<int64_t>(GenerationConfig::kMaxStopBytes));
}

void check_distribution(const GenerationConfig& c) {
  if (c.temperature != 0 && !is_factor(c.temperature)) {
    fail(ErrorKind::kInvalidArgument, "generation", "temperature: expected 0 or {} to {}, got {}",
         kSmallestFactor, kLargestFactor, c.temperature);
  }
  in_range("top_k", c.top_k);
  in_range("top_p", c.top_p);
  in_range("min_p", c.min_p);
  positive("typical_p", c.typical_p);
  in_range("assistant_confidence_threshold", c.assistant_confidence_threshold);
  in_range("epsilon_cutoff", c.epsilon_cutoff);
  in_range("eta_cutoff", c.eta_cutoff);
  check_dry(c);
  in_range("top_n_sigma", c.top_n_sigma);
  in_range("xtc_probability", c.xtc_probability);
  in_range("xtc_threshold", c.xtc_threshold);
  in_range("sampler_order (how many)", std::ssize(c.sampler_order), 0,
           static_cast<int64_t>(GenerationConfig::kMaxSamplerOrder));
  in_range("repetition_penalty", c.repetition_penalty);
  in_range("encoder_repetition_penalty", c.encoder_repetition_penalty);
  in_range("presence_penalty", c.presence_penalty);
  in_range("frequency_penalty", c.frequency_penalty);
  in_range("diversity_penalty", c.diversity_penalty);
  in_range("length_penalty", c.length_penalty);
  in_range("penalty_alpha", c.penalty_alpha);
  // 0 would leave the prompt out, less would lead away from it; 1 is no guidance.
  positive("guidance_scale", c.guidance_scale);
  in_range("no_repeat_ngram_size", c.no_repeat_ngram_size);
  in_range("encoder_no_repeat_ngram_size", c.encoder_no_repeat_ngram_size);
  if (c.logprobs) in_range("logprobs", *c.logprobs);
  if (c.prompt_logprobs) in_range("prompt_logprobs", *c.prompt_logprobs);
  if (c.exponential_decay_length_penalty) {
    in_range("exponential_decay_length_penalty (start)", c.exponential_decay_length_penalty->first,
             0, kMaxTokensAsked);
    positive("exponential_decay_length_penalty (factor)",
             c.exponential_decay_length_penalty->second, 1e6);
  }
}

void check_all_ids(const GenerationConfig& c, int64_t vocab) {
  for (const auto& ids : c.bad_words_ids)
    check_sequence("bad_words_ids", ids, vocab);
  for (const ForcedWord& word : c.force_words_ids)
    check_forced_word(word, vocab);
  for (const auto& bias : c.sequence_bias) {
    check_sequence("sequence_bias", bias.ids, vocab);
    if (!std::isfinite(bias.bias))
      in_range("sequence_bias", static_cast<double>(bias.bias), -1e38, 1e38);
  }
  for (const auto& [id, bias] : c.logit_bias) {
    check_ids("logit_bias", {id}, vocab);
    if (!std::isfinite(bias)) in_range("logit_bias", static_cast<double>(bias), -1e38, 1e38);
  }
  check_ids("suppress_tokens", c.suppress_tokens, vocab);
  check_ids("begin_suppress_tokens", c.begin_suppress_tokens, vocab);
  check_ids("forced_eos_token_id", c.forced_eos_token_id, vocab);
  check_ids("eos_token_id", c.eos_token_id, vocab);
  check_ids("stop_token_ids", c.stop_token_ids, vocab);
  if (c.forced_bos_token_id) check_ids("forced_bos_token_id", {*c.forced_bos_token_id}, vocab);
}

void check_combinations(const GenerationConfig& c) {
  const auto refuse = [](std::string_view sentence) {
    fail(ErrorKind::kInvalidArgument, "generation", "{}", sentence);
  };
  if (c.max_new_tokens && c.min_new_tokens > *c.max_new_tokens) {
    in_range("min_new_tokens", c.min_new_tokens, 0, *c.max_new_tokens);
  }
  if (c.num_beams % c.num_beam_groups != 0) {
    fail(ErrorKind::kInvalidArgument, "generation",
         "num_beam_groups: expected a divisor of num_beams ({}), got {}", c.num_beams,
         c.num_beam_groups);
  }
  if (c.num_beam_groups > 1 && c.diversity_penalty == 0) {
    refuse("diversity_penalty: expected a number above 0 with num_beam_groups > 1, got 0");
  }
  if (c.num_beam_groups > 1 && c.samples())
    refuse("num_beam_groups: expected do_sample false, got true");
  if (c.num_beams == 1 && !c.samples() && c.num_return_sequences > 1) {
    fail(ErrorKind::kInvalidArgument, "generation",
         "num_return_sequences: expected 1 without sampling and without beams (all answers would "
         "be the same), got {}",
         c.num_return_sequences);
  }
  if (c.num_beams > 1) {
    in_range("num_return_sequences", c.num_return_sequences, 1, c.num_beams);
    if (c.guidance_scale != 1) refuse("guidance_scale: expected num_beams 1, got beam search");
    if (c.penalty_alpha > 0) refuse("penalty_alpha: expected num_beams 1, got beam search");
  }
  if (c.penalty_alpha > 0 && c.guidance_scale != 1)
    refuse(
        "guidance_scale: expected 1 with contrastive search (penalty_alpha above 0), got another");
  if (!c.force_words_ids.empty()) {
    if (c.num_beams == 1)
      refuse(
          "num_beams: expected at least 2 with force_words_ids (constrained beam search), got 1");
    if (c.num_beam_groups > 1) refuse("num_beam_groups: expected 1 with force_words_ids, got more");
    if (c.samples()) refuse("do_sample: expected false with force_words_ids, got true");
    int64_t n_forms = 0;
    for (const ForcedWord& word : c.force_words_ids)
      n_forms += std::ssize(word.forms);
    in_range("force_words_ids (words and forms)", n_forms, 1, kMaxForcedForms);
  }
}

}  // namespace qw
