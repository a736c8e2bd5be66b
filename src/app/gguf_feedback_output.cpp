#include "app/gguf_feedback_output.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "app/open.h"
#include "app/output_room.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "quantize/gguf_feedback.h"
#include "quantize/gptq_factor.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

/// What feedback has gained: losses of outputs beside those of the plain file's codes.
struct Gain {
  double loss = 0;  // sum of ratios to the plain file's
  int64_t n_matrices = 0, n_cold = 0;
  int n_resumed = 0;
  ordered_json layers = ordered_json::array();

  void add(int layer, const std::vector<quantize::QuantisedModule>& modules) {
    if (layer < n_resumed) {
      layers.push_back({{"layer", layer}, {"resumed", true}});
      return;
    }
    ordered_json matrices = ordered_json::array();
    for (const quantize::QuantisedModule& module : modules) {
      n_cold += module.is_cold ? 1 : 0;
      ordered_json json = {{"name", gguf_name(module.id)}};
      if (module.recoding && module.recoding->kept_loss > 0) {
        const double ratio = module.loss / module.recoding->kept_loss;
        loss += ratio;
        ++n_matrices;
        json["loss"] = module.loss;
        json["plain_loss"] = module.recoding->kept_loss;
        json["codes_changed"] = static_cast<double>(module.recoding->n_changed) /
                                static_cast<double>(module.recoding->n_weights);
      }
      matrices.push_back(std::move(json));
    }
    layers.push_back({{"layer", layer}, {"matrices", std::move(matrices)}});
  }
  /// Of the squared error of outputs, mean over matrices.
  double share() const { return n_matrices == 0 ? 1 : loss / static_cast<double>(n_matrices); }
  std::string line() const {
    const std::string resumed =
        n_resumed > 0 ? fmt::format(" ({} layers were there already)", n_resumed) : "";
    if (n_matrices == 0) return fmt::format("no matrix has got other codes{}\n", resumed);
    return fmt::format(
        "{} matrices: {:.1f} % of the squared error that the plain file's codes have in their "
        "outputs{}\n",
        n_matrices, 100 * share(), resumed);
  }
};

}  // namespace

void add_feedback_flag(CLI::App& app, bool& is_asked) {
  app.add_flag(
      "--feedback", is_asked,
      "GGUF: choose codes by what their errors do to outputs, with a calibration: the same "
      "types and bytes, closer predictions");
}

namespace {

/// Importances with their hidden states, hidden states, old and new, the layers, the file.
void check_feedback_room(const FeedbackInput& input, const GgufOutput& output,
                         const GgufPlan& plan) {
  const ModelConfig& config = input.source.config;
  int64_t n_bytes = 2 * plan.bytes() + 2 * input.calibration.n_tokens * config.hidden *
                                           static_cast<int64_t>(sizeof(float));
  if (input.with_importance)
    n_bytes += importance_work_bytes(config, input.source.sources, input.calibration);
  check_room("quantize", output.path, n_bytes, true);
}

}  // namespace

FeedbackWritten write_with_feedback(const FeedbackInput& input, const GgufOutput& output,
                                    const GgufPlan& plan) {
  const auto& [checkpoint, config, sources] = input.source;
  check_gguf_output(output, plan);
  check_feedback_room(input, output, plan);
  FeedbackWritten out;
  Gain gain;
  quantize::GgufFeedbackRequest request;
  request.output = output.path;
  request.replaces = true;  // of split files it does not know the names: they were looked for
  request.isa = input.options.load.isa;
  request.damp = input.damp;
  request.cancel = &interrupted();
  request.on_resumed = [&](int n_layers) { gain.n_resumed = n_layers; };
  request.on_layer = [&](int layer, const auto& modules) { gain.add(layer, modules); };
  std::optional<Progress> progress;
  if (input.with_importance) {
    request.with_importance = [&](quantize::ImportanceMatrix collected) {
      progress.reset();
      return input.with_importance(std::move(collected));
    };
  }
  request.on_importance_resumed = [&](int n_layers) {
    if (n_layers > 0 && n_layers < config.n_layers)
      logger().info("importances of {} layers were there already", n_layers);
    progress.emplace("importances", config.n_layers - n_layers, Progress::Unit::kItems);
  };
  request.on_importance = [&] { progress->add(1); };
  request.on_quantised = [&](int64_t bytes) {
    if (!progress) {
      const int64_t n_layers = std::max(config.n_layers, 1);
      progress.emplace("quantising",
                       quantize::feedback_bytes(plan) * (n_layers - gain.n_resumed) / n_layers,
                       Progress::Unit::kBytes);
    }
    progress->add(bytes);
  };
  GgufOutput written = output;
  written.resumes = false;  // the layers are in OUTPUT.work
  quantize::make_gguf_feedback(input.source, plan, input.calibration, input.backend, input.pool,
                               request, [&](const GgufPlan& made) {
                                 progress.reset();
                                 out.written = write_gguf_output(written, made, checkpoint, sources,
                                                                 input.pool);
                               });
  if (gain.n_cold > 0) {
    out.written.warnings.push_back(fmt::format(
        "{} matrices of experts got too few tokens and were made with those of all tokens",
        gain.n_cold));
    logger().warn("{}", out.written.warnings.back());
  }
  out.more = {{"layers", gain.layers}, {"loss_beside_plain", gain.share()}};
  out.line = gain.line();
  return out;
}

void run_gguf_feedback(const CommonOptions& options, const GgufOutput& output, GgufChoices choices,
                       const CalibrationFlags& calibration_flags, const std::string& imatrix,
                       double damp) {
  const auto start = Clock::now();
  quantize::check_damp(damp);
  if (!output.dry_run) check_gguf_output(output);
  const ModelFiles files = open_for_reading(options, true);
  const GgufModel model = GgufModel::of(files.checkpoint);
  quantize::ImportanceMatrix importance;
  if (!imatrix.empty()) importance = quantize::read_importance(imatrix);
  choices.importance = &importance;
  choices.collects_importance = imatrix.empty();
  const GgufPlan plan = model.plan(choices);
  if (quantize::recodable_matrices(plan) == 0) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "--feedback: expected matrices of layers that get a code for each weight, as of Q4_0, "
         "Q4_K_M or IQ4_XS, got none: what is copied, floats, IQ1 to IQ3 and TQ1_0 have no other "
         "codes");
  }
  const quantize::CalibrationSet calibration =
      read_calibration(calibration_flags, files, model_path(options));
  logger().info("calibration: {}", calibration.summary());
  for (const std::string& warning : plan.warnings)
    logger().warn("{}", warning);
  FeedbackWritten made;
  if (!output.dry_run) {
    const auto backend = calibration_backend(options);
    ThreadPool pool(options.load.threads > 0 ? options.load.threads : physical_cores());
    FeedbackInput input{options,     {*model.checkpoint, model.config, model.sources},
                        calibration, *backend,
                        pool,        damp};
    if (imatrix.empty()) {
      input.with_importance = [&](quantize::ImportanceMatrix collected) {
        importance = std::move(collected);
        name_importance(calibration_flags, importance);
        return model.plan(choices);
      };
    }
    made = write_with_feedback(input, output, plan);
  }
  const std::chrono::duration<double> seconds = Clock::now() - start;
  ordered_json more = {{"calibration",
                        {{"samples", calibration.n_samples},
                         {"sequences", calibration.sequences.size()},
                         {"tokens", calibration.n_tokens},
                         {"tokens_given", calibration.n_tokens_given}}}};
  if (!made.more.is_null()) more.update(made.more);
  if (!options.json) print_result(made.line);
  report_gguf(options, output, plan, made.written, seconds.count(), more);
}

}  // namespace qw::app
