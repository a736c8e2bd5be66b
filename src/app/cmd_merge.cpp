// qianwen merge: adapters into the weights that they change.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/command.h"
#include "app/comparison_output.h"
#include "app/directory_output.h"
#include "app/flag_groups.h"
#include "app/open.h"
#include "app/output_room.h"
#include "app/own_format_output.h"
#include "base/error.h"
#include "base/log.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

struct Options : CommonOptions {
  DirectoryRequest request;
  OwnFormatFlags own;  // of --type same
  std::string file;
};

/// Share of the adapters' change that rounding took, as a ratio of lengths.
double lost_share(const MergeFigures& figures) {
  return figures.change > 0 ? std::sqrt(figures.lost / figures.change) : 0;
}

ordered_json to_json(const Options& options, const DirectoryReport& report) {
  ordered_json json = {
      {"output", options.request.dry_run ? ordered_json() : ordered_json(options.request.output)},
      {"bytes", report.n_bytes},
      {"tensors", report.n_tensors},
      {"modules_changed", report.n_changed},
      {"warnings", report.warnings}};
  if (!options.request.dry_run) {
    json["rounding_to_change"] = lost_share(report.merge);
    json["seconds"] = report.seconds;
  }
  return json;
}

std::string to_text(const Options& options, const DirectoryReport& report) {
  std::string text = fmt::format("{} modules changed; {:.1f} MB of tensors in {}", report.n_changed,
                                 static_cast<double>(report.n_bytes) / 1e6, options.request.type);
  if (options.request.dry_run) return text + "; nothing was written\n";
  return text +
         fmt::format("; {} written in {:.1f} s\nrounding to {} came to {:.3f} % of the change\n",
                     options.request.output, report.seconds, options.request.type,
                     100 * lost_share(report.merge));
}

/// The base with live adapters beside the directory that was written.
Comparison compare(const Options& options, std::vector<int32_t> ids) {
  CommonOptions merged = options;
  merged.model = options.request.output;
  merged.adapters.clear();
  ComparisonRequest request;
  request.ids = std::move(ids);
  return compare_on_text(options, merged, request);
}

/// Flags that only --type same takes notice of. Errors: invalid_argument.
void check_flags(const CLI::App& app, const Options& options) {
  for (const char* flag : {"--calibration", "--calibration-length", "--calibration-tokens",
                           "--damp", "--no-compare"}) {
    if (app.count(flag) == 0) continue;
    fail(ErrorKind::kInvalidArgument, "merge", "{}: expected it with --type same, got it with {}",
         flag, options.request.type);
  }
}

void run(const CLI::App& app, Options& options) {
  init_logging(options.log_level);
  options.request.model = model_path(options);
  options.request.adapters = open_options(options).adapters;
  options.request.threads = options.load.threads;
  if (options.request.adapters.empty())
    fail(ErrorKind::kInvalidArgument, "merge", "--adapter: expected one at least, got none");
  if (options.request.type == "same") {
    OwnFormatFlags& own = options.own;
    own.output = directory_name(options.request.output);
    own.shard_bytes = options.request.shard_bytes;
    own.is_split = app.count("--max-shard-size") > 0;
    own.file = options.file;
    own.dry_run = options.request.dry_run;
    return merge_in_own_format(options, own);
  }
  check_flags(app, options);
  std::vector<int32_t> ids;
  if (!options.file.empty())
    ids = read_compared_ids(options, open_for_reading(options, false), options.file);
  const DirectoryReport report = write_as_directory(options.request);
  ordered_json json = to_json(options, report);
  std::string text = to_text(options, report);
  if (!ids.empty() && !options.request.dry_run) {
    const Comparison comparison = compare(options, std::move(ids));
    json["comparison"] = comparison_json(comparison);
    text += "live adapters (A) beside what was written (B):\n" + comparison_text(comparison);
  }
  if (options.json) return print_json(json);
  print_result(text);
}

}  // namespace

Command register_merge(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app =
      root.add_subcommand("merge", "Write a model with adapters merged into its weights");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options);
  group_compute_flags(*app, {"--threads", "--isa", "--device", "--activations", "--kv-type",
                             "--ctx", "--chunk", "--adapter", "--packed-cache", "--deterministic"});
  app->add_option("--output", options->request.output,
                  "The directory to write; with --type same of a GGUF file, the file");
  app->add_option("--type", options->request.type,
                  "f16, bf16 or f32, of all weights; same: MODEL's own format, with what the "
                  "adapters change on the grids that it has")
      ->check(CLI::IsMember({"f16", "bf16", "f32", "same"}))
      ->capture_default_str();
  add_shard_flag(*app, options->request.shard_bytes);
  app->add_flag("--dry-run", options->request.dry_run, "Check and say, write nothing");
  app->add_option("--file", options->file,
                  "A text on which the merged model is compared with MODEL and its live adapters");
  add_calibration_flags(*app, options->own.calibration);
  for (const char* name : {"--calibration", "--calibration-length", "--calibration-tokens"}) {
    CLI::Option* flag = app->get_option(name);
    flag->description("With --type same: " + flag->get_description());
  }
  app->add_option("--damp", options->own.damp,
                  "With --type same: part of the mean second moment that is added to each; raised "
                  "where it is too little")
      ->capture_default_str();
  app->add_flag_callback(
         "--no-compare", [options] { options->own.compares = false; },
         "With --type same: do not compare what was written with the live adapters")
      ->excludes(app->get_option("--file"));
  return {app, [app, options] { run(*app, *options); }};
}

}  // namespace qw::app
