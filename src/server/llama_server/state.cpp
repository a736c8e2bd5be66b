// GET /props, /lora-adapters; and what is refused: filling in.
#include <utility>

#include "engine/bundle.h"
#include "server/llama_server/common.h"
#include "server/service.h"
#include "text/chat_template.h"

namespace qw::server::llama_server {

namespace {

void props(const std::shared_ptr<Call>& call) {
  with_asked_model(call, [call](const std::shared_ptr<ServedModel>& model) {
    const LoadedModel& files = model->files();
    Json settings = {{"id", 0},
                     {"n_ctx", model->context()},
                     {"speculative", files.draft_model != nullptr},
                     {"is_processing", false},
                     {"params", settings_json(files.chat_generation())}};
    Json answer = {{"default_generation_settings", std::move(settings)},
                   {"total_slots", files.engine_options.n_slots},
                   {"model_alias", model->name()},
                   {"model_path", model->spec().path}};
    if (files.chat_template) answer["chat_template"] = files.chat_template->source();
    Json modalities = {{"vision", false}, {"audio", false}};
    answer["modalities"] = std::move(modalities);
    answer["build_info"] = "qianwen " + call->services().options.version;
    answer["is_sleeping"] = false;
    call->respond(std::move(answer));
  });
}

Json adapters_json(const std::vector<ModelHub::Adapter>& adapters) {
  Json list = Json::array();
  for (const ModelHub::Adapter& adapter : adapters) {
    Json json = {{"id", adapter.id}, {"path", adapter.path}, {"scale", adapter.scale}};
    if (!adapter.name.empty()) json["name"] = adapter.name;
    list.push_back(std::move(json));
  }
  return list;
}

void lora_adapters(const std::shared_ptr<Call>& call) {
  call->respond(adapters_json(call->services().hub->adapters(asked_model(call))));
}

/// The body is a list: [{"id", "scale"}, ...].
void set_lora_adapters(const std::shared_ptr<Call>& call) {
  const Json body = call->body();
  const std::vector<AdapterScale> scales = read_lora("body", body);
  call->check("body", body, *lora_shape());
  call->services().hub->set_adapter_scales(
      asked_model(call), scales,
      [call] {
        call->respond({{"success", true}});
      },
      [call](const Error& error) { call->fail(error); });
}

[[noreturn]] void refuse(std::string_view what, std::string_view expected, std::string_view why) {
  throw RequestError(ErrorKind::kUnsupported,
                     fmt::format("[request] {}: expected {}, got none ({})", what, expected, why));
}

void infill(const std::shared_ptr<Call>&) {
  refuse("infill", "a model with tokens for filling in",
         "these models were not trained to fill in the middle");
}

}  // namespace

std::vector<Endpoint> state_endpoints() {
  const EndpointNotes never = {.always_refused = true};
  return {{"GET",
           "/props",
           &kLlamaServer,
           "The model and its settings",
           props,
           {},
           true,
           {.query = {"model"}}},
          {"GET",
           "/lora-adapters",
           &kLlamaServer,
           "The adapters there are",
           lora_adapters,
           {},
           true,
           {.answer = types::list(types::object()), .query = {"model"}}},
          {"POST",
           "/lora-adapters",
           &kLlamaServer,
           "How much of each adapter is in answers, as a list of ids and scales",
           set_lora_adapters,
           {},
           true,
           {.example = Json::array(),
            .body = types::list(types::object({"id", "scale"})),
            .query = {"model"}},
           "",
           /*needs_admin=*/true},
          {"POST",
           "/infill",
           &kLlamaServer,
           "Refused: the models cannot fill in",
           infill,
           {},
           true,
           never}};
}

}  // namespace qw::server::llama_server
