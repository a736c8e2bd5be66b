#include "model/peft_config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>

#include "base/error.h"
#include "checkpoint/hf_config.h"

namespace qw {

namespace {

using nlohmann::ordered_json;

[[noreturn]] void refuse(std::string_view key, std::string_view expected, const ordered_json& got,
                         const std::string& file) {
  fail(ErrorKind::kUnsupported, "adapter", "{}: expected {}, got {} ({})", key, expected,
       describe_json(got), printable(file));
}

/// Options that would change the result: only their neutral values can be run.
void check_options(const ordered_json& json, const std::string& file) {
  const std::string type = required_string(json, "peft_type", file);
  if (type != "LORA") refuse("peft_type", "LORA", json["peft_type"], file);
  const auto bias = optional_string(json, "bias", file);
  if (bias && *bias != "none") refuse("bias", "none", json["bias"], file);
  for (const std::string_view key : {"fan_in_fan_out", "lora_bias"}) {
    if (optional_bool(json, key, file).value_or(false))
      refuse(key, "false", json[std::string(key)], file);
  }
  for (const std::string_view key : {"layer_replication", "trainable_token_indices",
                                     "target_parameters", "alora_invocation_tokens"}) {
    const ordered_json* value = find_member(json, key, file);
    if (value != nullptr && !value->empty()) refuse(key, "null", *value, file);
  }
  // These initialisations change the base's own weights; the adapter alone does not tell how.
  const ordered_json* init = find_member(json, "init_lora_weights", file);
  if (init != nullptr && init->is_string()) {
    const std::string name = init->get<std::string>();
    for (const std::string_view changing : {"pissa", "olora", "loftq", "corda"}) {
      if (name.starts_with(changing))
        refuse("init_lora_weights", "one that leaves the base as it is", *init, file);
    }
  }
}

/// A rank: at least 1, since the scaling divides by it.
int64_t read_rank(const ordered_json& json, std::string_view key, std::string_view file) {
  const int64_t rank = required_int(json, key, file);
  if (rank < 1) {
    fail(ErrorKind::kCorrupt, "adapter", "rank {}: expected at least 1, got {} ({})",
         printable(key), rank, printable(file));
  }
  return rank;
}

/// The object `key`, if there is one: a pattern of modules and read(object, pattern, file) of each.
template <typename T>
PeftConfig::Patterns<T> read_patterns(const ordered_json& json, std::string_view key,
                                      std::string_view file,
                                      T read(const ordered_json&, std::string_view,
                                             std::string_view)) {
  PeftConfig::Patterns<T> out;
  const ordered_json* patterns = find_member(json, key, file);
  if (patterns == nullptr) return out;
  if (!patterns->is_object()) {
    fail(ErrorKind::kCorrupt, "adapter", "{}: expected an object, got {} ({})", key,
         describe_json(*patterns), printable(file));
  }
  for (const auto& [name, value] : patterns->items())
    out.emplace_back(name, read(*patterns, name, file));
  return out;
}

/// std::regex backtracks, so a hostile pattern could run for ever: what module names need is
/// little.
bool is_harmless_regex(const std::string& pattern) {
  constexpr size_t kMaxBytes = 256;
  constexpr int64_t kMaxQuantifiers = 4;
  if (pattern.size() > kMaxBytes) return false;
  const auto is_quantifier = [](char c) { return c == '*' || c == '+' || c == '{'; };
  for (size_t i = 1; i < pattern.size(); ++i) {
    if (pattern[i - 1] == ')' && is_quantifier(pattern[i])) return false;
  }
  return std::ranges::count_if(pattern, is_quantifier) <= kMaxQuantifiers;
}

/// The value of the first pattern that matches the module's name as a whole, or after a dot.
template <typename T>
T value_of(const PeftConfig::Patterns<T>& patterns, const std::string& module, T otherwise) {
  for (const auto& [pattern, value] : patterns) {
    if (module == pattern || module.ends_with("." + pattern)) return value;
    if (!is_harmless_regex(pattern)) {
      fail(ErrorKind::kUnsupported, "adapter", "pattern of modules: expected a simple one, got {}",
           printable(pattern));
    }
    try {
      if (std::regex_match(module, std::regex("(.*\\.)?(" + pattern + ")"))) return value;
    } catch (const std::regex_error&) {
      fail(ErrorKind::kCorrupt, "adapter",
           "pattern of modules: expected a regular expression, got {}", printable(pattern));
    }
  }
  return otherwise;
}

}  // namespace

PeftConfig PeftConfig::parse(std::string_view text, const std::string& file) {
  const ordered_json json = parse_json_object(text, file);
  check_options(json, file);
  PeftConfig config;
  config.r = read_rank(json, "r", file);
  config.alpha = required_real(json, "lora_alpha", file);
  config.rslora = optional_bool(json, "use_rslora", file).value_or(false);
  config.dora = optional_bool(json, "use_dora", file).value_or(false);
  config.rank_pattern = read_patterns(json, "rank_pattern", file, read_rank);
  config.alpha_pattern = read_patterns(json, "alpha_pattern", file, required_real);
  return config;
}

int64_t PeftConfig::rank_of(const std::string& module) const {
  return value_of(rank_pattern, module, r);
}

double PeftConfig::scaling_of(const std::string& module) const {
  const auto rank = static_cast<double>(rank_of(module));
  return value_of(alpha_pattern, module, alpha) / (rslora ? std::sqrt(rank) : rank);
}

}  // namespace qw
