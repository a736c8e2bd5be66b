// The steps from logits to a choice whose order a request may set.
//
// Level 6 (engine). Transformers' warpers in Transformers' order are the default. Orders as a
// parameter, and top_n_sigma, xtc and dry, are llama.cpp's.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string_view>
#include <vector>

namespace qw {

enum class SamplerKind : uint8_t {
  kPenalties,  // repetition_penalty, presence_penalty, frequency_penalty
  kDry,
  kTopNSigma,
  kTemperature,
  kTopK,
  kTopP,
  kMinP,
  kTypicalP,
  kEpsilonCutoff,
  kEtaCutoff,
  kXtc,
};

struct SamplerName {
  SamplerKind kind;
  std::string_view name;  // in sampler_order
};

/// All of them, in the order in which they apply where no other is set.
constexpr auto kSamplerNames = std::to_array<SamplerName>({
    {SamplerKind::kPenalties, "penalties"},
    {SamplerKind::kDry, "dry"},
    {SamplerKind::kTopNSigma, "top_n_sigma"},
    {SamplerKind::kTemperature, "temperature"},
    {SamplerKind::kTopK, "top_k"},
    {SamplerKind::kTopP, "top_p"},
    {SamplerKind::kMinP, "min_p"},
    {SamplerKind::kTypicalP, "typical_p"},
    {SamplerKind::kEpsilonCutoff, "epsilon_cutoff"},
    {SamplerKind::kEtaCutoff, "eta_cutoff"},
    {SamplerKind::kXtc, "xtc"},
});

constexpr std::string_view name_of(SamplerKind kind) {
  for (const SamplerName& row : kSamplerNames) {
    if (row.kind == kind) return row.name;
  }
  return "";
}

constexpr std::optional<SamplerKind> sampler_named(std::string_view name) {
  for (const SamplerName& row : kSamplerNames) {
    if (row.name == name) return row.kind;
  }
  return std::nullopt;
}

/// Penalties change values; all others cut tokens or scale the distribution.
constexpr bool is_penalty(SamplerKind kind) {
  return kind == SamplerKind::kPenalties || kind == SamplerKind::kDry;
}

/// Their names.
std::vector<std::string_view> sampler_names();

/// The value of the parameter `name`: a list of names, or a text of names with commas between.
/// Errors: invalid_argument, naming the parameter.
std::vector<SamplerKind> read_sampler_order(std::string_view name,
                                            const nlohmann::ordered_json& value);

}  // namespace qw
