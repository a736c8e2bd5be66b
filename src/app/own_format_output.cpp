#include "app/own_format_output.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "app/comparison_output.h"
#include "app/open.h"
#include "app/output_room.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "quantize/gptq_factor.h"
#include "quantize/own_format_merge.h"

namespace qw::app {

namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

/// Tokens of the calibration that models are compared on: two models read them twice.
constexpr int64_t kComparedTokens = 4096;
/// Share of weights beyond their grids that is worth a warning.
constexpr double kTold = 0.001;

void check_output(const OwnFormatFlags& flags) {
  std::error_code error;
  quantize::check_damp(flags.damp);
  if (flags.dry_run) return;
  if (flags.output.empty())
    fail(ErrorKind::kInvalidArgument, "merge",
         "--output: expected a path (or --dry-run), got none");
  if (!fs::exists(flags.output, error)) return;
  fail(ErrorKind::kInvalidArgument, "merge",
       "--output: expected a path where nothing is yet, got {}", printable(flags.output, 4096));
}

/// Files by name, size and time, and scales: what tells adapters from others.
std::string adapters_job(const std::vector<AdapterSpec>& adapters) {
  ordered_json out = ordered_json::array();
  const auto file_of = [](const fs::path& path) -> ordered_json {
    std::error_code error;
    return {path.filename().string(), fs::file_size(path, error),
            fs::last_write_time(path, error).time_since_epoch().count()};
  };
  for (const AdapterSpec& adapter : adapters) {
    std::vector<ordered_json> files;
    std::error_code error;
    if (fs::is_directory(adapter.path, error)) {
      for (const auto& entry : fs::directory_iterator(adapter.path, error)) {
        if (entry.is_regular_file(error)) files.push_back(file_of(entry.path()));
      }
      std::ranges::sort(files);
    } else {
      files.push_back(file_of(adapter.path));
    }
    out.push_back({{"scale", adapter.scale}, {"files", files}});
  }
  return out.dump();
}

/// How much of what adapters change in the outputs of matrices is lost: the root of the mean of
/// loss / loss of the codes as they were.
struct Lost {
  int64_t n_matrices = 0, n_weights = 0, n_changed = 0, n_beyond = 0, n_counted = 0;
  double found = 0, plain = 0;  // sums of ratios
  std::string format;

  void add(const quantize::QuantisedModule& module) {
    const quantize::Recoding& recoding = *module.recoding;
    ++n_matrices;
    n_weights += recoding.n_weights;
    n_changed += recoding.n_changed;
    n_beyond += recoding.n_beyond;
    format = format.empty() || format == recoding.format ? recoding.format : "mixed";
    if (!(recoding.kept_loss > 0)) return;  // an adapter that changes nothing here
    ++n_counted;
    found += module.loss / recoding.kept_loss;
    plain += recoding.nearest_loss / recoding.kept_loss;
  }
  double mean(double sum) const {
    return n_counted == 0 ? 0 : std::sqrt(sum / static_cast<double>(n_counted));
  }
  double share(int64_t count) const {
    return n_weights == 0 ? 0 : static_cast<double>(count) / static_cast<double>(n_weights);
  }
  ordered_json json() const {
    return {{"matrices", n_matrices},
            {"codes_changed", share(n_changed)},
            {"beyond_grid", share(n_beyond)},
            {"lost", mean(found)},
            {"lost_by_plain_rounding", mean(plain)}};
  }
  std::string line(const std::string& name) const {
    return fmt::format(
        "{:<10} {:>4} matrices {:<26} {:7.3f} % of codes changed; {:5.1f} % of the change lost "
        "({:.1f} % by plain rounding)\n",
        name, n_matrices, format, 100 * share(n_changed), 100 * mean(found), 100 * mean(plain));
  }
};

/// What came of the layers.
struct Report {
  Lost all;
  std::map<std::string, Lost> by_class;  // "q_proj"
  ordered_json layers = ordered_json::array();
  int n_resumed = 0;
  int64_t n_cold = 0;

  void layer(int index, const std::vector<quantize::QuantisedModule>& modules, bool is_resumed) {
    if (is_resumed) {
      ++n_resumed;
      layers.push_back({{"layer", index}, {"resumed", true}});
      return;
    }
    ordered_json matrices = ordered_json::array();
    for (const quantize::QuantisedModule& module : modules) {
      const std::string name = hf_name(module.id);
      Lost one;
      one.add(module);
      all.add(module);
      by_class[name.substr(name.rfind('.') + 1)].add(module);
      n_cold += module.is_cold ? 1 : 0;
      ordered_json json = {{"name", name}, {"format", one.format}};
      json.update(one.json());
      json.erase("matrices");
      json["tokens"] = module.n_tokens;
      matrices.push_back(std::move(json));
    }
    layers.push_back({{"layer", index}, {"matrices", std::move(matrices)}});
  }
};

/// Sequences, evenly from all, of kComparedTokens or a little more.
std::vector<int32_t> compared_ids(const quantize::CalibrationSet& set) {
  const auto n = static_cast<size_t>(std::clamp<int64_t>(
      kComparedTokens * std::ssize(set.sequences) / std::max<int64_t>(1, set.n_tokens), 1,
      std::ssize(set.sequences)));
  std::vector<int32_t> ids;
  for (size_t i = 0; i < n; ++i) {
    const auto& sequence = set.sequences[i * set.sequences.size() / n];
    ids.insert(ids.end(), sequence.begin(), sequence.end());
  }
  return ids;
}

struct Comparisons {
  Comparison merged, without;  // beside the live adapters
};

/// `ids`: of flags.file.
std::optional<Comparisons> compare(const CommonOptions& options, const OwnFormatFlags& flags,
                                   const quantize::CalibrationSet& calibration,
                                   std::vector<int32_t> ids) {
  if (!flags.compares || (flags.file.empty() && calibration.sequences.empty())) return std::nullopt;
  ComparisonRequest request;
  request.ids = flags.file.empty() ? compared_ids(calibration) : std::move(ids);
  CommonOptions merged = options, without = options;
  merged.model = flags.output;
  merged.adapters.clear();
  without.adapters.clear();
  return Comparisons{compare_on_text(options, merged, request),
                     compare_on_text(options, without, request)};
}

std::string text_of(const OwnFormatFlags& flags, const quantize::OwnFormatPlan& plan,
                    const Report& report, const std::optional<Comparisons>& comparisons,
                    double seconds) {
  std::string text;
  for (const auto& [name, lost] : report.by_class)
    text += lost.line(name);
  if (report.by_class.size() > 1) text += report.all.line("all");
  text += fmt::format(
      "{} matrices on their grids, {} rounded; {:.1f} MB of tensors; {}\n", plan.n_recoded,
      plan.n_rounded, static_cast<double>(plan.n_bytes) / 1e6,
      flags.dry_run
          ? "nothing was written"
          : fmt::format("{} written in {:.1f} s{}", flags.output, seconds,
                        report.n_resumed > 0
                            ? fmt::format(" ({} layers were there already)", report.n_resumed)
                            : ""));
  if (!comparisons) return text;
  return text + fmt::format(
                    "KL divergence from the live adapters: {:.6f}; without adapters: {:.6f}\n"
                    "live adapters (A) beside what was written (B), on {}:\n{}",
                    comparisons->merged.kl.mean, comparisons->without.kl.mean,
                    flags.file.empty() ? "the calibration text" : printable(flags.file),
                    comparison_text(comparisons->merged));
}

ordered_json json_of(const OwnFormatFlags& flags, const quantize::OwnFormatPlan& plan,
                     const Report& report, const std::optional<Comparisons>& comparisons,
                     const std::vector<std::string>& warnings, double seconds) {
  ordered_json json = {{"output", flags.dry_run ? ordered_json() : ordered_json(flags.output)},
                       {"bytes", plan.n_bytes},
                       {"tensors", plan.n_tensors},
                       {"modules_changed", plan.n_recoded + plan.n_rounded},
                       {"recoded", plan.n_recoded},
                       {"warnings", warnings}};
  if (flags.dry_run) return json;
  json["merge"] = report.all.json();
  json["layers"] = report.layers;
  json["seconds"] = seconds;
  if (comparisons) {
    json["comparison"] = comparison_json(comparisons->merged);
    json["comparison_without_adapters"] = comparison_json(comparisons->without);
  }
  return json;
}

}  // namespace

void merge_in_own_format(const CommonOptions& options, const OwnFormatFlags& flags) {
  const Clock::time_point start = Clock::now();
  check_output(flags);
  const ModelFiles files = open_for_reading(options, true);
  const Checkpoint& checkpoint = *files.checkpoint;
  const ModelConfig config = ModelConfig::from_checkpoint(checkpoint);
  const NetworkSources sources = open_network(checkpoint, config);
  const std::vector<AdapterSpec> adapters = open_options(options).adapters;
  const AdapterMerge merge(config, sources, adapters);
  const quantize::LayerSource source{checkpoint, config, sources};
  const quantize::OwnFormatPlan plan = plan_own_format(source, merge);
  std::vector<std::string> warnings = plan.warnings;
  for (const std::string& warning : warnings)
    logger().warn("{}", warning);
  quantize::CalibrationSet calibration;
  if (plan.n_recoded > 0) {
    calibration = read_calibration(flags.calibration, files, model_path(options));
    logger().info("calibration: {}", calibration.summary());
  }
  std::vector<int32_t> ids;
  if (!flags.file.empty()) ids = read_compared_ids(options, files, flags.file);
  Report report;
  std::optional<Comparisons> comparisons;
  double seconds = 0;
  if (!flags.dry_run) {
    const int64_t hidden_bytes =
        calibration.n_tokens * config.hidden * static_cast<int64_t>(sizeof(float));
    check_room("merge", flags.output, 2 * plan.n_bytes + 2 * hidden_bytes, true);
    const auto backend = calibration_backend(options);
    ThreadPool pool(options.load.threads > 0 ? options.load.threads : physical_cores());
    Progress progress("merging", plan.recoded_bytes + plan.n_bytes, Progress::Unit::kBytes);
    quantize::OwnFormatRequest request;
    request.output = flags.output;
    request.component = "merge";
    request.isa = options.load.isa;
    request.shard_bytes = flags.shard_bytes;
    if (flags.is_split) request.split.max_bytes = flags.shard_bytes;
    request.damp = flags.damp;
    request.adapters_job = adapters_job(adapters);
    request.cancel = &interrupted();
    bool has_begun = false;
    request.on_begin = [&](int) { has_begun = true; };
    request.on_layer = [&](int layer, const auto& modules) {
      report.layer(layer, modules, !has_begun);
    };
    request.on_quantised = request.on_written = [&](int64_t n) { progress.add(n); };
    write_own_format(source, merge, calibration, *backend, pool, request);
    progress.finish();
    seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (report.n_cold > 0) {
      warnings.push_back(fmt::format(
          "{} matrices of experts got too few tokens and were made with those of all tokens",
          report.n_cold));
      logger().warn("{}", warnings.back());
    }
    if (report.all.share(report.all.n_beyond) > kTold) {
      warnings.push_back(
          fmt::format("{:.2f} % of the merged weights lie beyond the ranges of their groups, which "
                      "stay as they "
                      "are: --type bf16 and quantising again may lose less",
                      100 * report.all.share(report.all.n_beyond)));
      logger().warn("{}", warnings.back());
    }
    comparisons = compare(options, flags, calibration, std::move(ids));
    if (comparisons && comparisons->merged.kl.mean > comparisons->without.kl.mean) {
      warnings.push_back(fmt::format(
          "what was written is further from the live adapters ({:.6f}) than MODEL without them "
          "({:.6f}): --type bf16 and quantising again may lose less",
          comparisons->merged.kl.mean, comparisons->without.kl.mean));
      logger().warn("{}", warnings.back());
    }
  }
  if (options.json) return print_json(json_of(flags, plan, report, comparisons, warnings, seconds));
  print_result(text_of(flags, plan, report, comparisons, seconds));
}

}  // namespace qw::app
