// qianwen plan: the memory a model needs, by kind, before it is loaded.
#include <sys/resource.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/command.h"
#include "app/open.h"
#include "base/error.h"
#include "base/log.h"

namespace qw::app {

namespace {

struct Options : CommonOptions {
  int64_t slots = 1;
  bool measure = false;
};

int64_t peak_resident_bytes() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

/// Loads, fills the whole context of one slot, and reports the process's peak.
int64_t measure(const Options& options, const OpenOptions& open, int64_t ctx) {
  const auto loaded = open_model(model_path(options), open);
  const auto engine = loaded->make_engine();
  std::vector<int32_t> ids(static_cast<size_t>(ctx));
  const int64_t usable = engine->usable_vocab();
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(static_cast<int64_t>(i * 7919) % usable);
  ScoreOptions score;
  // As many rows of logits as a step may hold.
  score.first_row = std::max<int64_t>(0, ctx - step_logit_rows(open.engine));
  score.cancel = &interrupted();
  score.adapter = loaded->adapter;
  const auto ignore = [](int64_t, int64_t, const float*) {};
  engine->score(ids, ignore, score);
  return peak_resident_bytes();
}

/// The tokenizers are opened, too: they are part of what the program takes.
MemoryPlan make_plan(const std::string& path, const OpenOptions& open) {
  const ModelFiles files = open_files(path, true);
  const ModelConfig config = ModelConfig::from_checkpoint(*files.checkpoint);
  ModelFiles draft;
  if (!open.draft_model.empty()) {
    draft = open_draft_files(open.draft_model);
    check_draft_vocabulary(draft, ModelConfig::from_checkpoint(*draft.checkpoint), files, config);
  }
  const auto backend = make_backend(open.device, open.backend);
  return plan_memory(*files.checkpoint, config, *backend, open, /*enforce=*/false,
                     draft.checkpoint.get());
}

std::string mib(int64_t bytes) {
  return fmt::format("{:>10.1f} MiB", static_cast<double>(bytes) / (1 << 20));
}

void run(const Options& options) {
  init_logging(options.log_level);
  OpenOptions open = open_options(options);
  open.engine.n_slots = options.slots;
  const MemoryPlan plan = make_plan(model_path(options), open);
  const int64_t peak = options.measure ? measure(options, open, plan.ctx) : 0;
  if (options.json) {
    nlohmann::ordered_json json = {{"weights_bytes", plan.weights_bytes},
                                   {"kv_bytes", plan.kv_bytes},
                                   {"activations_bytes", plan.activations_bytes},
                                   {"logits_bytes", plan.logits_bytes},
                                   {"working_bytes", plan.working_bytes},
                                   {"program_bytes", plan.program_bytes},
                                   {"draft_bytes", plan.draft_bytes},
                                   {"file_pages_bytes", plan.file_pages_bytes},
                                   {"total_bytes", plan.total_bytes},
                                   {"needed_bytes", plan.needed_bytes},
                                   {"available_bytes", plan.available_bytes},
                                   {"ctx", plan.ctx},
                                   {"slots", options.slots},
                                   {"kv_type", open.engine.kv_type},
                                   {"kv_bytes_per_token", plan.kv_bytes_per_token},
                                   {"trained_ctx", plan.trained_ctx},
                                   {"largest_ctx", plan.largest_ctx},
                                   {"fits", plan.needed_bytes <= plan.available_bytes}};
    if (options.measure) json["measured_peak_bytes"] = peak;
    print_json(json);
    return;
  }
  const std::string draft =
      open.draft_model.empty() ? "" : fmt::format("draft model  {}\n", mib(plan.draft_bytes));
  std::string text = fmt::format(
      "weights      {}\nKV cache     {}  ({} tokens x {} slots, {}, {} bytes a token)\nactivations "
      " {}\nlogits       {}\nworking      {}  (the backend's scratch)\n"
      "program      {}  (code, libraries, tokenizer)\n{}"
      "file pages   {}  (of the model; given back when memory is short)\n"
      "total        {}\navailable    {}\n",
      mib(plan.weights_bytes), mib(plan.kv_bytes), plan.ctx, options.slots, open.engine.kv_type,
      plan.kv_bytes_per_token, mib(plan.activations_bytes), mib(plan.logits_bytes),
      mib(plan.working_bytes), mib(plan.program_bytes), draft, mib(plan.file_pages_bytes),
      mib(plan.total_bytes), mib(plan.available_bytes));
  if (options.measure) text += fmt::format("measured peak{}\n", mib(peak));
  text += fmt::format("largest context that fits: {} tokens (trained on {})\n", plan.largest_ctx,
                      plan.trained_ctx);
  print_result(text);
}

}  // namespace

Command register_plan(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("plan", "Memory needed, by kind, before loading");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options);
  add_draft_flag(*app, *options);
  app->add_option("--slots", options->slots, "Sequences at the same time")
      ->check(integer_in(1, 4096))
      ->capture_default_str();
  app->add_flag("--measure", options->measure,
                "Load it, fill the context, and report the real peak");
  return {app, [options] { run(*options); }};
}

}  // namespace qw::app
