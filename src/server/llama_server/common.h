// What the addresses of llama.cpp's server share: errors, samplers, settings as they are printed.
//
// Level 7 (server).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/generation_config.h"
#include "server/call.h"
#include "server/model_hub.h"

namespace qw::server::llama_server {

extern const Dialect kLlamaServer;

/// {"error": {"code", "message", "type"}}.
Json error_body(const Error& error, int status);

/// "lora": [{"id", "scale"}, ...]. Errors: RequestError.
ShapePtr lora_shape();
std::vector<AdapterScale> read_lora(const std::string& where, const Json& value);

/// "samplers": names, or a string of llama.cpp's letters; samplers that are always off here are
/// left out. Errors: RequestError (no such sampler, one that is not there).
std::vector<std::string> read_samplers(const Json& value);

/// Parameters of GenerationConfig, with their neutral values, of the samplers that are not named.
std::vector<std::pair<std::string, Json>> parameters_without(
    const std::vector<std::string>& samplers);

/// Throws RequestError unless applying the samplers in the order named is the same as applying them
/// in ours: penalties, temperature, top_k, top_p, min_p, typ_p.
void check_sampler_order(const std::vector<std::string>& samplers, const GenerationConfig& config);

/// Names of the samplers that there are here, in the order in which they apply.
std::vector<std::string> sampler_names();

/// What applies, under llama.cpp's names: "generation_settings" of an answer, where what its
/// request says of grammar, samplers and adapters is to be added, and "params" of /props.
Json settings_json(const GenerationConfig& config);

std::vector<Endpoint> completion_endpoints();
std::vector<Endpoint> embedding_endpoints();
std::vector<Endpoint> state_endpoints();
std::vector<Endpoint> slot_endpoints();

/// The model that the query names ("?model="); "": the default.
std::string asked_model(const std::shared_ptr<Call>& call);
/// Calls `use` with it.
void with_asked_model(const std::shared_ptr<Call>& call,
                      std::function<void(const std::shared_ptr<ServedModel>&)> use);

}  // namespace qw::server::llama_server
