// qianwen compare: how far one model's predictions are from another's.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "app/command.h"
#include "app/comparison_output.h"
#include "app/flag_groups.h"
#include "app/output_room.h"
#include "base/atomic_file.h"
#include "base/error.h"
#include "eval/comparison_chart.h"

namespace qw::app {

namespace {

struct Options : CommonOptions {
  std::string other;
  ComparisonRequest request;
  std::string chart;
  bool force = false;
};

/// By the name's ending. Errors: invalid_argument, for another one.
bool is_page(const std::string& path) {
  if (path.ends_with(".html")) return true;
  if (path.ends_with(".svg")) return false;
  fail(ErrorKind::kInvalidArgument, "compare",
       "--chart: expected a name in .svg or .html, got '{}'", printable(path, 4096));
}

/// The file that is drawn into, so that one which cannot be made is known before hours of
/// comparing. Errors: invalid_argument, where one would be lost; not_found, io.
std::optional<AtomicFile> open_chart(const Options& options) {
  if (options.chart.empty()) return std::nullopt;
  check_file_name("compare", "--chart", options.chart);
  std::error_code error;
  if (std::filesystem::exists(options.chart, error) && !options.force) {
    fail(ErrorKind::kInvalidArgument, "compare",
         "--chart: expected a file that is not there yet (or --force), got {}",
         printable(options.chart, 4096));
  }
  return std::optional<AtomicFile>(std::in_place, options.chart);
}

void run(const Options& options) {
  const bool page = !options.chart.empty() && is_page(options.chart);
  std::optional<AtomicFile> chart = open_chart(options);
  CommonOptions other = options;
  other.model = options.other;
  other.adapters.clear();  // those are the first model's
  const Comparison result = compare_on_text(options, other, options.request);
  // First what was hours of work.
  if (options.json) {
    print_json(comparison_json(result));
  } else {
    print_result(comparison_text(result));
  }
  if (chart) {
    const ChartLabels labels = {model_path(options), options.other, options.request.file};
    const std::string text =
        page ? comparison_html(result, labels) : comparison_svg(result, labels);
    chart->write(std::as_bytes(std::span(text)));
    chart->commit();
  }
}

}  // namespace

Command register_compare(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand(
      "compare", "How far the predictions of model B are from those of model A on a text");
  add_model_argument(*app, *options, true);
  app->add_option("B", options->other, "The other checkpoint: what was made of MODEL")->required();
  add_compute_flags(*app, *options);
  group_compute_flags(*app, {"--threads", "--isa", "--device", "--activations", "--kv-type",
                             "--ctx", "--chunk", "--adapter", "--packed-cache", "--deterministic"});
  app->add_option("--file", options->request.file,
                  "A text, or {\"ids\": [...]}; - for standard input")
      ->required();
  app->add_option("--window", options->request.window,
                  "Tokens that are read together (default: 512)")
      ->check(integer_from(2));
  app->add_flag("--layers", options->request.layers, "Also how far apart the layers' outputs are");
  app->add_option("--chart", options->chart, "Also draw it: a file in .svg, or a page in .html");
  app->add_flag("--force", options->force, "Replace the chart that is there");
  app->add_flag("--plain", options->request.plain, "Special-token strings are ordinary text");
  return {app, [options] { run(*options); }};
}

}  // namespace qw::app
