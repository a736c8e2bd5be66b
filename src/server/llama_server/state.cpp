// GET /props, /slots, /lora-adapters; and what is refused: saving slots, filling in.
#include <utility>

#include "engine/bundle.h"
#include "server/llama_server/common.h"
#include "server/service.h"
#include "text/chat_template.h"

namespace qw::server::llama_server {

namespace {

/// The model that the query names ("?model="); "": the default.
std::string asked_model(const std::shared_ptr<Call>& call) {
  const std::string* name = call->request().parameter("model");
  return name == nullptr ? "" : *name;
}

/// Calls `use` with it.
void with_asked_model(const std::shared_ptr<Call>& call,
                      std::function<void(const std::shared_ptr<ServedModel>&)> use) {
  with_model(call, asked_model(call), std::move(use));
}

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

/// Places are alike here: as many are shown as working as there are requests under way.
void slots(const std::shared_ptr<Call>& call) {
  with_asked_model(call, [call](const std::shared_ptr<ServedModel>& model) {
    const HostStats stats = model->host().stats();
    const int64_t n_slots = model->files().engine_options.n_slots;
    const std::string* fail = call->request().parameter("fail_on_no_slot");
    if (fail != nullptr && *fail == "1" && stats.n_running >= n_slots) {
      throw RequestError(ErrorKind::kOutOfMemory,
                         fmt::format("[server] slots: expected a free one, got {} of {} at work",
                                     stats.n_running, n_slots),
                         "", 503);
    }
    Json list = Json::array();
    for (int64_t id = 0; id < n_slots; ++id) {
      list.push_back({{"id", id},
                      {"n_ctx", model->context()},
                      {"speculative", model->files().draft_model != nullptr},
                      {"is_processing", id < stats.n_running}});
    }
    call->respond(std::move(list));
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
  call->services().hub->set_adapter_scales(
      asked_model(call), read_lora("body", call->body()),
      [call] {
        call->respond({{"success", true}});
      },
      [call](const Error& error) { call->fail(error); });
}

[[noreturn]] void refuse(std::string_view what, std::string_view expected, std::string_view why) {
  throw RequestError(ErrorKind::kUnsupported,
                     fmt::format("[request] {}: expected {}, got none ({})", what, expected, why));
}

void slot_action(const std::shared_ptr<Call>&) {
  refuse("slots", "a cache that is kept for one client",
         "prefixes are found by their tokens, for every client, and need no saving by hand");
}

void infill(const std::shared_ptr<Call>&) {
  refuse("infill", "a model with tokens for filling in",
         "these models were not trained to fill in the middle");
}

}  // namespace

std::vector<Endpoint> state_endpoints() {
  return {{"GET", "/props", &kLlamaServer, "The model and its settings", props, {}},
          {"GET", "/slots", &kLlamaServer, "Places for requests, and which are at work", slots, {}},
          {"POST",
           "/slots/{id}",
           &kLlamaServer,
           "Refused: prefixes are kept for everybody",
           slot_action,
           {}},
          {"GET", "/lora-adapters", &kLlamaServer, "The adapters there are", lora_adapters, {}},
          {"POST",
           "/lora-adapters",
           &kLlamaServer,
           "How much of each adapter is in answers, as a list of ids and scales",
           set_lora_adapters,
           {}},
          {"POST", "/infill", &kLlamaServer, "Refused: the models cannot fill in", infill, {}}};
}

}  // namespace qw::server::llama_server
