#include "engine/logits_process.h"

#include <algorithm>
#include <iterator>

#include "base/error.h"
#include "engine/dry_penalty.h"
#include "engine/logits_math.h"
#include "engine/logits_processors.h"
#include "engine/logits_warpers.h"

namespace qw {
namespace {

/// Tokens that every warper must leave: beams need one more than there are end tokens, so that a
/// beam can always go on.
int64_t tokens_to_keep(const GenerationConfig& config) {
  if (config.num_beams <= 1) return 1;
  const std::vector<int32_t> ends = config.ends();
  return ends.empty() ? 2 : static_cast<int64_t>(ends.size()) + 1;
}

void add_biases(const GenerationConfig& config, ProcessorList& out) {
  std::vector<SequenceBias> biases = config.sequence_bias;
  if (!biases.empty()) out.push_back(std::make_shared<SequenceBiasProcessor>(std::move(biases)));
  if (config.logit_bias.empty()) return;
  std::vector<SequenceBias> single;
  for (const auto& [id, bias] : config.logit_bias)
    single.push_back({{id}, bias});
  out.push_back(std::make_shared<SequenceBiasProcessor>(std::move(single)));
}

using TokenizerPtr = std::shared_ptr<const Tokenizer>;

void add_dry(const GenerationConfig& config, const TokenizerPtr& tokenizer, ProcessorList& out) {
  if (tokenizer == nullptr && !config.dry_sequence_breakers.empty()) {
    fail(ErrorKind::kInvalidArgument, "generation",
         "dry_sequence_breakers: expected a checkpoint with a tokenizer, got one without");
  }
  out.push_back(std::make_shared<DryPenalty>(
      DryOptions{config.dry_multiplier, config.dry_base, config.dry_allowed_length,
                 config.dry_penalty_last_n, config.dry_sequence_breakers},
      tokenizer));
}

/// Adds a sampler that is_penalty().
void add_penalty(SamplerKind kind, const GenerationConfig& config, const TokenizerPtr& tokenizer,
                 ProcessorList& out) {
  if (kind == SamplerKind::kDry) return add_dry(config, tokenizer, out);
  if (config.repetition_penalty != 1) {
    out.push_back(std::make_shared<RepetitionPenalty>(config.repetition_penalty));
  }
  if (config.presence_penalty != 0 || config.frequency_penalty != 0) {
    out.push_back(std::make_shared<PresenceFrequencyPenalty>(config.presence_penalty,
                                                             config.frequency_penalty));
  }
}

void add_repetition_rules(const GenerationConfig& config, const SamplerChain& chain,
                          std::span<const int32_t> prompt, const TokenizerPtr& tokenizer,
                          ProcessorList& out) {
  const std::vector<int32_t> prompt_ids(prompt.begin(), prompt.end());
  if (config.encoder_repetition_penalty != 1) {
    out.push_back(
        std::make_shared<EncoderRepetitionPenalty>(config.encoder_repetition_penalty, prompt_ids));
  }
  for (const SamplerKind kind : chain.penalties)
    add_penalty(kind, config, tokenizer, out);
  if (config.no_repeat_ngram_size > 0) {
    out.push_back(std::make_shared<NoRepeatNgram>(config.no_repeat_ngram_size));
  }
  if (config.encoder_no_repeat_ngram_size > 0) {
    out.push_back(std::make_shared<NoRepeatNgram>(config.encoder_no_repeat_ngram_size, prompt_ids));
  }
}

void add_lengths(const GenerationConfig& config, int64_t prompt_len, int64_t max_length,
                 const std::vector<int32_t>& eos, ProcessorList& out) {
  const std::vector<int32_t> ends = config.ends();
  if (config.min_length > 0 && !ends.empty()) {
    out.push_back(std::make_shared<MinLength>(config.min_length, ends));
  }
  if (config.min_new_tokens > 0 && !ends.empty()) {
    out.push_back(std::make_shared<MinLength>(prompt_len + config.min_new_tokens, ends));
  }
  if (config.forced_bos_token_id) {
    out.push_back(
        std::make_shared<ForcedTokens>(std::vector<int32_t>{*config.forced_bos_token_id}, 1));
  }
  if (!config.forced_eos_token_id.empty()) {
    out.push_back(std::make_shared<ForcedTokens>(config.forced_eos_token_id, max_length - 1));
  }
  if (config.remove_invalid_values) out.push_back(std::make_shared<RemoveInvalid>());
  if (config.exponential_decay_length_penalty && !eos.empty()) {
    const auto& [start, factor] = *config.exponential_decay_length_penalty;
    out.push_back(std::make_shared<ExponentialDecayLength>(start + prompt_len, factor, eos));
  }
}

void add_suppressions(const GenerationConfig& config, int64_t prompt_len, ProcessorList& out) {
  if (!config.suppress_tokens.empty()) {
    out.push_back(std::make_shared<SuppressTokens>(config.suppress_tokens));
  }
  if (!config.begin_suppress_tokens.empty()) {
    // After a forced first token the answer begins one later.
    const bool forced_first = prompt_len <= 1 && config.forced_bos_token_id.has_value();
    out.push_back(std::make_shared<SuppressTokens>(config.begin_suppress_tokens,
                                                   prompt_len + (forced_first ? 1 : 0)));
  }
}

/// What penalties among the warpers leave must be fit for those that follow.
class CheckScores : public LogitsProcessor {
 public:
  void process(const TokenHistory& history, LogitsRow& row) const override {
    check_scores(row.values(), history.size());
  }
  std::string_view name() const override { return "check_scores"; }
};

bool changes_anything(SamplerKind kind, const GenerationConfig& c) {
  switch (kind) {
    case SamplerKind::kPenalties:
      return c.repetition_penalty != 1 || c.presence_penalty != 0 || c.frequency_penalty != 0;
    case SamplerKind::kDry:
      return c.penalises_repetitions();
    case SamplerKind::kTopNSigma:
      return c.top_n_sigma > 0;
    case SamplerKind::kTemperature:
      return c.temperature != 1;
    case SamplerKind::kTopK:
      return c.top_k > 0;
    case SamplerKind::kTopP:
      return c.top_p < 1;
    case SamplerKind::kMinP:
      return c.min_p > 0;
    case SamplerKind::kTypicalP:
      return c.typical_p < 1;
    case SamplerKind::kEpsilonCutoff:
      return c.epsilon_cutoff > 0 && c.epsilon_cutoff < 1;
    case SamplerKind::kEtaCutoff:
      return c.eta_cutoff > 0 && c.eta_cutoff < 1;
    case SamplerKind::kXtc:
      return c.xtc_probability > 0 && c.xtc_threshold <= 0.5;
  }
  return false;
}

/// Adds the sampler at place i of `chain`.
void add_warper(const GenerationConfig& config, const std::vector<SamplerKind>& chain, size_t i,
                int64_t keep, const TokenizerPtr& tokenizer, ProcessorList& out) {
  switch (chain[i]) {
    case SamplerKind::kPenalties:
    case SamplerKind::kDry:
      add_penalty(chain[i], config, tokenizer, out);
      out.push_back(std::make_shared<CheckScores>());
      break;
    case SamplerKind::kTopNSigma:
      out.push_back(std::make_shared<TopNSigma>(config.top_n_sigma, keep));
      break;
    case SamplerKind::kTemperature: {
      const bool top_k_is_next = i + 1 < chain.size() && chain[i + 1] == SamplerKind::kTopK;
      out.push_back(std::make_shared<Temperature>(
          config.temperature, top_k_is_next ? std::max(config.top_k, keep) : 0));
      break;
    }
    case SamplerKind::kTopK:
      out.push_back(std::make_shared<TopK>(config.top_k, keep));
      break;
    case SamplerKind::kTopP:
      out.push_back(std::make_shared<TopP>(config.top_p, keep));
      break;
    case SamplerKind::kMinP:
      out.push_back(std::make_shared<MinP>(config.min_p, keep));
      break;
    case SamplerKind::kTypicalP:
      out.push_back(std::make_shared<TypicalP>(config.typical_p, keep));
      break;
    case SamplerKind::kEpsilonCutoff:
      out.push_back(std::make_shared<Cutoff>(Cutoff::Kind::kEpsilon, config.epsilon_cutoff, keep));
      break;
    case SamplerKind::kEtaCutoff:
      out.push_back(std::make_shared<Cutoff>(Cutoff::Kind::kEta, config.eta_cutoff, keep));
      break;
    case SamplerKind::kXtc:
      out.push_back(std::make_shared<Xtc>(config.xtc_probability, config.xtc_threshold, keep,
                                          config.seed, i));
      break;
  }
}

}  // namespace

SamplerChain sampler_chain(const GenerationConfig& config) {
  SamplerChain chain;
  for (const SamplerKind kind : config.samplers()) {
    if (!changes_anything(kind, config)) continue;
    const bool is_first = is_penalty(kind) && chain.warpers.empty();
    (is_first ? chain.penalties : chain.warpers).push_back(kind);
  }
  if (config.samples()) return chain;
  auto& warpers = chain.warpers;
  const bool is_greedy =
      config.temperature == 0 && config.num_beams == 1 && !config.is_contrastive();
  if (is_greedy) {
    while (!warpers.empty() && !is_penalty(warpers.back()))
      warpers.pop_back();
    return chain;
  }
  std::ranges::copy_if(warpers, std::back_inserter(chain.penalties), is_penalty);
  warpers.clear();
  return chain;
}

void LogitsRow::keep_only(std::vector<int32_t> ids) {
  std::vector<float> kept(ids.size());
  for (size_t i = 0; i < ids.size(); ++i)
    kept[i] = values_[static_cast<size_t>(ids[i])];
  if (sparse_) {
    for (const int32_t id : live_)
      values_[static_cast<size_t>(id)] = kMinusInfinity;
  } else {
    std::fill(values_.begin(), values_.end(), kMinusInfinity);
  }
  for (size_t i = 0; i < ids.size(); ++i)
    values_[static_cast<size_t>(ids[i])] = kept[i];
  sparse_ = true;
  live_ = std::move(ids);
}

LogitsRow::Compact LogitsRow::compact() const {
  Compact out;
  if (!sparse_) {
    out.values = values_;
    return out;
  }
  out.ids = live_;
  out.gathered.reserve(live_.size());
  for (const int32_t id : live_)
    out.gathered.push_back(values_[static_cast<size_t>(id)]);
  out.values = out.gathered;  // moving a Compact keeps the vector's memory, and so this span
  return out;
}

void check_scores(std::span<const float> scores, int64_t position) {
  const int64_t bad = find_no_score(scores);
  if (bad < 0) return;
  fail(
      ErrorKind::kInvalidArgument, "sampler",
      "scores: expected penalties and biases that leave them finite or -infinity, got {} for token "
      "{} (position {})",
      scores[static_cast<size_t>(bad)], bad, position);
}

void LogitsPipeline::mask_padding(LogitsRow& row) const {
  std::span<float> values = row.values();
  if (usable_vocab >= static_cast<int64_t>(values.size())) return;
  std::fill(values.begin() + usable_vocab, values.end(), kMinusInfinity);
}

void LogitsPipeline::apply(const TokenHistory& history, LogitsRow& row,
                           std::span<const int32_t> chosen_by_earlier_groups) const {
  mask_padding(row);
  for (size_t i = 0; i < processors.size(); ++i) {
    if (i == n_biases) apply_hamming_diversity(diversity_penalty, chosen_by_earlier_groups, row);
    processors[i]->process(history, row);
  }
  if (n_biases == processors.size()) {
    apply_hamming_diversity(diversity_penalty, chosen_by_earlier_groups, row);
  }
  mask_padding(row);  // a processor may have lifted them (remove_invalid_values)
  check_scores(row.values(), history.size());
  for (const auto& warper : warpers)
    warper->process(history, row);
}

LogitsPipeline make_pipeline(const GenerationConfig& config, std::span<const int32_t> prompt,
                             int64_t max_length, int64_t usable_vocab,
                             std::span<const std::shared_ptr<LogitsProcessor>> extra,
                             const std::shared_ptr<const Tokenizer>& tokenizer) {
  const std::vector<int32_t> eos = config.effective_eos();
  const auto prompt_len = static_cast<int64_t>(prompt.size());
  LogitsPipeline pipeline;
  pipeline.usable_vocab = usable_vocab;
  pipeline.diversity_penalty = config.diversity_penalty;
  add_biases(config, pipeline.processors);
  pipeline.n_biases = pipeline.processors.size();
  const SamplerChain chain = sampler_chain(config);
  add_repetition_rules(config, chain, prompt, tokenizer, pipeline.processors);
  if (auto bans = bad_word_biases(config.bad_words_ids, eos); !bans.empty()) {
    pipeline.processors.push_back(std::make_shared<SequenceBiasProcessor>(std::move(bans)));
  }
  add_lengths(config, prompt_len, max_length, eos, pipeline.processors);
  add_suppressions(config, prompt_len, pipeline.processors);
  for (const auto& processor : extra)
    pipeline.processors.push_back(processor);
  for (size_t i = 0; i < chain.warpers.size(); ++i)
    add_warper(config, chain.warpers, i, tokens_to_keep(config), tokenizer, pipeline.warpers);
  if (config.renormalize_logits) pipeline.warpers.push_back(std::make_shared<Renormalize>());
  return pipeline;
}

void apply_guidance(std::span<float> cond, std::span<float> uncond, double guidance_scale) {
  QW_CHECK(cond.size() == uncond.size());
  log_softmax(cond);
  log_softmax(uncond);
  const auto scale = static_cast<float>(guidance_scale);
  for (size_t i = 0; i < cond.size(); ++i)
    cond[i] = scale * (cond[i] - uncond[i]) + uncond[i];
}

}  // namespace qw
