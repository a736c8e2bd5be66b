#include "engine/sampler.h"

#include <cmath>

#include "base/error.h"
#include "base/rng.h"
#include "engine/logits_math.h"

namespace qw {
namespace {

[[noreturn]] void fail_all_banned() {
  fail(ErrorKind::kInvalidArgument, "sampler",
       "next token: expected at least one token that the parameters allow, got none "
       "(bad_words_ids, suppress_tokens, biases and minimum lengths together ban all)");
}

}  // namespace

void check_finite(std::span<const float> logits, int64_t position) {
  const int64_t bad = find_not_finite(logits);
  if (bad < 0) return;
  fail(ErrorKind::kCorrupt, "sampler",
       "logits: expected finite numbers, got {} for token {} (position {})",
       logits[static_cast<size_t>(bad)], bad, position);
}

void admit_logits(std::span<float> logits, const GenerationConfig& config, int64_t position) {
  if (config.remove_invalid_values) {
    remove_not_finite(logits);
  } else {
    check_finite(logits, position);
  }
}

int32_t choose_greedy(const LogitsRow& row) {
  const LogitsRow::Compact compact = row.compact();
  const int32_t best = argmax(compact.values);
  if (best < 0) fail_all_banned();
  return compact.id(static_cast<size_t>(best));
}

int32_t choose_sampled(const LogitsRow& row, double u) {
  const LogitsRow::Compact compact = row.compact();
  const int32_t best = argmax(compact.values);
  if (best < 0) fail_all_banned();
  const float max = compact.values[static_cast<size_t>(best)];
  // Kept by each thread: fresh memory for a whole vocabulary costs as much as the arithmetic.
  thread_local Exponentials terms;
  exponentials(compact.values, max, terms);
  return compact.id(find_cumulated(terms, u));
}

int32_t choose_token(const LogitsRow& row, const GenerationConfig& config, uint64_t stream,
                     int64_t position) {
  if (!config.samples()) return choose_greedy(row);
  return choose_sampled(row, random_uniform(config.seed, stream, static_cast<uint64_t>(position)));
}

double probability_of(const LogitsRow& row, int32_t id) {
  const LogitsRow::Compact compact = row.compact();
  const float value = row.values()[static_cast<size_t>(id)];
  return std::exp(static_cast<double>(value) - log_sum_exp(compact.values));
}

TokenLogprobs token_logprobs(std::span<const float> logits, int32_t chosen, int64_t n_top) {
  const double log_sum = log_sum_exp(logits);
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(logits[static_cast<size_t>(id)]) - log_sum);
  };
  TokenLogprobs out;
  out.chosen = {chosen, logprob(chosen)};
  out.rank = rank_of(logits, static_cast<size_t>(chosen));
  for (const int32_t id : top_indices(logits, n_top))
    out.top.push_back({id, logprob(id)});
  return out;
}

}  // namespace qw
