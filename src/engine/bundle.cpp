#include "engine/bundle.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "model/memory_plan.h"
#include "text/tokenizer.h"

namespace qw {
namespace {

void warn(const OpenOptions& options, const std::string& sentence) {
  if (options.on_warning) {
    options.on_warning(sentence);
  } else {
    spdlog::warn("{}", sentence);
  }
}

MemoryRequest request_of(const OpenOptions& options, int64_t ctx) {
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
  request.limit_bytes = options.memory_bytes;
  return request;
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
                       const Backend& backend, const OpenOptions& options, bool enforce) {
  MemoryPlan plan;
  plan.trained_ctx = trained_context(config);
  plan.ctx = options.engine.ctx == 0 ? plan.trained_ctx : options.engine.ctx;
  MemoryRequest request = request_of(options, plan.ctx);
  MemoryForecast forecast = forecast_memory(checkpoint, config, backend, request);
  if (options.engine.ctx == 0 && !forecast.fits() && forecast.largest_ctx > 0) {
    plan.ctx = std::min(plan.trained_ctx, forecast.largest_ctx);
    request = request_of(options, plan.ctx);
    forecast = forecast_memory(checkpoint, config, backend, request);
  }
  plan.weights_bytes = forecast.weights;
  plan.kv_bytes = forecast.kv;
  plan.activations_bytes = forecast.activations;
  plan.logits_bytes = forecast.logits;
  plan.working_bytes = forecast.working;
  plan.program_bytes = forecast.program;
  plan.file_pages_bytes = forecast.file_pages;
  plan.total_bytes = forecast.total();
  plan.needed_bytes = forecast.needed();
  plan.available_bytes = forecast.available;
  plan.kv_tokens = plan.ctx * options.engine.n_slots;
  plan.largest_ctx = forecast.largest_ctx;
  plan.kv_bytes_per_token = forecast.kv_per_token;
  if (enforce) require_memory(forecast, request);
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
  loaded->backend = make_backend(options.device, options.backend);
  loaded->plan =
      plan_memory(*loaded->checkpoint, config, *loaded->backend, options, /*enforce=*/true);
  warn_about_context(loaded->plan, options);
  loaded->engine_options = options.engine;
  loaded->engine_options.ctx = loaded->plan.ctx;
  if (options.memory_bytes > 0)
    loaded->engine_options.spare_bytes = options.memory_bytes - loaded->plan.needed_bytes;

  LoadOptions load;
  load.quiet = options.quiet;
  load.cancel = options.cancel;
  load.on_warning = [&options](const std::string& sentence) { warn(options, sentence); };
  loaded->model = Model::load(loaded->checkpoint, *loaded->backend, load);
  if (!options.adapters.empty()) loaded->adapter = loaded->model->add_adapters(options.adapters);
  return loaded;
}

std::unique_ptr<Engine> LoadedModel::make_engine() const {
  return std::make_unique<Engine>(*model, tokenizer, engine_options);
}

}  // namespace qw
