// qianwen imatrix: how much each input of each matrix matters, for quantize --imatrix.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <chrono>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "app/calibration_input.h"
#include "app/command.h"
#include "app/flag_groups.h"
#include "app/open.h"
#include "app/output_room.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "quantize/importance.h"

namespace qw::app {

namespace {

struct Options : CommonOptions {
  std::string output, from;
  bool force = false;
  CalibrationFlags calibration;
};

void check_output(const Options& options) {
  check_file_name("imatrix", "--output", options.output);
  std::error_code error;
  if (std::filesystem::exists(options.output, error) && !options.force) {
    fail(ErrorKind::kInvalidArgument, "imatrix",
         "--output: expected a file that is not there yet (or --force), got {}",
         printable(options.output, 4096));
  }
  check_room("imatrix", options.output, 0);
}

quantize::ImportanceMatrix collect(const Options& options) {
  const std::string path = model_path(options);
  const ModelFiles files = open_for_reading(options, true);
  const ModelConfig config = ModelConfig::from_checkpoint(*files.checkpoint);
  const NetworkSources sources = open_network(*files.checkpoint, config);
  const quantize::CalibrationSet calibration = read_calibration(options.calibration, files, path);
  logger().info("calibration: {}", calibration.summary());
  check_room("imatrix", options.output, importance_work_bytes(config, sources, calibration), true);
  const auto backend = calibration_backend(options);
  ThreadPool pool(options.load.threads > 0 ? options.load.threads : physical_cores());
  // Layers that were there take no time.
  std::optional<Progress> progress;
  int n_resumed = 0;
  quantize::LayerRequest request;
  request.output = options.output;
  request.replaces = options.force;
  request.isa = options.load.isa;
  request.cancel = &interrupted();
  request.component = "imatrix";
  request.on_resumed = [&](int n_layers) {
    n_resumed = n_layers;
    if (n_resumed > 0)
      logger().info("{} of {} layers were there already", n_resumed, config.n_layers);
    progress.emplace("layers", config.n_layers - n_resumed, Progress::Unit::kItems);
  };
  request.on_layer = [&](int layer, const auto&) {
    if (layer >= n_resumed) progress->add(1);
  };
  return make_importance(
      {*files.checkpoint, config, sources}, calibration, *backend, pool, request,
      {options.calibration.file.empty()
           ? "built-in"
           : std::filesystem::path(options.calibration.file).filename().string()});
}

void run(const Options& options) {
  init_logging(options.log_level);
  refuse_adapters(options, "imatrix");
  const auto start = std::chrono::steady_clock::now();
  check_output(options);
  quantize::ImportanceMatrix matrix;
  if (options.from.empty()) {
    matrix = collect(options);
  } else {
    matrix = quantize::read_importance(options.from);
    write_importance(matrix, options.output);
  }
  int64_t n_unseen = 0;
  for (const auto& [name, entry] : matrix.entries) {
    for (const float count : entry.counts)
      n_unseen += count == 0 ? 1 : 0;
  }
  if (n_unseen > 0)
    logger().warn("{} matrices of experts got no tokens: their inputs count all as much", n_unseen);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (options.json) {
    return print_json({{"output", options.output},
                       {"entries", matrix.entries.size()},
                       {"chunks", matrix.n_chunks},
                       {"chunk_tokens", matrix.chunk_tokens},
                       {"datasets", matrix.datasets},
                       {"unseen", n_unseen},
                       {"seconds", seconds.count()}});
  }
  print_result(fmt::format("{} entries, {} chunks of up to {} tokens; {} written in {:.1f} s\n",
                           matrix.entries.size(), matrix.n_chunks, matrix.chunk_tokens,
                           options.output, seconds.count()));
}

}  // namespace

Command register_imatrix(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app =
      root.add_subcommand("imatrix", "Write how much each input of each matrix matters");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options);
  group_compute_flags(*app, {"--threads", "--isa", "--device", "--activations"});
  app->add_option("--output", options->output, "The file to write: .gguf, or .dat")->required();
  CLI::Option* from = app->add_option("--from", options->from,
                                      "Rewrite this .gguf or .dat instead of running a model");
  app->add_flag("--force", options->force, "Replace the file that is there");
  add_calibration_flags(*app, options->calibration);
  for (const char* flag : {"--calibration", "--calibration-length", "--calibration-tokens"})
    app->get_option(flag)->excludes(from);
  app->get_option("MODEL")->excludes(from);
  return {app, [options] { run(*options); }};
}

}  // namespace qw::app
