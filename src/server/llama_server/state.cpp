// GET /props, /slots, /lora-adapters; and what is refused: saving slots, filling in.
#include "engine/bundle.h"
#include "server/llama_server/common.h"
#include "server/service.h"
#include "text/chat_template.h"

namespace qw::server::llama_server {

namespace {

/// Calls `use` with the model that the query names ("?model="), or the default.
void with_asked_model(const std::shared_ptr<Call>& call,
                      std::function<void(const std::shared_ptr<ServedModel>&)> use) {
  const std::string* name = call->request().parameter("model");
  with_model(call, name == nullptr ? "" : *name, std::move(use));
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

void lora_adapters(const std::shared_ptr<Call>& call) {
  with_asked_model(call, [call](const std::shared_ptr<ServedModel>& model) {
    Json list = Json::array();
    for (const AdapterSpec& adapter : model->spec().open.adapters)
      list.push_back({{"id", list.size()}, {"path", adapter.path}, {"scale", adapter.scale}});
    call->respond(std::move(list));
  });
}

[[noreturn]] void refuse(std::string_view what, std::string_view expected, std::string_view why) {
  throw RequestError(ErrorKind::kUnsupported,
                     fmt::format("[request] {}: expected {}, got none ({})", what, expected, why));
}

void set_lora_adapters(const std::shared_ptr<Call>&) {
  refuse("lora-adapters", "adapters that were named when the server started",
         "their scales do not change while it runs");
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
  return {
      {"GET", "/props", &kLlamaServer, "The model and its settings", props, {}},
      {"GET", "/slots", &kLlamaServer, "Places for requests, and which are at work", slots, {}},
      {"POST",
       "/slots/{id}",
       &kLlamaServer,
       "Refused: prefixes are kept for everybody",
       slot_action,
       {}},
      {"GET", "/lora-adapters", &kLlamaServer, "The adapters that are in force", lora_adapters, {}},
      {"POST",
       "/lora-adapters",
       &kLlamaServer,
       "Refused: adapters are set at start",
       set_lora_adapters,
       {}},
      {"POST", "/infill", &kLlamaServer, "Refused: the models cannot fill in", infill, {}}};
}

}  // namespace qw::server::llama_server
