// qianwen convert: another kind of file of the same model.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/command.h"
#include "app/convert_codes.h"
#include "app/directory_output.h"
#include "app/flag_groups.h"
#include "app/gguf_output.h"
#include "base/error.h"
#include "base/log.h"
#include "quantize/kept_types.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

struct Options : CommonOptions {
  std::string container = "gguf", type = "bf16";
  std::string version = "gemm";  // of AWQ
  bool v2 = false;               // of GPTQ
  double max_error = 0.001;
  int64_t shard_bytes = DirectoryChoices().shard_bytes;
  GgufOutput output;
};

/// Weights stay what they are, as far as a type holds them: --type same, or a block type for what
/// is quantised already.
bool keeps_weights(const Options& options) {
  return options.type == "same" || is_block(*dtype_from_name(options.type));
}

/// A file that keeps its weights. Errors: invalid_argument (a block type, and nothing is
/// quantised), those of plan_gguf.
GgufPlan plan_kept(const Options& options, const GgufModel& model, ThreadPool& pool) {
  const bool is_same = options.type == "same";
  const quantize::KeptTypes types = quantize::find_kept_types(
      model.sources, is_same ? std::nullopt : dtype_from_name(options.type), pool, &interrupted());
  if (!is_same && types.n_quantised.empty()) {
    fail(ErrorKind::kInvalidArgument, "convert",
         "--type {}: expected weights that are quantised already, got none (quantize --to {} "
         "quantises)",
         options.type, options.type);
  }
  GgufChoices choices;
  choices.types = types.of;
  choices.recipe = recipe_like(types.n_quantised.empty() ? types.n_weights : types.n_quantised);
  choices.name = options.output.name;
  GgufPlan plan = model.plan(choices);
  if (types.n_reordered > 0) {
    plan.warnings.push_back(
        fmt::format("{} matrices have groups of inputs that are no neighbours (act-order): blocks "
                    "of 32 neighbours are rounded anew",
                    types.n_reordered));
  }
  return plan;
}

void write_gguf(const Options& options) {
  init_logging(options.log_level);
  const auto start = std::chrono::steady_clock::now();
  const GgufModel model = GgufModel::open(model_path(options));
  ThreadPool pool(options.load.threads > 0 ? options.load.threads : physical_cores());
  GgufOutput output = options.output;
  if (keeps_weights(options)) {
    output.max_error = options.max_error;
    return make_gguf(options, output, model, plan_kept(options, model, pool), pool, start);
  }
  GgufChoices choices;
  choices.recipe = find_gguf_recipe(options.type);
  choices.name = output.name;
  make_gguf(options, output, model, model.plan(choices), pool, start);
}

/// A Hugging Face directory.
void write_directory(const Options& options) {
  init_logging(options.log_level);
  const GgufOutput& output = options.output;
  DirectoryRequest request;
  request.model = model_path(options);
  request.output = output.path;
  request.type = options.type;
  request.shard_bytes = options.shard_bytes;
  request.threads = options.load.threads;
  request.dry_run = output.dry_run;
  const DirectoryReport report = write_as_directory(request);
  if (options.json) {
    return print_json({{"output", output.dry_run ? ordered_json() : ordered_json(output.path)},
                       {"bytes", report.n_bytes},
                       {"tensors", report.n_tensors},
                       {"type", options.type},
                       {"warnings", report.warnings}});
  }
  print_result(fmt::format(
      "{:.1f} MB of tensors in {}; {}\n", static_cast<double>(report.n_bytes) / 1e6, options.type,
      output.dry_run ? "nothing was written"
                     : fmt::format("{} written in {:.1f} s", output.path, report.seconds)));
}

/// Flags that have no effect on what is asked for. Errors: invalid_argument.
void check_flags(const CLI::App& app, const Options& options) {
  const std::string& to = options.container;
  const auto refuse = [&](const char* flag, std::string_view with) {
    if (app.count(flag) == 0) return;
    fail(ErrorKind::kInvalidArgument, "convert", "{}: expected it with --to {}, got it with {}",
         flag, with, to);
  };
  if (to != "gptq") refuse("--v2", "gptq");
  if (to != "awq") refuse("--version", "awq");
  if (to != "gguf") {
    for (const char* flag : {"--name", "--force", "--max-shard-tensors"})
      refuse(flag, "gguf");
  }
  if (to == "gptq" || to == "awq") return refuse("--type", "gguf or safetensors");
  if (keeps_weights(options) && to != "gguf") {
    fail(ErrorKind::kInvalidArgument, "convert",
         "--type: expected f16, bf16 or f32 with --to {}, got {}", to, options.type);
  }
  if (!keeps_weights(options) && app.count("--max-error") > 0) {
    fail(ErrorKind::kInvalidArgument, "convert",
         "--max-error: expected it with --type same or a block type, got it with {}", options.type);
  }
}

void run(const Options& options) {
  const GgufOutput& output = options.output;
  if (options.container == "gguf") return write_gguf(options);
  if (options.container == "safetensors") return write_directory(options);
  convert_codes(options, {options.container, output.path, options.version, options.v2,
                          options.shard_bytes, options.max_error, output.dry_run});
}

}  // namespace

Command register_convert(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("convert", "Write a model as another kind of file");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options);
  group_compute_flags(*app, {"--threads"});
  add_gguf_output_flags(*app, options->output);
  app->add_option("--to", options->container,
                  "gguf, or safetensors (a Hugging Face directory); gptq or awq, of what is "
                  "quantised already")
      ->check(CLI::IsMember({"gguf", "safetensors", "gptq", "awq"}))
      ->required();
  app->add_option(
         "--type", options->type,
         "f16, bf16 or f32, of all weights; for gguf also same (weights as they are, codes "
         "of quantised ones in the block type that holds them), or a block type for what is "
         "quantised: q4_0, q4_1, q5_0, q5_1, q8_0")
      ->check(CLI::IsMember({"f16", "bf16", "f32", "same", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"}))
      ->capture_default_str();
  app->add_option("--max-error", options->max_error,
                  "With --type same or a block type, gptq, awq: by how much a matrix may change "
                  "(root mean square, as a part of its weights')")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option("--version", options->version, "AWQ: gemm, gemv or gemv_fast")
      ->check(CLI::IsMember({"gemm", "gemv", "gemv_fast"}))
      ->capture_default_str();
  app->add_flag("--v2", options->v2, "GPTQ: zero points as they are (checkpoint_format gptq_v2)");
  add_shard_flag(*app, options->shard_bytes);
  return {app, [app, options] {
            refuse_adapters(*options, "convert");
            need_output(options->output);
            take_shard_bytes(*app, options->output, options->shard_bytes);
            check_flags(*app, *options);
            run(*options);
          }};
}

}  // namespace qw::app
