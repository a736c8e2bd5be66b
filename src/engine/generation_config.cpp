#include "engine/generation_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/guarded_json.h"
#include "base/json_limits.h"
#include "checkpoint/hf_config.h"
#include "engine/generation_config_checks.h"

namespace qw {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxListEntries = 1 << 20;  // of any list parameter

using ScheduleName = std::pair<std::string_view, AssistantSchedule>;
constexpr auto kSchedules =
    std::to_array<ScheduleName>({{"constant", AssistantSchedule::kConstant},
                                 {"heuristic", AssistantSchedule::kHeuristic},
                                 {"heuristic_transient", AssistantSchedule::kHeuristicTransient}});

// ---- reading a value of each type --------------------------------------------------------------

[[noreturn]] void fail_type(std::string_view name, std::string_view expected, const Json& value) {
  fail(ErrorKind::kInvalidArgument, "generation", "{}: expected {}, got {}", name, expected,
       describe_json(value));
}

int64_t read_integer(std::string_view name, const Json& value) {
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    fail_type(name, "an integer below 2^63", value);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {
    const double real = value.get<double>();
    if (std::floor(real) == real && std::abs(real) < 0x1p53) return static_cast<int64_t>(real);
  }
  fail_type(name, "an integer", value);
}

void read(std::string_view name, const Json& value, int64_t& out) {
  out = read_integer(name, value);
}

void read(std::string_view name, const Json& value, uint64_t& out) {
  if (value.is_number_unsigned()) {
    out = value.get<uint64_t>();
    return;
  }
  // A float is a whole number below 2^53 (4.0), or a number that no integer holds (2^64).
  const bool whole = value.is_number_float() && value.get<double>() < 0x1p53;
  const int64_t v = value.is_number_integer() || whole ? read_integer(name, value) : -1;
  if (v < 0) fail_type(name, "an integer from 0 to 18446744073709551615", value);
  out = static_cast<uint64_t>(v);
}

void read(std::string_view name, const Json& value, double& out) {
  if (!value.is_number()) fail_type(name, "a number", value);
  out = value.get<double>();
}

void read(std::string_view name, const Json& value, bool& out) {
  if (!value.is_boolean()) fail_type(name, "true or false", value);
  out = value.get<bool>();
}

void read(std::string_view name, const Json& value, int32_t& out) {
  const int64_t v = read_integer(name, value);
  if (v < 0 || v > std::numeric_limits<int32_t>::max())
    fail_type(name, "a token id (from 0)", value);
  out = static_cast<int32_t>(v);
}

void read(std::string_view name, const Json& value, float& out) {
  double v = 0;
  read(name, value, v);
  if (std::abs(v) > static_cast<double>(std::numeric_limits<float>::max()))
    fail_type(name, "a 32-bit number", value);
  out = static_cast<float>(v);
}

void read(std::string_view name, const Json& value, std::string& out) {
  if (!value.is_string()) fail_type(name, "a string", value);
  out = value.get<std::string>();
}

void read(std::string_view name, const Json& value, std::vector<SamplerKind>& out) {
  out = read_sampler_order(name, value);
}

// Declared first, so that the templates below find them.
template <typename A, typename B>
void read(std::string_view name, const Json& value, std::pair<A, B>& out);
void read(std::string_view name, const Json& value, SequenceBias& out);
void read(std::string_view name, const Json& value, ForcedWord& out);

template <typename T>
void read(std::string_view name, const Json& value, std::optional<T>& out) {
  read(name, value, out.emplace());
}

/// A list; a single element stands for a list of one where that cannot be misread.
template <typename T>
void read(std::string_view name, const Json& value, std::vector<T>& out) {
  std::vector<T> list;
  if (value.is_array()) {
    if (value.size() > kMaxListEntries) fail_type(name, "a list of at most 2^20 entries", value);
    for (const Json& entry : value)
      read(name, entry, list.emplace_back());
  } else {
    read(name, value, list.emplace_back());
  }
  out = std::move(list);
}

template <typename A, typename B>
void read(std::string_view name, const Json& value, std::pair<A, B>& out) {
  if (!value.is_array() || value.size() != 2) fail_type(name, "a pair [first, second]", value);
  read(name, value[0], out.first);
  read(name, value[1], out.second);
}

void read(std::string_view name, const Json& value, std::vector<std::vector<int32_t>>& out) {
  if (!value.is_array()) fail_type(name, "a list of lists of token ids", value);
  std::vector<std::vector<int32_t>> lists;
  for (const Json& entry : value) {
    if (!entry.is_array()) fail_type(name, "a list of lists of token ids", value);
    read(name, entry, lists.emplace_back());
  }
  out = std::move(lists);
}

void read(std::string_view name, const Json& value, SequenceBias& out) {
  if (!value.is_array() || value.size() != 2) fail_type(name, "[[token ids], bias]", value);
  read(name, value[0], out.ids);
  read(name, value[1], out.bias);
}

/// The token ids of a word, or a list of its forms.
void read(std::string_view name, const Json& value, ForcedWord& out) {
  if (!value.is_array() || value.empty()) fail_type(name, "a list of lists of token ids", value);
  const bool one_form = !value[0].is_array();
  read(name, one_form ? Json::array({value}) : value, out.forms);
}

/// {"id": bias, ...} as OpenAI writes it, or [[id, bias], ...].
void read(std::string_view name, const Json& value, std::vector<std::pair<int32_t, float>>& out) {
  std::vector<std::pair<int32_t, float>> pairs;
  if (value.is_object()) {
    for (const auto& [key, bias] : value.items()) {
      const Json id = Json::parse(key, nullptr, false);
      if (!id.is_number_integer()) fail_type(name, "token ids as keys", value);
      auto& pair = pairs.emplace_back();
      read(name, id, pair.first);
      read(name, bias, pair.second);
    }
  } else if (value.is_array()) {
    for (const Json& entry : value)
      read(name, entry, pairs.emplace_back());
  } else {
    fail_type(name, "an object {\"id\": bias}", value);
  }
  out = std::move(pairs);
}

void read(std::string_view name, const Json& value, EarlyStopping& out) {
  if (value.is_boolean()) {
    out = value.get<bool>() ? EarlyStopping::kTrue : EarlyStopping::kFalse;
  } else if (value.is_string() && value.get<std::string>() == "never") {
    out = EarlyStopping::kNever;
  } else {
    fail_type(name, "true, false or \"never\"", value);
  }
}

void read(std::string_view name, const Json& value, AssistantSchedule& out) {
  const auto* row = std::ranges::find_if(
      kSchedules, [&](const auto& entry) { return value == Json(entry.first); });
  if (row == kSchedules.end())
    fail_type(name, "\"constant\", \"heuristic\" or \"heuristic_transient\"", value);
  out = row->second;
}

// ---- writing -----------------------------------------------------------------------------------

template <typename T>
Json write(const T& value) {
  return Json(value);
}
template <typename T>
Json write(const std::optional<T>& value) {
  return value ? write(*value) : Json(nullptr);
}
template <typename A, typename B>
Json write(const std::pair<A, B>& value) {
  return Json::array({value.first, value.second});
}
Json write(const SequenceBias& value) {
  return Json::array({value.ids, value.bias});
}
Json write(const ForcedWord& value) {
  return value.forms.size() == 1 ? Json(value.forms[0]) : Json(value.forms);
}
Json write(const EarlyStopping& value) {
  return value == EarlyStopping::kNever ? Json("never") : Json(value == EarlyStopping::kTrue);
}
Json write(const SamplerKind& value) {
  return Json(name_of(value));
}
Json write(const AssistantSchedule& value) {
  return Json(std::ranges::find(kSchedules, value, &ScheduleName::second)->first);
}
template <typename T>
Json write(const std::vector<T>& value) {
  Json out = Json::array();
  for (const T& entry : value)
    out.push_back(write(entry));
  return out;
}

// ---- saying what a value may be
// ------------------------------------------------------------------

template <typename T>
struct SchemaOf {  // integers, but for what follows
  static Json get() { return {{"type", "integer"}}; }
};
template <>
struct SchemaOf<uint64_t> {
  static Json get() { return {{"type", "integer"}, {"minimum", 0}}; }
};
template <>
struct SchemaOf<int32_t> {
  static Json get() {
    return {{"type", "integer"}, {"minimum", 0}, {"maximum", std::numeric_limits<int32_t>::max()}};
  }
};
template <>
struct SchemaOf<double> {
  static Json get() { return {{"type", "number"}}; }
};
template <>
struct SchemaOf<float> : SchemaOf<double> {};
template <>
struct SchemaOf<bool> {
  static Json get() { return {{"type", "boolean"}}; }
};
template <>
struct SchemaOf<std::string> {
  static Json get() { return {{"type", "string"}, {"minLength", 1}}; }
};
template <>
struct SchemaOf<EarlyStopping> {
  static Json get() { return {{"enum", {true, false, "never"}}}; }
};
template <>
struct SchemaOf<AssistantSchedule> {
  static Json get() {
    Json names = Json::array();
    for (const ScheduleName& schedule : kSchedules)
      names.push_back(schedule.first);
    return {{"enum", std::move(names)}};
  }
};
template <>
struct SchemaOf<SamplerKind> {
  static Json get() { return {{"enum", sampler_names()}}; }
};
template <typename A, typename B>
struct SchemaOf<std::pair<A, B>> {
  static Json get() {
    return {{"type", "array"},
            {"prefixItems", {SchemaOf<A>::get(), SchemaOf<B>::get()}},
            {"minItems", 2},
            {"maxItems", 2}};
  }
};
template <typename T>
struct SchemaOf<std::optional<T>> : SchemaOf<T> {};
template <typename T>
struct SchemaOf<std::vector<T>> {
  static Json get() {
    const Json item = SchemaOf<T>::get();
    return {{"anyOf", {{{"type", "array"}, {"items", item}}, item}}};
  }
};
template <>
struct SchemaOf<std::vector<std::vector<int32_t>>> {
  static Json get() {
    Json ids = {{"type", "array"}, {"items", SchemaOf<int32_t>::get()}, {"minItems", 1}};
    return {{"type", "array"}, {"items", std::move(ids)}};
  }
};
template <>
struct SchemaOf<SequenceBias> {
  static Json get() { return {{"type", "array"}, {"minItems", 2}, {"maxItems", 2}}; }
};
template <>
struct SchemaOf<ForcedWord> {
  static Json get() { return {{"type", "array"}, {"minItems", 1}}; }
};
template <>
struct SchemaOf<std::vector<std::pair<int32_t, float>>> {
  static Json get() {
    Json object = {{"type", "object"}, {"additionalProperties", {{"type", "number"}}}};
    Json list = {{"type", "array"}, {"items", SchemaOf<std::pair<int32_t, float>>::get()}};
    return {{"anyOf", {std::move(object), std::move(list)}}};
  }
};

// ---- the table of parameters -------------------------------------------------------------------

struct Parameter {
  std::string_view name;
  void (*read_into)(std::string_view, const Json&, GenerationConfig&);
  Json (*write_from)(const GenerationConfig&);
  void (*reset)(GenerationConfig&);
  Json (*schema)();
};

template <auto Member>
constexpr Parameter parameter(std::string_view name) {
  return {
      name,
      [](std::string_view n, const Json& value, GenerationConfig& config) {
        read(n, value, config.*Member);
      },
      [](const GenerationConfig& config) { return write(config.*Member); },
      [](GenerationConfig& config) { config.*Member = GenerationConfig{}.*Member; },
      [] { return SchemaOf<std::remove_cvref_t<decltype(GenerationConfig{}.*Member)>>::get(); }};
}

using C = GenerationConfig;
constexpr auto kParameters = std::to_array<Parameter>({
    parameter<&C::max_new_tokens>("max_new_tokens"),
    parameter<&C::max_length>("max_length"),
    parameter<&C::min_new_tokens>("min_new_tokens"),
    parameter<&C::min_length>("min_length"),
    parameter<&C::stop_strings>("stop_strings"),
    parameter<&C::include_stop_str_in_output>("include_stop_str_in_output"),
    parameter<&C::ignore_eos>("ignore_eos"),
    parameter<&C::do_sample>("do_sample"),
    parameter<&C::num_beams>("num_beams"),
    parameter<&C::num_beam_groups>("num_beam_groups"),
    parameter<&C::diversity_penalty>("diversity_penalty"),
    parameter<&C::length_penalty>("length_penalty"),
    parameter<&C::early_stopping>("early_stopping"),
    parameter<&C::num_return_sequences>("num_return_sequences"),
    parameter<&C::penalty_alpha>("penalty_alpha"),
    parameter<&C::guidance_scale>("guidance_scale"),
    parameter<&C::prompt_lookup_num_tokens>("prompt_lookup_num_tokens"),
    parameter<&C::max_matching_ngram_size>("max_matching_ngram_size"),
    parameter<&C::num_assistant_tokens>("num_assistant_tokens"),
    parameter<&C::num_assistant_tokens_schedule>("num_assistant_tokens_schedule"),
    parameter<&C::assistant_confidence_threshold>("assistant_confidence_threshold"),
    parameter<&C::seed>("seed"),
    parameter<&C::top_n_sigma>("top_n_sigma"),
    parameter<&C::temperature>("temperature"),
    parameter<&C::top_k>("top_k"),
    parameter<&C::top_p>("top_p"),
    parameter<&C::min_p>("min_p"),
    parameter<&C::typical_p>("typical_p"),
    parameter<&C::epsilon_cutoff>("epsilon_cutoff"),
    parameter<&C::eta_cutoff>("eta_cutoff"),
    parameter<&C::xtc_probability>("xtc_probability"),
    parameter<&C::xtc_threshold>("xtc_threshold"),
    parameter<&C::sampler_order>("sampler_order"),
    parameter<&C::repetition_penalty>("repetition_penalty"),
    parameter<&C::encoder_repetition_penalty>("encoder_repetition_penalty"),
    parameter<&C::presence_penalty>("presence_penalty"),
    parameter<&C::frequency_penalty>("frequency_penalty"),
    parameter<&C::dry_multiplier>("dry_multiplier"),
    parameter<&C::dry_base>("dry_base"),
    parameter<&C::dry_allowed_length>("dry_allowed_length"),
    parameter<&C::dry_penalty_last_n>("dry_penalty_last_n"),
    parameter<&C::dry_sequence_breakers>("dry_sequence_breakers"),
    parameter<&C::no_repeat_ngram_size>("no_repeat_ngram_size"),
    parameter<&C::encoder_no_repeat_ngram_size>("encoder_no_repeat_ngram_size"),
    parameter<&C::bad_words_ids>("bad_words_ids"),
    parameter<&C::force_words_ids>("force_words_ids"),
    parameter<&C::sequence_bias>("sequence_bias"),
    parameter<&C::logit_bias>("logit_bias"),
    parameter<&C::suppress_tokens>("suppress_tokens"),
    parameter<&C::begin_suppress_tokens>("begin_suppress_tokens"),
    parameter<&C::forced_bos_token_id>("forced_bos_token_id"),
    parameter<&C::forced_eos_token_id>("forced_eos_token_id"),
    parameter<&C::exponential_decay_length_penalty>("exponential_decay_length_penalty"),
    parameter<&C::remove_invalid_values>("remove_invalid_values"),
    parameter<&C::renormalize_logits>("renormalize_logits"),
    parameter<&C::eos_token_id>("eos_token_id"),
    parameter<&C::stop_token_ids>("stop_token_ids"),
    parameter<&C::pad_token_id>("pad_token_id"),
    parameter<&C::bos_token_id>("bos_token_id"),
    parameter<&C::logprobs>("logprobs"),
    parameter<&C::prompt_logprobs>("prompt_logprobs"),
});

/// Fields of published files that say nothing about generation.
constexpr std::array<std::string_view, 2> kMetadata = {"transformers_version",
                                                       "_from_model_config"};
/// Fields that Transformers knows and that change nothing here.
constexpr auto kWithoutEffect = std::to_array<std::string_view>(
    {"use_cache", "cache_implementation", "cache_config", "return_legacy_cache", "output_scores",
     "output_logits", "output_attentions", "output_hidden_states", "return_dict_in_generate",
     "max_time", "is_assistant", "low_memory", "decoder_start_token_id", "token_healing",
     "dola_layers", "watermarking_config", "prefill_chunk_size", "generation_kwargs",
     "assistant_early_exit"});

const Parameter* find_parameter(std::string_view name) {
  const auto it = std::find_if(kParameters.begin(), kParameters.end(),
                               [&](const Parameter& p) { return p.name == name; });
  return it == kParameters.end() ? nullptr : &*it;
}

}  // namespace

std::string_view name_of(ParameterSource source) {
  switch (source) {
    case ParameterSource::kDefault:
      return "default";
    case ParameterSource::kFile:
      return "file";
    case ParameterSource::kUser:
      return "user";
  }
  return "default";
}

void GenerationConfig::set(std::string_view name, const Json& value, ParameterSource source) {
  const Parameter* parameter = find_parameter(name);
  if (parameter == nullptr) {
    fail(ErrorKind::kInvalidArgument, "generation",
         "parameter: expected the name of a generation parameter, got '{}'", printable(name));
  }
  GenerationConfig changed = *this;
  if (value.is_null()) {
    parameter->reset(changed);
  } else {
    parameter->read_into(name, value, changed);
  }
  check_lengths(changed);
  check_distribution(changed);
  check_all_ids(changed, 0);
  changed.sources_[std::string(name)] = source;
  *this = std::move(changed);
}

void GenerationConfig::set_text(std::string_view name, std::string_view value,
                                ParameterSource source) {
  if (name == "stop_strings") {
    Json all = stop_strings;
    all.push_back(std::string(value));
    return set(name, all, source);
  }
  // Nested too deeply it could not even be printed in a message.
  static constexpr JsonLimits kLimits;
  const JsonLimitGuard guard(kLimits, ErrorKind::kInvalidArgument, name);
  Json parsed = parse_guarded_or_discard<Json>(value, guard);
  if (parsed.is_discarded())
    parsed = parse_guarded_or_discard<Json>(fmt::format("[{}]", value), guard);
  if (parsed.is_discarded()) parsed = std::string(value);
  set(name, parsed, source);
}

Json GenerationConfig::get(std::string_view name) const {
  const Parameter* parameter = find_parameter(name);
  QW_CHECK(parameter != nullptr, "no parameter {}", name);
  return parameter->write_from(*this);
}

Json GenerationConfig::schema(std::string_view name) {
  const Parameter* parameter = find_parameter(name);
  QW_CHECK(parameter != nullptr, "no parameter {}", name);
  Json out = parameter->schema();
  const ParameterRange* range = range_of(name);
  if (range == nullptr) return out;
  const bool is_integer = out["type"] == "integer";
  const auto bound = [&](double value) {
    return is_integer ? Json(static_cast<int64_t>(value)) : Json(value);
  };
  out[range->open ? "exclusiveMinimum" : "minimum"] = bound(range->low);
  out["maximum"] = bound(range->high);
  if (!range->or_zero) return out;
  const Json zero = {{"const", 0}};
  return {{"anyOf", {std::move(out), zero}}};
}

const std::vector<std::string>& GenerationConfig::names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> out;
    out.reserve(std::size(kParameters));
    for (const Parameter& p : kParameters)
      out.emplace_back(p.name);
    return out;
  }();
  return names;
}

std::vector<std::string> GenerationConfig::read_json(std::string_view text, std::string_view file) {
  const Json object = parse_json_object(text, file);
  std::vector<std::string> warnings;
  GenerationConfig changed = *this;
  const auto listed = [](const auto& list, std::string_view key) {
    return std::find(list.begin(), list.end(), key) != list.end();
  };
  for (const auto& [key, value] : object.items()) {
    if (listed(kMetadata, key)) continue;
    if (listed(kWithoutEffect, key)) {
      // Only a use_cache of true asks for what happens anyway; other fields do when they are off.
      // NOLINTNEXTLINE(misc-redundant-expression): in JSON, false is not 0
      const bool usual = key == "use_cache" ? value == true : value == false || value == 0;
      if (!value.is_null() && !usual) {
        warnings.push_back(
            fmt::format("{}: {} has no effect here ({})", file, key, describe_json(value)));
      }
      continue;
    }
    if (find_parameter(key) == nullptr) {
      warnings.push_back(fmt::format("{}: unknown field {} is not applied ({})", file,
                                     printable(key), describe_json(value)));
      continue;
    }
    if (value.is_null()) continue;
    try {
      changed.set(key, value, ParameterSource::kFile);
    } catch (const Error& error) {
      throw Error(ErrorKind::kCorrupt, fmt::format("{} ({})", error.message(), printable(file)));
    }
  }
  *this = std::move(changed);
  return warnings;
}

void GenerationConfig::validate(int64_t vocab) const {
  check_lengths(*this);
  check_distribution(*this);
  check_all_ids(*this, vocab);
  check_combinations(*this);
}

Json GenerationConfig::applied() const {
  static const GenerationConfig defaults;
  Json out = Json::object();
  for (const Parameter& parameter : kParameters) {
    Json value = parameter.write_from(*this);
    const auto source = sources_.find(parameter.name);
    const bool changed = value != parameter.write_from(defaults);
    if (!changed && source == sources_.end()) continue;
    // A field that was assigned directly is the caller's choice.
    const ParameterSource from = source == sources_.end() ? ParameterSource::kUser : source->second;
    out[std::string(parameter.name)] = {{"value", std::move(value)}, {"source", name_of(from)}};
  }
  return out;
}

ParameterSource GenerationConfig::source_of(std::string_view name) const {
  const auto it = sources_.find(name);
  if (it != sources_.end()) return it->second;
  const Parameter* parameter = find_parameter(name);
  static const GenerationConfig defaults;
  const bool changed =
      parameter != nullptr && parameter->write_from(*this) != parameter->write_from(defaults);
  return changed ? ParameterSource::kUser : ParameterSource::kDefault;
}

bool GenerationConfig::is_eos(int32_t id) const {
  return !ignore_eos &&
         std::find(eos_token_id.begin(), eos_token_id.end(), id) != eos_token_id.end();
}

bool GenerationConfig::is_stop_token(int32_t id) const {
  return std::find(stop_token_ids.begin(), stop_token_ids.end(), id) != stop_token_ids.end();
}

std::vector<int32_t> GenerationConfig::effective_eos() const {
  return ignore_eos ? std::vector<int32_t>{} : eos_token_id;
}

std::vector<int32_t> GenerationConfig::ends() const {
  std::vector<int32_t> out = effective_eos();
  for (const int32_t id : stop_token_ids) {
    if (std::find(out.begin(), out.end(), id) == out.end()) out.push_back(id);
  }
  return out;
}

}  // namespace qw
