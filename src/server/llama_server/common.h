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

/// "samplers": names, or a string of llama.cpp's letters; those that are not there are left out.
/// Errors: RequestError.
std::vector<SamplerKind> read_samplers(const Json& value, std::vector<std::string>& warnings);

/// Parameters of GenerationConfig under which these samplers apply in this order, and no others.
std::vector<std::pair<std::string, Json>> parameters_of(const std::vector<SamplerKind>& samplers);

/// Their names in llama.cpp; those that it does not have are left out.
Json samplers_json(const std::vector<SamplerKind>& samplers);

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
