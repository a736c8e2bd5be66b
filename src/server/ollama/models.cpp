// GET /api/tags, /api/ps, /api/version; POST /api/show; and what changes models, which is refused.
#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "server/model_facts.h"
#include "server/ollama/common.h"
#include "server/service.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace qw::server::ollama {

namespace {

using std::chrono::system_clock;

Json details_json(const ModelFacts& facts) {
  return {{"parent_model", ""},
          {"format", facts.format},
          {"family", facts.family},
          {"families", {facts.family}},
          {"parameter_size", facts.parameter_size},
          {"quantization_level", facts.quantization}};
}

/// {"name", "model", "size", "digest", "details"} of a model, as far as its files tell.
Json model_json(const ModelHub::Listing& model) {
  Json json = {{"name", model.name}, {"model", model.name}};
  try {
    const ModelFacts facts = read_model_facts(model.path, model.adapter_path);
    json["modified_at"] = time_text(system_clock::from_time_t(facts.modified));
    json["size"] = facts.file_bytes;
    json["digest"] = facts.digest;
    json["details"] = details_json(facts);
    json["details"]["parent_model"] = model.parent;
  } catch (const Error& error) {  // its file may be gone, which is told to who asks for it
    logger().warn("{} (model {})", error.message(), model.name);
  }
  return json;
}

void tags(const std::shared_ptr<Call>& call) {
  Json models = Json::array();
  for (const ModelHub::Listing& model : call->services().hub->list())
    models.push_back(model_json(model));
  call->respond({{"models", std::move(models)}});
}

void ps(const std::shared_ptr<Call>& call) {
  Json models = Json::array();
  for (const ModelHub::Listing& model : call->services().hub->list()) {
    if (model.loaded == nullptr || !model.parent.empty()) continue;
    Json json = model_json(model);
    json.erase("modified_at");
    json["size"] = model.loaded->files().plan.needed_bytes;
    json["size_vram"] = 0;
    json["context_length"] = model.loaded->context();
    // Ollama's clients read a time; one that stays gets the last that they can.
    json["expires_at"] = model.expires_in ? time_text(system_clock::now() + *model.expires_in)
                                          : "9999-12-31T23:59:59.000000000Z";
    models.push_back(std::move(json));
  }
  call->respond({{"models", std::move(models)}});
}

void version(const std::shared_ptr<Call>& call) {
  call->respond({{"version", call->services().options.version}});
}

// ---- /api/show ---------------------------------------------------------------------------------

struct ShowTask {
  std::string model, name;
  bool verbose = false;
};

const FieldTable<ShowTask>& show_fields() {
  using Task = ShowTask;
  static const FieldTable<Task> table = {
      string_field<Task>("model", &Task::model),
      string_field<Task>("name", &Task::name, "the older name of model"),
      flag_field<Task>("verbose", &Task::verbose, "with the tokens of the vocabulary"),
      refused<Task>("system", "a request cannot change a model"),
      refused<Task>("template", "a request cannot change a model"),
      refused<Task>("options", "a request cannot change a model"),
  };
  return table;
}

Json model_info(const ModelFacts& facts, const ModelFiles& files, bool verbose) {
  const ModelConfig& config = facts.config;
  const std::string prefix = facts.family + ".";
  Json info = {{"general.architecture", facts.family},
               {"general.parameter_count", config.n_parameters()},
               {prefix + "block_count", config.n_layers},
               {prefix + "context_length", config.max_positions},
               {prefix + "embedding_length", config.hidden},
               {prefix + "feed_forward_length", config.intermediate},
               {prefix + "attention.head_count", config.n_heads},
               {prefix + "attention.head_count_kv", config.n_kv_heads},
               {prefix + "attention.layer_norm_rms_epsilon", config.rms_norm_eps},
               {prefix + "rope.freq_base", config.rope.theta},
               {prefix + "vocab_size", config.vocab}};
  if (config.moe) {
    info[prefix + "expert_count"] = config.moe->n_experts;
    info[prefix + "expert_used_count"] = config.moe->top_k;
  }
  if (verbose && files.tokenizer) {
    Json tokens = Json::array();
    for (int32_t id = 0; id < files.tokenizer->size(); ++id)
      tokens.push_back(files.tokenizer->token_text(id));
    info["tokenizer.ggml.tokens"] = std::move(tokens);
  }
  return info;
}

/// "temperature 0.7" a line: what the checkpoint says, under Ollama's names.
std::string parameters_text(const GenerationConfig& generation) {
  std::string text;
  const Json applied = generation.applied();
  for (const auto& [name, entry] : applied.items()) {
    if (entry["source"] != "file" || name.ends_with("token_id") || name == "do_sample") continue;
    text += fmt::format("{:<30} {}\n", name == "repetition_penalty" ? "repeat_penalty" : name,
                        entry["value"].dump());
  }
  return text;
}

void show(const std::shared_ptr<Call>& call) {
  ShowTask task;
  call->read(show_fields(), task);
  const std::string& asked = task.model.empty() ? task.name : task.model;
  const ModelHub::Listing model = call->services().hub->find(model_name(call->services(), asked));
  const ModelFacts facts = read_model_facts(model.path);
  const ModelFiles files =
      model.loaded ? ModelFiles(model.loaded->files()) : open_files(model.path);
  const std::string text_template = files.chat_template ? files.chat_template->source() : "";
  call->respond({{"modelfile", fmt::format("# Jinja, not Go, as the checkpoint has it\nFROM {}\n"
                                           "TEMPLATE \"\"\"{}\"\"\"\n",
                                           model.path, text_template)},
                 {"parameters", parameters_text(files.generation)},
                 {"template", text_template},
                 {"details", details_json(facts)},
                 {"model_info", model_info(facts, files, task.verbose)},
                 {"capabilities", {"completion", "tools"}},
                 {"modified_at", time_text(system_clock::from_time_t(facts.modified))}});
}

// ---- what changes models -----------------------------------------------------------------------

struct PullTask {
  std::string model, name;
  bool stream = true;
};

const FieldTable<PullTask>& pull_fields() {
  using Task = PullTask;
  static const FieldTable<Task> table = {string_field<Task>("model", &Task::model),
                                         string_field<Task>("name", &Task::name),
                                         flag_field<Task>("stream", &Task::stream),
                                         ignored<Task>("insecure", "nothing is downloaded")};
  return table;
}

/// There is nothing to do for a model that is served, and nothing that can be done for another.
void pull(const std::shared_ptr<Call>& call) {
  PullTask task;
  call->read(pull_fields(), task);
  const std::string name =
      model_name(call->services(), task.model.empty() ? task.name : task.model);
  const auto models = call->services().hub->list();
  const bool is_served = std::ranges::any_of(models, [&](const ModelHub::Listing& model) {
    return model.name == name || std::ranges::find(model.aliases, name) != model.aliases.end();
  });
  if (!is_served) {
    throw RequestError(ErrorKind::kUnsupported,
                       fmt::format("[request] model: expected one that is served, got '{}' (this "
                                   "server does not download models; start it with them)",
                                   printable(name)),
                       "model");
  }
  call->respond({{"status", "success"}});
}

void refuse_change(const std::shared_ptr<Call>& call) {
  throw RequestError(ErrorKind::kUnsupported,
                     fmt::format("[request] {}: expected a request that leaves the models as they "
                                 "are, got one that changes them (they are set when the server "
                                 "starts)",
                                 call->endpoint().path));
}

}  // namespace

std::vector<Endpoint> model_endpoints() {
  std::vector<Endpoint> all = {
      {"GET", "/api/tags", &kOllama, "The models there are", tags, {}},
      {"GET", "/api/ps", &kOllama, "The models that are loaded", ps, {}},
      {"GET", "/api/version", &kOllama, "The program's version", version, {}},
      {"POST",
       "/api/show",
       &kOllama,
       "What a model is",
       show,
       infos_of(show_fields()),
       true,
       {.example = {{"verbose", false}}}},
      {"POST",
       "/api/pull",
       &kOllama,
       "Succeeds for a model that is served; downloads nothing",
       pull,
       infos_of(pull_fields()),
       true,
       {.example = {{"model", ""}}}},
  };
  for (const char* path : {"/api/push", "/api/create", "/api/copy"})
    all.push_back({"POST",
                   path,
                   &kOllama,
                   "Refused: models are set at start",
                   refuse_change,
                   {},
                   true,
                   {.always_refused = true}});
  all.push_back({"DELETE",
                 "/api/delete",
                 &kOllama,
                 "Refused: models are set at start",
                 refuse_change,
                 {},
                 true,
                 {.always_refused = true}});
  return all;
}

}  // namespace qw::server::ollama
