// One flag per generation parameter, named as in Transformers' generate().
//
// Level 8 (app). The list is GenerationConfig::names(): a parameter added there is a flag here.
#pragma once

#include <CLI/App.hpp>
#include <memory>
#include <string>
#include <vector>

#include "engine/generation_config.h"

namespace qw::app {

struct GenerationFlags {
  std::vector<std::pair<std::string, std::vector<std::string>>> values;  // name, texts as given
  std::vector<std::string> stop;
  bool ignore_eos = false;

  /// The checkpoint's defaults with the user's flags over them. Errors: invalid_argument.
  GenerationConfig over(GenerationConfig config) const;
  bool given(std::string_view name) const;
};

/// Adds --max-new-tokens, --temperature, ... --stop, --ignore-eos, --logprobs, with the aliases
/// -n (max new tokens) and --n (num return sequences).
std::shared_ptr<GenerationFlags> add_generation_flags(CLI::App& app);

}  // namespace qw::app
