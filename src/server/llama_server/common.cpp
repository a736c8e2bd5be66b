#include "server/llama_server/common.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "server/llama_server/llama_server.h"
#include "server/shape.h"

namespace qw::server::llama_server {

const Dialect kLlamaServer{"llama_server", error_body};

std::vector<Endpoint> endpoints() {
  std::vector<Endpoint> all;
  for (auto make : {completion_endpoints, embedding_endpoints, state_endpoints, slot_endpoints}) {
    for (Endpoint& endpoint : make())
      all.push_back(std::move(endpoint));
  }
  return all;
}

std::string asked_model(const std::shared_ptr<Call>& call) {
  const std::string* name = call->request().parameter("model");
  return name == nullptr ? "" : *name;
}

void with_asked_model(const std::shared_ptr<Call>& call,
                      std::function<void(const std::shared_ptr<ServedModel>&)> use) {
  with_model(call, asked_model(call), std::move(use));
}

namespace {

std::string_view type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 501:
      return "not_supported_error";
    case 503:
      return "unavailable_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

}  // namespace

Json error_body(const Error& error, int status) {
  const auto* request = dynamic_cast<const RequestError*>(&error);
  const bool is_too_long = request != nullptr && request->code() == kContextExceeded;
  return {{"error",
           {{"code", status},
            {"message", error.message()},
            {"type", is_too_long ? "exceed_context_size_error" : type_of(status)}}}};
}

ShapePtr lora_shape() {
  static const ShapePtr made = [] {
    std::vector<FieldInfo> members = {member("id"), member("scale")};
    for (const char* name : {"name", "path", "task_name", "prompt_prefix"})
      members.push_back(ignored_member(name, "an adapter is known by its id"));
    return list_of(std::move(members));
  }();
  return made;
}

namespace {

/// Far more than any adapter is used with, the rank of those without a scale of their own included;
/// much more makes numbers that are too large for a type.
constexpr double kMaxLoraScale = 1000;

}  // namespace

std::vector<AdapterScale> read_lora(const std::string& where, const Json& value) {
  std::vector<AdapterScale> out;
  for (const Json& item : to_array(where, value)) {
    const Json& entry = to_object(where, item);
    AdapterScale scale;
    scale.id = to_integer(where + ".id", entry.value("id", Json()), 0);
    scale.scale = to_number(where + ".scale", entry.value("scale", Json(0.0)));
    if (!(std::abs(scale.scale) <= kMaxLoraScale)) {
      refuse_field(where + ".scale", "expected a number from {} to {}, got {}", -kMaxLoraScale,
                   kMaxLoraScale, scale.scale);
    }
    if (std::ranges::find(out, scale.id, &AdapterScale::id) != out.end())
      refuse_field(where, "expected every id once, got {} twice", scale.id);
    out.push_back(scale);
  }
  return out;
}

// ---- samplers ----------------------------------------------------------------------------------

namespace {

/// A sampler of llama.cpp's.
struct Sampler {
  std::string_view name;
  char letter;
  std::optional<SamplerKind> kind;  // none: it is not there
};

constexpr std::array<Sampler, 11> kSamplers = {{{"penalties", 'e', SamplerKind::kPenalties},
                                                {"top_n_sigma", 's', SamplerKind::kTopNSigma},
                                                {"temperature", 't', SamplerKind::kTemperature},
                                                {"top_k", 'k', SamplerKind::kTopK},
                                                {"top_p", 'p', SamplerKind::kTopP},
                                                {"min_p", 'm', SamplerKind::kMinP},
                                                {"typ_p", 'y', SamplerKind::kTypicalP},
                                                {"xtc", 'x', SamplerKind::kXtc},
                                                {"dry", 'd', SamplerKind::kDry},
                                                {"adaptive_p", 'a', std::nullopt},
                                                {"infill", 'i', std::nullopt}}};

/// "Top-K", "topk" and "top_k" are one; so are several words for some.
const Sampler* find_sampler(std::string_view given) {
  const auto plain = [](std::string_view text) {
    std::string out;
    for (const char c : text) {
      if (c != '_' && c != '-') out += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    }
    return out;
  };
  std::string name = plain(given);
  if (name == "temp") name = "temperature";
  if (name == "typ" || name == "typicalp") name = "typp";
  if (name == "nucleus") name = "topp";
  const auto* found = std::ranges::find_if(
      kSamplers, [&](const Sampler& sampler) { return plain(sampler.name) == name; });
  return found == kSamplers.end() ? nullptr : found;
}

const Sampler* find_sampler(char letter) {
  const auto* found = std::ranges::find(kSamplers, letter, &Sampler::letter);
  return found == kSamplers.end() ? nullptr : found;
}

}  // namespace

std::vector<SamplerKind> read_samplers(const Json& value, std::vector<std::string>& warnings) {
  std::vector<SamplerKind> kinds;
  const auto add = [&](const Sampler* found, std::string_view given) {
    if (found == nullptr)
      refuse_field("samplers", "expected names of samplers, got '{}'", printable(given));
    if (found->kind) kinds.push_back(*found->kind);
    // The others that are not there are off, unless their own parameters ask for them.
    if (found->name == "infill")
      warnings.emplace_back("samplers: infill ignored (these models cannot fill in)");
    if (kinds.size() > GenerationConfig::kMaxSamplerOrder)
      refuse_field("samplers", "expected at most {}, got more", GenerationConfig::kMaxSamplerOrder);
  };
  if (value.is_string()) {
    for (const char& letter : value.get_ref<const std::string&>())
      add(find_sampler(letter), std::string_view(&letter, 1));
  } else {
    for (const Json& item : to_array("samplers", value)) {
      const std::string name = to_string("samplers", item);
      add(find_sampler(std::string_view(name)), name);
    }
  }
  return kinds;
}

std::vector<std::pair<std::string, Json>> parameters_of(const std::vector<SamplerKind>& samplers) {
  const auto lacks = [&](SamplerKind kind) {
    return std::ranges::find(samplers, kind) == samplers.end();
  };
  struct Off {
    SamplerKind kind;
    std::string_view parameter;
    int value;
  };
  constexpr auto kOff = std::to_array<Off>({{SamplerKind::kPenalties, "repetition_penalty", 1},
                                            {SamplerKind::kPenalties, "presence_penalty", 0},
                                            {SamplerKind::kPenalties, "frequency_penalty", 0},
                                            {SamplerKind::kDry, "dry_multiplier", 0},
                                            {SamplerKind::kTopNSigma, "top_n_sigma", 0},
                                            {SamplerKind::kTemperature, "temperature", 1},
                                            {SamplerKind::kTopK, "top_k", 0},
                                            {SamplerKind::kTopP, "top_p", 1},
                                            {SamplerKind::kMinP, "min_p", 0},
                                            {SamplerKind::kTypicalP, "typical_p", 1},
                                            {SamplerKind::kEpsilonCutoff, "epsilon_cutoff", 0},
                                            {SamplerKind::kEtaCutoff, "eta_cutoff", 0},
                                            {SamplerKind::kXtc, "xtc_probability", 0}});
  std::vector<std::pair<std::string, Json>> out;
  for (const Off& off : kOff) {
    if (lacks(off.kind)) out.emplace_back(off.parameter, off.value);
  }
  Json order = Json::array();
  for (const SamplerKind kind : samplers)
    order.push_back(name_of(kind));
  out.emplace_back("sampler_order", std::move(order));
  return out;
}

Json samplers_json(const std::vector<SamplerKind>& samplers) {
  Json names = Json::array();
  for (const SamplerKind kind : samplers) {
    const auto* found = std::ranges::find(kSamplers, kind, &Sampler::kind);
    if (found != kSamplers.end()) names.push_back(found->name);
  }
  return names;
}

Json settings_json(const GenerationConfig& config) {
  Json bias = Json::array();
  for (const auto& [id, amount] : config.logit_bias)
    bias.push_back({{"bias", amount}, {"token", id}});
  for (const int32_t id : config.suppress_tokens)
    bias.push_back({{"bias", false}, {"token", id}});
  return {{"n_predict", config.max_new_tokens.value_or(-1)},
          {"seed", config.seed},
          {"temperature", config.do_sample ? config.temperature : 0},
          {"dynatemp_range", 0},
          {"top_k", config.top_k},
          {"top_p", config.top_p},
          {"min_p", config.min_p},
          {"top_n_sigma", config.top_n_sigma > 0 ? config.top_n_sigma : -1},
          {"xtc_probability", config.xtc_probability},
          {"xtc_threshold", config.xtc_threshold},
          {"typical_p", config.typical_p},
          {"repeat_last_n", -1},
          {"repeat_penalty", config.repetition_penalty},
          {"presence_penalty", config.presence_penalty},
          {"frequency_penalty", config.frequency_penalty},
          {"dry_multiplier", config.dry_multiplier},
          {"dry_base", config.dry_base},
          {"dry_allowed_length", config.dry_allowed_length},
          {"dry_penalty_last_n", config.dry_penalty_last_n},
          {"dry_sequence_breakers", config.dry_sequence_breakers},
          {"mirostat", 0},
          {"mirostat_tau", 5.0},
          {"mirostat_eta", 0.1},
          {"stop", config.stop_strings},
          {"max_tokens", config.max_new_tokens.value_or(-1)},
          {"n_keep", 0},
          {"n_discard", 0},
          {"ignore_eos", config.ignore_eos},
          {"logit_bias", std::move(bias)},
          {"n_probs", config.logprobs.value_or(0)},
          {"min_keep", 0},
          {"grammar", ""},
          {"samplers", samplers_json(config.samplers())},
          {"timings_per_token", false},
          // Older versions have these two, and clients of that time ask for them.
          {"penalize_nl", false},
          {"tfs_z", 1.0},
          {"post_sampling_probs", false},
          {"lora", Json::array()}};
}

}  // namespace qw::server::llama_server
