// The ranges and combinations of generation parameters that make sense.
//
// Level 6 (engine). Behind GenerationConfig::set() and validate(). Every refusal is an
// Error{kInvalidArgument} that names the field, what is accepted and what was given.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "engine/generation_config.h"

namespace qw {

/// What a number may be.
struct ParameterRange {
  std::string_view name;
  double low = 0, high = 0;
  bool open = false;     // low itself is excluded
  bool or_zero = false;  // and 0 is fine
};
/// Null: any, or a parameter that is no number.
const ParameterRange* range_of(std::string_view name);

/// Refuses, in the name of `component`, the first of the ids `name` that is outside the vocabulary
/// of `vocab` ids (0: unknown; then from 0 on all are fine).
void check_token_ids(std::string_view component, std::string_view name,
                     std::span<const int32_t> ids, int64_t vocab);

/// Lengths, widths and stop strings.
void check_lengths(const GenerationConfig& config);
/// What shapes the distribution: warpers, penalties, what is reported of it.
void check_distribution(const GenerationConfig& config);
/// Token ids and biases, for a vocabulary of `vocab` ids (0: unknown).
void check_all_ids(const GenerationConfig& config, int64_t vocab);
/// Parameters that exclude or need each other.
void check_combinations(const GenerationConfig& config);

}  // namespace qw
