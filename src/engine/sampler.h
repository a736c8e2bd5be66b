// From a row of scores to one token, and to log-probabilities.
//
// Level 6 (engine). Greedy takes the lowest id on ties (torch.argmax's first maximum). Sampling
// inverts the cumulative distribution in the order of ids, with a random number that is a function
// of (request seed, completion, token position) only.
#pragma once

#include <cstdint>
#include <span>

#include "engine/engine.h"
#include "engine/logits_process.h"

namespace qw {

/// Throws Error{kCorrupt} naming the first logit that is NaN or infinite: the model's output is
/// broken, and no token would mean anything.
void check_finite(std::span<const float> logits, int64_t position);

/// Makes a raw row of the model fit for what follows: with remove_invalid_values NaN becomes 0 and
/// infinities the largest floats, without it they are an error as in check_finite.
void admit_logits(std::span<float> logits, const GenerationConfig& config, int64_t position);

/// The most likely id. Errors: invalid_argument when every token is banned.
int32_t choose_greedy(const LogitsRow& row);

/// Draws with u in [0, 1): the first id (ascending) at which the cumulated probability passes u.
/// Errors: invalid_argument when every token is banned.
int32_t choose_sampled(const LogitsRow& row, double u);

/// choose_greedy, or choose_sampled with random_uniform(config.seed, stream, position).
int32_t choose_token(const LogitsRow& row, const GenerationConfig& config, uint64_t stream,
                     int64_t position);

/// softmax(row)[id].
double probability_of(const LogitsRow& row, int32_t id);

/// log_softmax(logits)[chosen], its rank, and the n_top best. logits are raw.
TokenLogprobs token_logprobs(std::span<const float> logits, int32_t chosen, int64_t n_top);

}  // namespace qw
