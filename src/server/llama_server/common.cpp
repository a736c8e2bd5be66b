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
  bool exists;  // here; the others are always off
};

/// Those that exist stand in the order in which they apply here.
constexpr std::array<Sampler, 11> kSamplers = {{{"penalties", 'e', true},
                                                {"temperature", 't', true},
                                                {"top_k", 'k', true},
                                                {"top_p", 'p', true},
                                                {"min_p", 'm', true},
                                                {"typ_p", 'y', true},
                                                {"dry", 'd', false},
                                                {"xtc", 'x', false},
                                                {"top_n_sigma", 's', false},
                                                {"adaptive_p", 'a', false},
                                                {"infill", 'i', false}}};

/// Whether a sampler changes anything, as the parameters are.
bool is_active(std::string_view name, const GenerationConfig& config) {
  if (name == "temperature") return config.temperature != 1;
  if (name == "top_k") return config.top_k != 0;
  if (name == "top_p") return config.top_p < 1;
  if (name == "min_p") return config.min_p > 0;
  if (name == "typ_p") return config.typical_p < 1;
  return config.repetition_penalty != 1 || config.presence_penalty != 0 ||
         config.frequency_penalty != 0;
}

size_t place_of(std::string_view name) {
  return static_cast<size_t>(std::ranges::find(kSamplers, name, &Sampler::name) -
                             kSamplers.begin());
}

}  // namespace

std::vector<std::string> read_samplers(const Json& value) {
  std::vector<std::string> names;
  const auto add = [&](const auto* found, std::string_view given) {
    if (found == kSamplers.end())
      refuse_field("samplers", "expected names of samplers, got '{}'", printable(given));
    // What is off has no place in the order; infill is for a kind of request that is refused.
    if (found->exists) names.emplace_back(found->name);
  };
  if (value.is_string()) {
    for (const char& letter : value.get_ref<const std::string&>())
      add(std::ranges::find(kSamplers, letter, &Sampler::letter), std::string_view(&letter, 1));
  } else {
    for (const Json& item : to_array("samplers", value)) {
      std::string name = to_string("samplers", item);
      if (name == "typical_p") name = "typ_p";
      if (name == "temp") name = "temperature";
      add(std::ranges::find(kSamplers, std::string_view(name), &Sampler::name), name);
    }
  }
  for (size_t i = 0; i < names.size(); ++i) {
    if (std::ranges::count(names, names[i]) > 1)
      refuse_field("samplers", "expected every sampler once, got {} twice", names[i]);
  }
  return names;
}

std::vector<std::pair<std::string, Json>> parameters_without(
    const std::vector<std::string>& samplers) {
  const auto lacks = [&](std::string_view name) {
    return std::ranges::find(samplers, name) == samplers.end();
  };
  std::vector<std::pair<std::string, Json>> out;
  if (lacks("penalties")) {
    out.emplace_back("repetition_penalty", 1);
    out.emplace_back("presence_penalty", 0);
    out.emplace_back("frequency_penalty", 0);
  }
  if (lacks("temperature")) out.emplace_back("temperature", 1);
  if (lacks("top_k")) out.emplace_back("top_k", 0);
  if (lacks("top_p")) out.emplace_back("top_p", 1);
  if (lacks("min_p")) out.emplace_back("min_p", 0);
  if (lacks("typ_p")) out.emplace_back("typical_p", 1);
  return out;
}

void check_sampler_order(const std::vector<std::string>& samplers, const GenerationConfig& config) {
  if (!config.samples()) return;  // the likeliest stays the likeliest, penalties apart
  for (size_t later = 0; later < samplers.size(); ++later) {
    for (size_t earlier = 0; earlier < later; ++earlier) {
      const std::string &first = samplers[earlier], &second = samplers[later];
      if (place_of(first) < place_of(second)) continue;
      if (!is_active(first, config) || !is_active(second, config)) continue;
      // Dividing by the temperature keeps the order of tokens, so it may come after top_k too.
      if (first == "top_k" && second == "temperature") continue;
      refuse_field(
          "samplers",
          "expected penalties, temperature, top_k, top_p, min_p, typ_p in this order where "
          "it matters, got {} before {}",
          first, second);
    }
  }
}

std::vector<std::string> sampler_names() {
  std::vector<std::string> names;
  for (const Sampler& sampler : kSamplers) {
    if (sampler.exists) names.emplace_back(sampler.name);
  }
  return names;
}

Json settings_json(const GenerationConfig& config) {
  Json bias = Json::array();
  for (const auto& [id, amount] : config.logit_bias)
    bias.push_back({{"bias", amount}, {"token", id}});
  return {{"n_predict", config.max_new_tokens.value_or(-1)},
          {"seed", config.seed},
          {"temperature", config.do_sample ? config.temperature : 0},
          {"dynatemp_range", 0},
          {"top_k", config.top_k},
          {"top_p", config.top_p},
          {"min_p", config.min_p},
          {"top_n_sigma", -1},
          {"xtc_probability", 0},
          {"typical_p", config.typical_p},
          {"repeat_last_n", -1},
          {"repeat_penalty", config.repetition_penalty},
          {"presence_penalty", config.presence_penalty},
          {"frequency_penalty", config.frequency_penalty},
          {"dry_multiplier", 0},
          {"mirostat", 0},
          {"stop", config.stop_strings},
          {"max_tokens", config.max_new_tokens.value_or(-1)},
          {"n_keep", 0},
          {"n_discard", 0},
          {"ignore_eos", config.ignore_eos},
          {"logit_bias", std::move(bias)},
          {"n_probs", config.logprobs.value_or(0)},
          {"min_keep", 0},
          {"grammar", ""},
          {"samplers", sampler_names()},
          {"timings_per_token", false},
          {"post_sampling_probs", false},
          {"lora", Json::array()}};
}

}  // namespace qw::server::llama_server
