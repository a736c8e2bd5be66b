// qianwen extract: the adapter that makes one checkpoint of another.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/command.h"
#include "app/flag_groups.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "quantize/adapter_extraction.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

struct Options : CommonOptions {
  std::string base, output, type = "f32";
  ExtractionOptions extraction;
};

struct Opened {
  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  NetworkSources sources;

  explicit Opened(const std::string& path)
      : checkpoint(Checkpoint::open(path)),
        config(ModelConfig::from_checkpoint(*checkpoint)),
        sources(open_network(*checkpoint, config)) {}
};

int64_t n_weights(const NetworkSources& sources) {
  int64_t sum = 0;
  sources.for_each([&sum](const LinearParts& linear) {
    for (const LinearSource& part : linear.parts)
      sum += part.n * part.k;
  });
  return sum;
}

ordered_json to_json(const Options& options, const Extraction& extraction, double seconds) {
  ordered_json modules = ordered_json::array();
  for (const ExtractedModule& module : extraction.modules)
    modules.push_back({{"name", module.name}, {"change", module.change}, {"kept", module.kept}});
  return {{"output", options.output},    {"rank", options.extraction.rank},
          {"kept", extraction.kept},     {"modules", std::move(modules)},
          {"whole", extraction.n_whole}, {"unchanged", extraction.n_unchanged},
          {"seconds", seconds},          {"warnings", extraction.warnings}};
}

std::string to_text(const Options& options, const Extraction& extraction, double seconds) {
  std::string text = fmt::format("{:<52} {:>12} {:>8}\n", "module", "change", "kept");
  std::vector<ExtractedModule> worst = extraction.modules;
  std::ranges::stable_sort(worst, {}, &ExtractedModule::kept);
  constexpr size_t kShown = 10;
  for (size_t i = 0; i < std::min(kShown, worst.size()); ++i)
    text += fmt::format("{:<52} {:>10.4f} % {:>6.2f} %\n", worst[i].name, 100 * worst[i].change,
                        100 * worst[i].kept);
  if (worst.size() > kShown)
    text += fmt::format("... and {} of which more is kept\n", worst.size() - kShown);
  return text + fmt::format(
                    "rank {} keeps {:.2f} % of the change of {} modules, {} more whole; {} "
                    "written in {:.1f} s\n",
                    options.extraction.rank, 100 * extraction.kept, extraction.modules.size(),
                    extraction.n_whole, options.output, seconds);
}

void run(Options& options) {
  init_logging(options.log_level);
  refuse_adapters(options, "extract");
  const auto start = std::chrono::steady_clock::now();
  const Opened base(options.base), tuned(options.model);
  options.extraction.dtype = *dtype_from_name(options.type);
  options.extraction.base_name = options.base;
  ThreadPool pool(options.load.threads > 0 ? options.load.threads : physical_cores());
  Progress progress("comparing weights", n_weights(base.sources), Progress::Unit::kItems);
  const Extraction extraction = extract_adapter(
      base.config, base.sources, tuned.config, tuned.sources, options.extraction, options.output,
      pool, [&](int64_t n) { progress.add(n); }, &interrupted());
  progress.finish();
  base.checkpoint->check_readable();
  tuned.checkpoint->check_readable();
  for (const std::string& warning : extraction.warnings)
    logger().warn("{}", warning);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (options.json) return print_json(to_json(options, extraction, seconds.count()));
  print_result(to_text(options, extraction, seconds.count()));
}

}  // namespace

Command register_extract(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand(
      "extract", "Write the LoRA adapter that makes MODEL of the checkpoint it was tuned from");
  add_model_argument(*app, *options, true);
  add_compute_flags(*app, *options);
  group_compute_flags(*app, {"--threads"});
  app->add_option("--base", options->base, "The checkpoint that MODEL was tuned from")->required();
  app->add_option("--output", options->output, "The directory to write")->required();
  app->add_option("--rank", options->extraction.rank, "Of every module's change")
      ->capture_default_str()
      ->check(integer_in(1, 4096));
  app->add_option("--type", options->type, "f32, f16 or bf16")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
  app->add_flag("--embeddings", options->extraction.embeddings,
                "Take embedding and output matrix along whole where they differ");
  return {app, [options] { run(*options); }};
}

}  // namespace qw::app
