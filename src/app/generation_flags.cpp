#include "app/generation_flags.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <iterator>

#include "base/error.h"

namespace qw::app {

namespace {

struct FlagHelp {
  std::string_view name, value, text;
};

/// One row per parameter of GenerationConfig::names().
constexpr FlagHelp kHelp[] = {
    {"max_new_tokens", "N", "Tokens to generate at most (unset: as far as the context goes)"},
    {"max_length", "N", "The same with the prompt counted; --max-new-tokens goes before it"},
    {"min_new_tokens", "N", "No end token before so many new tokens"},
    {"min_length", "N", "The same with the prompt counted"},
    {"include_stop_str_in_output", "BOOL", "Leave a stop text at the end of the answer"},
    {"do_sample", "BOOL", "Draw tokens at random; false: always the most likely one"},
    {"num_beams", "N", "Beam search over so many beams (1: none)"},
    {"num_beam_groups", "N", "Groups of beams that avoid each other's tokens"},
    {"diversity_penalty", "X", "How much a group avoids the tokens of those before it"},
    {"length_penalty", "X", "A beam's score is its log-probability / length^X"},
    {"early_stopping", "WHEN", "When beam search ends: true, false or never"},
    {"num_return_sequences", "N", "Answers to one prompt, sampled or from beams"},
    {"penalty_alpha", "X", "Contrastive search, with --top-k above 1; 0: none"},
    {"guidance_scale", "X", "Classifier-free guidance; 1: none"},
    {"prompt_lookup_num_tokens", "N", "Guess up to N tokens a step from the text; only faster"},
    {"max_matching_ngram_size", "N", "How long an end of the text prompt lookup looks up"},
    {"num_assistant_tokens", "N", "Tokens a step that the draft model guesses at most"},
    {"num_assistant_tokens_schedule", "HOW",
     "How many guesses a step: heuristic (as many as pay), heuristic_transient, constant"},
    {"assistant_confidence_threshold", "X",
     "End a draft where the draft model gives its guess less; 0: do not"},
    {"top_n_sigma", "X", "Drop logits more than X standard deviations below the largest; 0: none"},
    {"temperature", "X", "Logits are divided by X; 0: always the most likely token"},
    {"top_k", "N", "Draw from the N most likely tokens; 0: all"},
    {"top_p", "X", "Draw from the most likely tokens that together reach X"},
    {"min_p", "X", "Drop tokens less likely than X times the most likely one"},
    {"typical_p", "X", "Draw from the most typical tokens that together reach X"},
    {"epsilon_cutoff", "X", "Drop tokens less likely than X; 0: none"},
    {"eta_cutoff", "X", "The same, with a limit that follows the entropy; 0: none"},
    {"xtc_probability", "X", "How often all of the top choices but the least likely are dropped"},
    {"xtc_threshold", "X", "What makes a token a top choice"},
    {"sampler_order", "NAME,...",
     "Apply samplers in this order (penalties, dry, top_n_sigma, temperature,"
     " top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff, xtc)"},
    {"repetition_penalty", "X", "Make tokens of prompt and answer less likely (above 1)"},
    {"encoder_repetition_penalty", "X", "Make tokens of the prompt more likely (above 1)"},
    {"presence_penalty", "X", "Taken from logits of tokens that the answer holds"},
    {"frequency_penalty", "X", "The same, times how often it holds them"},
    {"dry_multiplier", "X",
     "Taken from the logit of a token that would go on with a repetition; 0: none"},
    {"dry_base", "X", "How much more for each further token of the repetition"},
    {"dry_allowed_length", "N",
     "Repetitions of so many tokens cost the multiplier alone, shorter ones nothing"},
    {"dry_penalty_last_n", "N", "Look for repetitions in so many tokens; -1: all"},
    {"dry_sequence_breakers", "[TEXT,...]", "Texts that no repetition reaches over"},
    {"no_repeat_ngram_size", "N", "No N tokens in a row twice; 0: no such rule"},
    {"encoder_no_repeat_ngram_size", "N", "No N tokens in a row that the prompt holds; 0: no rule"},
    {"bad_words_ids", "[[ID,...],...]", "Sequences of tokens that must not be said"},
    {"force_words_ids", "[[ID,...],...]", "Sequences that must be said (beam search)"},
    {"sequence_bias", "[[[ID,...],X],...]", "Added to the logit that completes a sequence"},
    {"logit_bias", "{\"ID\":X,...}", "Added to the logit of a token"},
    {"suppress_tokens", "[ID,...]", "Tokens that must not be said"},
    {"begin_suppress_tokens", "[ID,...]", "Tokens that must not come first"},
    {"forced_bos_token_id", "ID", "The first token of the answer"},
    {"forced_eos_token_id", "ID", "The last token, where the maximal length is reached"},
    {"exponential_decay_length_penalty", "[N,X]", "From N new tokens on, favour the end, by X^i"},
    {"remove_invalid_values", "BOOL", "Replace NaN and infinity in logits; false: an error"},
    {"renormalize_logits", "BOOL", "Normalise after all processors"},
    {"eos_token_id", "ID,...", "Tokens that end the answer"},
    {"stop_token_ids", "ID,...", "More of them, which --ignore-eos leaves in force"},
    {"pad_token_id", "ID", "The padding token"},
    {"bos_token_id", "ID", "The token that begins a text"},
    {"logprobs", "N", "Report log-probabilities, and the N most likely tokens"},
    {"prompt_logprobs", "N", "The same of the prompt's tokens"},
};

const FlagHelp& help_of(std::string_view name) {
  const auto* row = std::ranges::find(kHelp, name, &FlagHelp::name);
  QW_CHECK(row != std::end(kHelp), "a line of help for {}", name);
  return *row;
}

// "top_k" -> "--top-k", with a short form where people expect one.
std::string flag_names(const std::string& name) {
  std::string flag = "--" + name;
  std::replace(flag.begin(), flag.end(), '_', '-');
  if (name == "max_new_tokens") flag = "-n," + flag;
  if (name == "num_return_sequences") flag += ",--n";
  if (name == "prompt_lookup_num_tokens") flag += ",--prompt-lookup";
  return flag;
}

}  // namespace

bool GenerationFlags::given(std::string_view name) const {
  return std::any_of(values.begin(), values.end(), [&](const auto& entry) {
    return entry.first == name && !entry.second.empty();
  });
}

GenerationConfig GenerationFlags::over(GenerationConfig config) const {
  for (const auto& [name, texts] : values) {
    for (const std::string& text : texts)
      config.set_text(name, text, ParameterSource::kUser);
  }
  for (const std::string& text : stop)
    config.set_text("stop_strings", text, ParameterSource::kUser);
  if (ignore_eos) config.set_text("ignore_eos", "true", ParameterSource::kUser);
  // A temperature (or another sampling parameter) given by hand asks for sampling.
  const bool asks_for_sampling = given("temperature") || given("top_k") || given("top_p") ||
                                 given("min_p") || given("typical_p") || given("top_n_sigma") ||
                                 given("xtc_probability");
  if (asks_for_sampling && !given("do_sample") && !config.do_sample && config.penalty_alpha == 0) {
    config.set_text("do_sample", "true", ParameterSource::kUser);
  }
  return config;
}

std::shared_ptr<GenerationFlags> add_generation_flags(CLI::App& app) {
  auto flags = std::make_shared<GenerationFlags>();
  const auto& names = GenerationConfig::names();
  flags->values.reserve(names.size());  // options point into it
  for (const std::string& name : names) {
    if (name == "stop_strings" || name == "ignore_eos" || name == "seed") continue;
    flags->values.emplace_back(name, std::vector<std::string>{});
    const FlagHelp& help = help_of(name);
    app.add_option(flag_names(name), flags->values.back().second, std::string(help.text))
        ->group("Generation")
        ->expected(1)
        ->allow_extra_args(false)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
        ->type_name(std::string(help.value));
  }
  app.add_option("--stop", flags->stop, "Text that ends the answer; may be repeated")
      ->group("Generation")
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", flags->ignore_eos, "Go on after end tokens")->group("Generation");
  return flags;
}

}  // namespace qw::app
