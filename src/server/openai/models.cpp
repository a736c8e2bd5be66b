// GET /v1/models and /v1/models/{model}.
#include "server/openai/common.h"
#include "server/service.h"

namespace qw::server::openai {

namespace {

Json model_json(const ModelHub::Listing& model) {
  const bool is_adapter = !model.parent.empty();
  Json json = {{"id", model.name},
               {"object", "model"},
               {"created", model.created},
               {"owned_by", "qianwen"},
               {"root", is_adapter ? model.adapter_path : model.path},
               {"parent", is_adapter ? Json(model.parent) : Json()},
               {"loaded", model.loaded != nullptr}};
  if (model.loaded) json["max_model_len"] = model.loaded->context();
  return json;
}

void list(const std::shared_ptr<Call>& call) {
  Json data = Json::array();
  for (const ModelHub::Listing& model : call->services().hub->list())
    data.push_back(model_json(model));
  call->respond({{"object", "list"}, {"data", std::move(data)}});
}

void show(const std::shared_ptr<Call>& call) {
  call->respond(model_json(call->services().hub->find(call->path_parameter("model"))));
}

}  // namespace

std::vector<Endpoint> model_endpoints() {
  return {{"GET",
           "/v1/models",
           &kOpenAi,
           "The models there are",
           list,
           {},
           true,
           {.answer = types::object({"object", "data"})}},
          {"GET",
           "/v1/models/{model...}",
           &kOpenAi,
           "One of them",
           show,
           {},
           true,
           {.answer = types::object({"id", "object", "created", "owned_by"})}}};
}

}  // namespace qw::server::openai
