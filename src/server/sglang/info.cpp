// GET /get_model_info, /get_server_info, /health_generate; /flush_cache.
#include "server/generation/job.h"
#include "server/service.h"
#include "server/sglang/common.h"
#include "server/sglang/sglang.h"

namespace qw::server::sglang {

const Dialect kSglang{"sglang", error_body};

std::vector<Endpoint> endpoints() {
  std::vector<Endpoint> all = generate_endpoints();
  for (auto make : {encode_endpoints, info_endpoints}) {
    for (Endpoint& endpoint : make())
      all.push_back(std::move(endpoint));
  }
  return all;
}

Json error_body(const Error& error, int status) {
  return {{"error",
           {{"message", error.message()},
            {"type", status < 500 ? "BadRequest" : "InternalServerError"},
            {"code", status}}}};
}

namespace {

void model_info(const std::shared_ptr<Call>& call) {
  with_model(call, "", [call](const std::shared_ptr<ServedModel>& model) {
    call->respond({{"model_path", model->spec().path},
                   {"tokenizer_path", model->spec().path},
                   {"is_generation", true},
                   {"preferred_sampling_params", nullptr},
                   {"weight_version", "default"},
                   {"has_image_understanding", false},
                   {"has_audio_understanding", false},
                   {"model_type", model->files().config().moe ? "qwen2_moe" : "qwen2"},
                   {"architectures", Json::array({model->files().config().architecture})}});
  });
}

void server_info(const std::shared_ptr<Call>& call) {
  with_model(call, "", [call](const std::shared_ptr<ServedModel>& model) {
    const HostStats stats = model->host().stats();
    const EngineOptions& engine = model->files().engine_options;
    const int64_t n_tokens = stats.n_pages * stats.page_tokens;
    Json state = {{"num_running_reqs", stats.n_running},
                  {"num_queue_reqs", stats.n_waiting},
                  {"token_capacity", n_tokens},
                  {"num_free_tokens", stats.n_free_pages * stats.page_tokens},
                  {"num_cached_tokens", stats.n_kept_pages * stats.page_tokens}};
    call->respond({{"model_path", model->spec().path},
                   {"served_model_name", model->name()},
                   {"context_length", model->context()},
                   {"max_total_num_tokens", n_tokens},
                   {"max_running_requests", engine.n_slots},
                   {"chunked_prefill_size", engine.chunk_tokens},
                   {"page_size", stats.page_tokens},
                   {"kv_cache_dtype", engine.kv_type},
                   {"disable_radix_cache", !engine.prefix_cache},
                   {"internal_states", Json::array({std::move(state)})},
                   {"version", call->services().options.version}});
  });
}

/// One token, to see that the engine computes.
class HealthAnswer : public GenerationListener {
 public:
  explicit HealthAnswer(std::shared_ptr<Call> call) : call_(std::move(call)) {}
  void on_end(const GenerationResult&) override {
    call_->respond(http::Response{200, "text/plain", {}, ""});
  }
  void on_error(const Error& error) override { call_->fail(error); }

 private:
  std::shared_ptr<Call> call_;
};

void health_generate(const std::shared_ptr<Call>& call) {
  GenerationTask task;
  task.prompts.push_back({"", {0}, true});
  task.set("max_new_tokens", "max_new_tokens", 1);
  generate(call, std::move(task),
           [call](const std::shared_ptr<ServedModel>&, const std::vector<Request>&) {
             return std::make_shared<HealthAnswer>(call);
           });
}

/// Forgets the prefixes that nobody uses, of every model that is loaded. There is nothing to say of
/// how, so whatever a body says is unknown.
void flush_cache(const std::shared_ptr<Call>& call) {
  struct Nothing {};
  Nothing nothing;
  if (!call->request().body.empty()) call->read(FieldTable<Nothing>(), nothing);
  for (const ModelHub::Listing& model : call->services().hub->list()) {
    if (model.loaded) model.loaded->host().run([](Engine& engine) { engine.drop_kept_pages(); });
  }
  call->respond(http::Response{200, "text/plain", {}, "Cache flushed.\n"});
}

}  // namespace

std::vector<Endpoint> info_endpoints() {
  std::vector<Endpoint> out;
  for (const char* path : {"/get_model_info", "/model_info"})
    out.push_back({"GET", path, &kSglang, "What the default model is", model_info, {}});
  for (const char* path : {"/get_server_info", "/server_info"})
    out.push_back(
        {"GET", path, &kSglang, "The default model's settings and load", server_info, {}});
  out.push_back({"GET",
                 "/health_generate",
                 &kSglang,
                 "Whether the default model computes",
                 health_generate,
                 {},
                 true,
                 {.answer = types::anything(), .answer_type = "text/plain", .generates = true}});
  for (const char* method : {"GET", "POST"})
    out.push_back({method,
                   "/flush_cache",
                   &kSglang,
                   "Forgets prefixes that nobody uses",
                   flush_cache,
                   {},
                   true,
                   {.answer = types::anything(), .answer_type = "text/plain"},
                   "",
                   /*needs_admin=*/true});
  return out;
}

}  // namespace qw::server::sglang
