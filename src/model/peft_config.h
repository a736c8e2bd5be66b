// adapter_config.json: rank and scaling of every adapted module.
//
// Level 5 (model). Source: peft's LoraConfig, and get_pattern_key of its tuners.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qw {

struct PeftConfig {
  /// Expressions of module names, and what holds for the modules they match.
  template <typename T>
  using Patterns = std::vector<std::pair<std::string, T>>;

  int64_t r = 0;  // every rank is at least 1
  double alpha = 0;
  bool rslora = false, dora = false;
  Patterns<int64_t> rank_pattern;
  Patterns<double> alpha_pattern;

  /// `json`: the text of adapter_config.json; `file` names it in errors.
  /// Errors: corrupt; unsupported for options that change the result and that we do not apply.
  static PeftConfig parse(std::string_view json, const std::string& file);

  int64_t rank_of(const std::string& module) const;
  /// alpha / r, or alpha / sqrt(r) with rslora, after rank_pattern and alpha_pattern.
  double scaling_of(const std::string& module) const;
};

}  // namespace qw
