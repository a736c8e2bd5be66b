#include "engine/bundle.h"

#include <algorithm>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "engine/model_drafter.h"
#include "engine/prefix_store.h"
#include "model/memory_plan.h"
#include "text/tokenizer.h"

namespace qw {
namespace {

void warn(const OpenOptions& options, const std::string& sentence) {
  if (options.on_warning) {
    options.on_warning(sentence);
  } else {
    logger().warn("{}", sentence);
  }
}

MemoryRequest request_of(const OpenOptions& options, int64_t ctx, int64_t promised_bytes) {
  const std::optional<DType> kv_type = dtype_from_name(options.engine.kv_type);
  if (!kv_type) {
    fail(ErrorKind::kInvalidArgument, "engine",
         "kv type: expected the name of an element type, got '{}'",
         printable(options.engine.kv_type));
  }
  MemoryRequest request;
  request.ctx = ctx;
  request.n_slots = options.engine.n_slots;
  request.chunk_tokens = options.engine.chunk_tokens;
  request.logit_rows = step_logit_rows(options.engine);
  request.kv_type = *kv_type;
  request.adapters = options.adapters;
  request.program_bytes = program_memory_bytes();
  if (!options.prefix_cache_dir.empty()) {
    const PrefixStoreOptions store;
    request.program_bytes += store.queue_bytes + store.read_ahead_bytes;
  }
  request.limit_bytes = options.memory_bytes;
  request.promised_bytes = promised_bytes;
  return request;
}

/// What a model takes, and a draft model beside it.
struct Needs {
  MemoryForecast model, draft;  // draft: all 0 where there is none
  int64_t largest_ctx = 0;

  /// The scratch is the backend's, so the larger one serves both.
  int64_t draft_bytes() const {
    return draft.needed() - draft.working + std::max<int64_t>(draft.working - model.working, 0);
  }
  bool fits() const { return model.needed() + draft_bytes() <= model.available; }
  [[noreturn]] void refuse(int64_t ctx, int64_t n_slots) const {
    const auto mib = [](int64_t bytes) {
      return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20));
    };
    fail(ErrorKind::kOutOfMemory, "memory",
         "draft model for {} tokens x {} slots: expected to need at most {} (what the model "
         "leaves), got {} (weights {}, KV cache {}, activations {}, logits {}; {})",
         ctx, n_slots, mib(model.available - model.needed()), mib(draft_bytes()),
         mib(draft.weights), mib(draft.kv), mib(draft.activations), mib(draft.logits),
         largest_ctx > 0 ? fmt::format("a context of {} tokens would fit", largest_ctx)
                         : "no context would fit");
  }
};

Needs needs_of(const Checkpoint& checkpoint, const ModelConfig& config, const Backend& backend,
               const OpenOptions& options, int64_t ctx, int64_t promised_bytes,
               const Checkpoint* draft) {
  Needs out;
  out.model = forecast_memory(checkpoint, config, backend, request_of(options, ctx, promised_bytes));
  out.largest_ctx = out.model.largest_ctx;
  if (draft == nullptr) return out;
  const ModelConfig draft_config = ModelConfig::from_checkpoint(*draft);
  EngineOptions engine = options.engine;
  engine.ctx = ctx;
  MemoryRequest request = request_of(options, draft_context(draft_config, engine), 0);
  request.logit_rows = draft_logit_rows(engine);
  request.adapters = {};
  request.program_bytes = 0;
  request.limit_bytes = 1;  // what is available is the model's affair
  out.draft = forecast_memory(*draft, draft_config, backend, request);
  // Both caches grow with the context, the draft's as far as it was made for.
  const int64_t slots = options.engine.n_slots, page = backend.kv_page_tokens();
  const int64_t room = out.model.available - (out.model.needed() - out.model.kv) -
                       (out.draft_bytes() - out.draft.kv);
  const int64_t most = trained_context(draft_config);
  int64_t fits = room / (slots * (out.model.kv_per_token + out.draft.kv_per_token));
  if (fits > most)
    fits = (room - slots * most * out.draft.kv_per_token) / (slots * out.model.kv_per_token);
  out.largest_ctx = std::max<int64_t>(fits / page * page, 0);
  return out;
}

void check_vocabulary(const ModelFiles& files, const ModelConfig& config) {
  if (!files.tokenizer || files.tokenizer->size() <= config.vocab) return;
  fail(ErrorKind::kCorrupt, "checkpoint",
       "tokenizer: expected at most the embedding's {} tokens, got {} ({})", config.vocab,
       files.tokenizer->size(), printable(files.tokenizer->source(), 4096));
}

/// End tokens are ids of this model, and there are some.
void check_generation(const ModelFiles& files, const ModelConfig& config,
                      const OpenOptions& options) {
  try {
    files.generation.validate(config.vocab);
  } catch (const Error& error) {
    throw Error(ErrorKind::kCorrupt, fmt::format("{} (generation_config.json)", error.message()));
  }
  if (files.generation.eos_token_id.empty()) {
    warn(options, "no end token is known: answers end at max_new_tokens or the context");
  }
}

void warn_about_context(const MemoryPlan& plan, const OpenOptions& options) {
  if (options.engine.ctx == 0 && plan.ctx < plan.trained_ctx) {
    warn(options, fmt::format("context: {} tokens, the largest that fits the memory ({} MiB "
                              "available); the model was made for {}",
                              plan.ctx, plan.available_bytes >> 20, plan.trained_ctx));
  }
  if (plan.ctx > plan.trained_ctx) {
    warn(options, fmt::format("context: {} tokens is more than the {} that the model was made for",
                              plan.ctx, plan.trained_ctx));
  }
}

}  // namespace

MemoryPlan plan_memory(const Checkpoint& checkpoint, const ModelConfig& config,
                       const Backend& backend, const OpenOptions& options, bool enforce,
                       const Checkpoint* draft) {
  MemoryPlan plan;
  plan.trained_ctx = trained_context(config);
  plan.ctx = options.engine.ctx == 0 ? plan.trained_ctx : options.engine.ctx;
  const auto needs_with = [&](int64_t promised_bytes) {
    return needs_of(checkpoint, config, backend, options, plan.ctx, promised_bytes, draft);
  };
  Needs needs = needs_with(options.context_yields ? options.promised_bytes : 0);
  if (options.engine.ctx == 0 && !needs.fits() && needs.largest_ctx > 0)
    plan.ctx = std::min(plan.trained_ctx, needs.largest_ctx);
  needs = needs_with(options.promised_bytes);
  const MemoryForecast& forecast = needs.model;
  plan.weights_bytes = forecast.weights;
  plan.kv_bytes = forecast.kv;
  plan.activations_bytes = forecast.activations;
  plan.logits_bytes = forecast.logits;
  plan.working_bytes = forecast.working;
  plan.program_bytes = forecast.program;
  plan.draft_bytes = needs.draft_bytes();
  plan.file_pages_bytes = forecast.file_pages + needs.draft.file_pages;
  plan.needed_bytes = forecast.needed() + plan.draft_bytes;
  plan.total_bytes = plan.needed_bytes + plan.file_pages_bytes;
  plan.available_bytes = forecast.available;
  plan.kv_tokens = plan.ctx * options.engine.n_slots;
  plan.largest_ctx = needs.largest_ctx;
  plan.kv_bytes_per_token = forecast.kv_per_token + needs.draft.kv_per_token;
  if (!enforce) return plan;
  require_memory(forecast, request_of(options, plan.ctx, options.promised_bytes));
  if (!needs.fits()) needs.refuse(plan.ctx, options.engine.n_slots);
  return plan;
}

std::unique_ptr<LoadedModel> open_model(const std::string& path, const OpenOptions& options) {
  auto loaded = std::make_unique<LoadedModel>();
  static_cast<ModelFiles&>(*loaded) = open_files(path);
  for (const std::string& warning : loaded->warnings)
    warn(options, warning);

  const ModelConfig config = ModelConfig::from_checkpoint(*loaded->checkpoint);
  check_vocabulary(*loaded, config);
  check_generation(*loaded, config, options);
  ModelFiles draft;
  if (!options.draft_model.empty()) {
    // Its generation defaults and template are nobody's concern, what they warn of either.
    draft = open_draft_files(options.draft_model);
    const ModelConfig draft_config = ModelConfig::from_checkpoint(*draft.checkpoint);
    check_vocabulary(draft, draft_config);
    check_draft_vocabulary(draft, draft_config, *loaded, config);
  }
  std::shared_ptr<PrefixStore> store;
  if (!options.prefix_cache_dir.empty())
    store = std::make_shared<PrefixStore>(
        PrefixStoreOptions{options.prefix_cache_dir, options.prefix_cache_bytes});
  if (store && (!options.engine.prefix_cache || config.rope.scaling == RopeScaling::kDynamic)) {
    warn(options,
         "prefix cache: nothing is kept without pages that outlive their request, which "
         "dynamic NTK scaling and no-prefix-cache rule out");
  }
  loaded->backend = make_backend(options.device, options.backend);
  loaded->plan = plan_memory(*loaded->checkpoint, config, *loaded->backend, options,
                             /*enforce=*/true, draft.checkpoint.get());
  warn_about_context(loaded->plan, options);
  loaded->engine_options = options.engine;
  loaded->engine_options.ctx = loaded->plan.ctx;
  loaded->engine_options.prefix_store = store;
  if (options.memory_bytes > 0)
    loaded->engine_options.spare_bytes = options.memory_bytes - loaded->plan.needed_bytes;

  LoadOptions load;
  if (store) load.content_hashes.push_back(store->hash());
  if (!options.slot_save_path.empty()) {
    make_cache_directory(options.slot_save_path, "slots");
    remove_abandoned_files(options.slot_save_path, "");
    loaded->slot_hash = std::make_shared<const KeyedHash>(options.slot_save_path, "slots");
    loaded->slot_hash_index = load.content_hashes.size();
    load.content_hashes.push_back(loaded->slot_hash);
  }
  load.quiet = options.quiet;
  load.cancel = options.cancel;
  load.on_warning = [&options](const std::string& sentence) { warn(options, sentence); };
  loaded->model = Model::load(loaded->checkpoint, *loaded->backend, load);
  if (draft.checkpoint) {
    const int64_t limit = trained_context(ModelConfig::from_checkpoint(*draft.checkpoint));
    if (limit < loaded->plan.ctx) {
      warn(options, fmt::format("draft model: guesses end at its context of {} tokens; the model's "
                                "is {}",
                                limit, loaded->plan.ctx));
    }
    load.on_warning = [&options](const std::string& sentence) {
      warn(options, fmt::format("draft model: {}", sentence));
    };
    load.content_hashes.clear();
    loaded->draft_model = Model::load(draft.checkpoint, *loaded->backend, load);
  }
  if (!options.adapters.empty()) loaded->adapter = loaded->model->add_adapters(options.adapters);
  loaded->backend->sync();
  return loaded;
}

std::unique_ptr<Engine> LoadedModel::make_engine() const {
  return std::make_unique<Engine>(*model, tokenizer, engine_options, draft_model.get());
}

}  // namespace qw
