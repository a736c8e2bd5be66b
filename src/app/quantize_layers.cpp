#include "app/quantize_layers.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <CLI/Validators.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "app/budget_attempts.h"
#include "app/directory_output.h"
#include "app/gptq_budget.h"
#include "app/open.h"
#include "app/output_room.h"
#include "app/weight_report.h"
#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "model/config.h"
#include "model/gguf_tokenizer.h"
#include "quantize/awq_checkpoint.h"
#include "quantize/gptq_checkpoint.h"
#include "quantize/nf4_checkpoint.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr std::string_view kPrefix = "gptq-int";

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int gptq_bits(std::string_view to) {
  const std::string_view bits = to.substr(kPrefix.size());
  if (bits == "2" || bits == "3" || bits == "4" || bits == "8") return bits.front() - '0';
  fail(ErrorKind::kInvalidArgument, "quantize",
       "--to: expected gptq-int2, gptq-int3, gptq-int4 or gptq-int8, got '{}'", printable(to));
}

/// What came of the layers, and what is told while they are done.
class Report {
 public:
  Report(int n_layers, int64_t source_bytes, bool is_awq)
      : n_layers_(n_layers), source_bytes_(source_bytes), is_awq_(is_awq) {}

  void layer(int index, const std::vector<quantize::QuantisedModule>& modules) {
    ordered_json matrices = ordered_json::array();
    for (const quantize::QuantisedModule& module : modules)
      matrices.push_back(add(module));
    const double seconds = seconds_since(layer_start_);
    layer_start_ = Clock::now();
    if (modules.empty()) {
      ++n_resumed;
      layers.push_back({{"layer", index}, {"resumed", true}});
      return;
    }
    layers.push_back({{"layer", index}, {"seconds", seconds}, {"matrices", std::move(matrices)}});
    for (const quantize::QuantisedModule& module : modules) {
      if (module.change) changes.push_back(*module.change);
    }
    busy_ += seconds;
    const int n_done = index + 1 - n_resumed;
    logger().debug("layer {} of {}: {} matrices in {:.1f} s, about {:.0f} s for the rest",
                   index + 1, n_layers_, modules.size(), seconds,
                   busy_ / n_done * (n_layers_ - index - 1));
  }

  void quantised(int64_t bytes) {
    if (!progress_) {
      progress_.emplace("quantising",
                        source_bytes_ * (n_layers_ - n_resumed) / std::max(n_layers_, 1),
                        Progress::Unit::kBytes);
    }
    progress_->add(bytes);
  }
  void finish() { progress_.reset(); }

  /// A sentence each.
  std::vector<std::string> warnings() const {
    std::vector<std::string> out;
    if (n_raised > 0) {
      out.push_back(fmt::format(
          "the damp was raised for {} matrices, to at most {}, whose inputs depend on each other",
          n_raised, highest_damp));
    }
    if (n_with_dead > 0) {
      out.push_back(
          fmt::format("{} matrices have inputs that were always 0 ({} in all): their "
                      "weights are rounded to nearest",
                      n_with_dead, n_dead));
    }
    if (n_cold > 0) {
      out.push_back(
          fmt::format("{} matrices of experts got too few tokens and were quantised with "
                      "those of all tokens",
                      n_cold));
    }
    return out;
  }

  ordered_json layers = ordered_json::array();
  WeightDifferences changes;  // QuantisedModule::change
  int n_resumed = 0;

 private:
  ordered_json add(const quantize::QuantisedModule& module) {
    n_cold += module.is_cold ? 1 : 0;
    n_dead += module.n_dead;
    n_with_dead += module.n_dead > 0 ? 1 : 0;
    if (module.is_damp_raised) {
      ++n_raised;
      highest_damp = std::max(highest_damp, module.damp);
    }
    ordered_json json = {{"name", hf_name(module.id)},
                         {"loss", module.loss},
                         {"damp", module.damp},
                         {"tokens", module.n_tokens}};
    if (is_awq_) json["ratio"] = module.ratio ? ordered_json(*module.ratio) : ordered_json();
    if (module.n_dead > 0) json["dead_inputs"] = module.n_dead;
    if (module.is_cold) json["cold"] = true;
    return json;
  }

  int n_layers_;
  int64_t source_bytes_;
  bool is_awq_;
  Clock::time_point layer_start_ = Clock::now();
  double busy_ = 0, highest_damp = 0;
  int64_t n_raised = 0, n_dead = 0, n_with_dead = 0, n_cold = 0;
  std::optional<Progress> progress_;
};

/// Everything that is read before anything is computed.
struct Opened {
  ModelFiles files;
  ModelConfig config;
  NetworkSources sources;
  std::optional<TokenizerSpec> tokenizer;

  quantize::LayerSource source() const { return {*files.checkpoint, config, sources}; }
};

Opened open_model(const CommonOptions& options) {
  Opened out;
  out.files = open_for_reading(options, true);
  const Checkpoint& checkpoint = *out.files.checkpoint;
  out.config = ModelConfig::from_checkpoint(checkpoint);
  out.sources = open_network(checkpoint, out.config);
  if (checkpoint.gguf) out.tokenizer = gguf_tokenizer_spec(*checkpoint.gguf);
  return out;
}

/// What is different between the formats.
struct Method {
  std::string bits = "4";     // of all matrices, or all that occur
  bool is_calibrated = true;  // looks at the inputs of matrices
  std::function<quantize::LayerPlan(const Opened&, const quantize::LayerRequest&)> plan;
  std::function<void(const Opened&, const quantize::LayerRequest&, const quantize::LayerPlan&,
                     const quantize::CalibrationSet&, Backend&, ThreadPool&)>
      write;
};

/// Without bits.
quantize::GptqRequest gptq_request(const LayerFlags& flags) {
  quantize::GptqRequest asked;
  asked.gptq = flags.gptq;
  if (flags.gptq_mode == "reference") asked.gptq.mode = quantize::GptqOptions::Mode::kReference;
  asked.true_sequential = flags.true_sequential;
  return asked;
}

Method gptq_method(const quantize::GptqRequest& asked) {
  const auto with = [asked](const quantize::LayerRequest& request) {
    quantize::GptqRequest out = asked;
    static_cast<quantize::LayerRequest&>(out) = request;
    return out;
  };
  Method method;
  method.bits = fmt::format("{}", asked.gptq.bits);
  method.plan = [with](const Opened& model, const quantize::LayerRequest& request) {
    return quantize::plan_gptq(model.source(), model.tokenizer ? &*model.tokenizer : nullptr,
                               with(request));
  };
  method.write = [with](const Opened& model, const auto& request, const auto& plan,
                        const auto& calibration, Backend& backend, ThreadPool& pool) {
    quantize::write_gptq(model.source(), plan, calibration, backend, pool, with(request));
  };
  return method;
}

Method gptq_method(const LayerFlags& flags, std::string_view to) {
  quantize::GptqRequest asked = gptq_request(flags);
  asked.gptq.bits = gptq_bits(to);
  return gptq_method(asked);
}

Method awq_method(const LayerFlags& flags) {
  quantize::AwqRequest asked;
  asked.awq.group_size = flags.gptq.group_size;
  asked.awq.damp = flags.gptq.damp;
  if (flags.awq_mode == "reference") asked.awq.mode = quantize::AwqOptions::Mode::kReference;
  for (const AwqVersion version : {AwqVersion::kGemm, AwqVersion::kGemv, AwqVersion::kGemvFast}) {
    if (flags.awq_version == name_of(version)) asked.awq.version = version;
  }
  const auto with = [asked](const quantize::LayerRequest& request) {
    quantize::AwqRequest out = asked;
    static_cast<quantize::LayerRequest&>(out) = request;
    return out;
  };
  Method method;
  method.plan = [with](const Opened& model, const quantize::LayerRequest& request) {
    return quantize::plan_awq(model.source(), model.tokenizer ? &*model.tokenizer : nullptr,
                              with(request));
  };
  method.write = [with](const Opened& model, const auto& request, const auto& plan,
                        const auto& calibration, Backend& backend, ThreadPool& pool) {
    quantize::write_awq(model.source(), plan, calibration, backend, pool, with(request));
  };
  return method;
}

Method nf4_method(const LayerFlags& flags) {
  Nf4Options asked = flags.nf4;
  if (flags.nf4_mode == "reference") asked.mode = Nf4Options::Mode::kReference;
  const auto with = [asked](const Opened& model, const quantize::LayerRequest& request) {
    quantize::Nf4Request out;
    static_cast<quantize::LayerRequest&>(out) = request;
    out.nf4 = asked;
    out.nf4.dtype = out.kept_dtype = quantize::nf4_dtype(model.sources);
    return out;
  };
  Method method;
  method.is_calibrated = false;
  method.plan = [with](const Opened& model, const quantize::LayerRequest& request) {
    return quantize::plan_nf4(model.source(), model.tokenizer ? &*model.tokenizer : nullptr,
                              with(model, request));
  };
  method.write = [with](const Opened& model, const auto& request, const auto& plan, const auto&,
                        Backend& backend, ThreadPool& pool) {
    quantize::write_nf4(model.source(), plan, backend, pool, with(model, request));
  };
  return method;
}

/// What is told of a run beside its layers.
struct Outcome {
  std::vector<std::string> warnings;
  WeightDifferences weights;  // of a model that was quantised already
  std::string table;          // of a budget
  ordered_json more = ordered_json::object();
  double seconds = 0;
};

/// `output`: "" of a dry run.
void print_outcome(const CommonOptions& options, const Outcome& outcome, const Method& method,
                   const quantize::LayerPlan& plan, const quantize::CalibrationSet& calibration,
                   const Report& report, const std::string& output) {
  const bool dry_run = output.empty();
  if (options.json) {
    ordered_json json = {{"output", dry_run ? ordered_json() : ordered_json(output)},
                         {"bytes", plan.bytes()},
                         {"bits_per_weight", plan.bits_per_weight()},
                         {"matrices", plan.n_matrices}};
    if (method.is_calibrated) {
      json["calibration"] = {{"samples", calibration.n_samples},
                             {"sequences", calibration.sequences.size()},
                             {"tokens", calibration.n_tokens},
                             {"tokens_given", calibration.n_tokens_given}};
    }
    if (!dry_run) {
      json["layers"] = report.layers;
      json["seconds"] = outcome.seconds;
      if (!outcome.weights.empty()) json["weights"] = weights_json(outcome.weights);
    }
    json.update(outcome.more);
    json["warnings"] = outcome.warnings;
    return print_json(json);
  }
  const std::string resumed =
      report.n_resumed > 0 ? fmt::format(" ({} layers were there already)", report.n_resumed) : "";
  print_result(fmt::format(
      "{}{}{} matrices of {} bits, {} weights, {:.2f} bits per weight; {:.1f} MB in all\n{}",
      outcome.table, outcome.weights.empty() ? "" : class_lines(outcome.weights), plan.n_matrices,
      method.bits, plan.n_weights, plan.bits_per_weight(), static_cast<double>(plan.bytes()) / 1e6,
      dry_run ? "nothing was written\n"
              : fmt::format("{} written in {:.1f} s{}\n", output, outcome.seconds, resumed)));
}

/// The options that `add` adds.
std::vector<const CLI::Option*> added(CLI::App& app, const std::function<void()>& add) {
  const size_t before = app.get_options().size();
  add();
  const auto all = app.get_options();
  return {all.begin() + static_cast<std::ptrdiff_t>(before), all.end()};
}

}  // namespace

void add_layer_flags(CLI::App& app, LayerFlags& flags) {
  quantize::GptqOptions& gptq = flags.gptq;
  flags.of_both = added(app, [&] {
    app.add_option("--group-size", gptq.group_size,
                   "GPTQ, AWQ: inputs that share a scale (-1: all of them)")
        ->capture_default_str();
    app.add_option("--damp", gptq.damp,
                   "GPTQ, AWQ, --feedback: part of the mean second moment that is added to each; "
                   "raised where "
                   "it is too little")
        ->capture_default_str();
    add_calibration_flags(app, flags.calibration);
    for (const char* name : {"--calibration", "--calibration-length", "--calibration-tokens"}) {
      CLI::Option* flag = app.get_option(name);
      flag->description("GPTQ, AWQ, --feedback, budgets: " + flag->get_description());
    }
  });
  add_shard_flag(app, flags.shard_bytes);  // of a GGUF file, too
  flags.of_nf4 = added(app, [&] {
    app.add_option("--block-size", flags.nf4.block_size,
                   "nf4: weights that share a scale: 32, 64, ... 4096")
        ->capture_default_str();
    app.add_flag("--double-quant,!--no-double-quant", flags.nf4.double_quant,
                 "nf4: scales as bytes, 256 of which share a scale");
    app.add_option("--nf4-mode", flags.nf4_mode, "better, or reference: what bitsandbytes does")
        ->check(CLI::IsMember({"better", "reference"}))
        ->capture_default_str();
  });
  flags.of_gptq = added(app, [&] {
    app.add_flag("--desc-act,!--no-desc-act", gptq.desc_act,
                 "GPTQ: groups of inputs of like size, which the file says one by one (g_idx)");
    app.add_flag(
        "--static-groups,!--no-static-groups", gptq.static_groups,
        "GPTQ: with --desc-act, groups of neighbours all the same; without it they are, but in "
        "reference mode");
    app.add_flag("--sym,!--no-sym", gptq.sym, "GPTQ: zero points in the middle (default)");
    app.add_flag("--true-sequential,!--no-true-sequential", flags.true_sequential,
                 "GPTQ: inputs of a matrix from quantised ones of the same layer (default)");
    app.add_flag("--v2", gptq.zero_from_0,
                 "GPTQ: zero points as they are (checkpoint_format gptq_v2) instead of minus one");
    app.add_option("--gptq-mode", flags.gptq_mode,
                   "better, or reference: what AutoGPTQ does, its flaws included")
        ->check(CLI::IsMember({"better", "reference"}))
        ->capture_default_str();
  });
  flags.of_awq = added(app, [&] {
    app.add_option("--version", flags.awq_version, "AWQ: how codes lie: gemm, gemv or gemv_fast")
        ->check(CLI::IsMember({"gemm", "gemv", "gemv_fast"}))
        ->capture_default_str();
    app.add_option("--awq-mode", flags.awq_mode, "better, or reference: what AutoAWQ does")
        ->check(CLI::IsMember({"better", "reference"}))
        ->capture_default_str();
  });
}

bool is_gptq(std::string_view to) {
  return to.starts_with(kPrefix);
}

bool is_awq(std::string_view to) {
  return to == "awq";
}

bool is_nf4(std::string_view to) {
  return to == "nf4";
}

namespace {

/// One run of the command: what is opened once, and what was made of it.
class LayerRun {
 public:
  LayerRun(const CommonOptions& options, const LayerFlags& flags, std::string_view to,
           const std::string& output)
      : options_(options),
        flags_(flags),
        to_(to),
        output_(directory_name(output)),
        model_(open_model(options)),
        pool_(options.load.threads > 0 ? options.load.threads : physical_cores()) {
    request_.shard_bytes = flags.shard_bytes;
    request_.output = output_;
    request_.isa = options.load.isa;
    request_.cancel = &interrupted();
    request_.eos_ids = model_.files.generation.eos_token_id;
  }

  void run(bool dry_run) {
    use(is_awq(to_)   ? awq_method(flags_)
        : is_nf4(to_) ? nf4_method(flags_)
                      : gptq_method(flags_, to_));
    calibrate();
    if (!dry_run) write();
    finish(dry_run);
  }

  void run(bool dry_run, const BudgetFlags& flags) {
    quantize::GptqRequest asked = gptq_request(flags_);
    static_cast<quantize::LayerRequest&>(asked) = request_;
    if (!dry_run) check_new(output_);
    calibrate();
    std::optional<BudgetAttempts> attempts;
    if (!dry_run && flags.max_kl > 0) attempts.emplace(begin_search(asked, flags));
    GptqBudget budget(
        {options_, flags, model_.source(), model_.tokenizer ? &*model_.tokenizer : nullptr,
         calibration_, flags_.calibration.cut.length, *backend(), pool_,
         dry_run ? "" : measured_path(output_)},
        asked);
    use_budget(budget);
    double measured = 0;
    if (attempts) {
      measured = search(budget, *attempts);
    } else if (!dry_run) {
      write();
      budget.forget_measured();
      measured = compare(budget);
    }
    outcome_.more = budget.json();
    if (!dry_run) outcome_.more["measured_kl"] = measured;
    outcome_.table =
        budget.table() +
        fmt::format("KL divergence predicted {:.6f}, measured {}\n", budget.predicted_kl(),
                    dry_run ? "not: nothing was written" : fmt::format("{:.6f}", measured));
    finish(dry_run);
  }

 private:
  void use(Method method) {
    method_ = std::move(method);
    plan_ = method_.plan(model_, request_);
    outcome_ = {};
    outcome_.warnings = plan_.warnings;
    for (const std::string& warning : outcome_.warnings)
      logger().warn("{}", warning);
  }
  void use_budget(const GptqBudget& budget) {
    Method method = gptq_method(budget.request());
    method.bits = budget.bits();
    use(std::move(method));
  }
  void calibrate() {
    if (!method_.is_calibrated) return;
    calibration_ = read_calibration(flags_.calibration, model_.files, model_path(options_));
    logger().info("calibration: {}", calibration_.summary());
  }
  Backend* backend() {
    if (!backend_) backend_ = calibration_backend(options_);
    return backend_.get();
  }

  void write() {
    report_.emplace(model_.config.n_layers, plan_.source_bytes, is_awq(to_));
    // Layers one by one, then the files that are made of them; hidden states, old and new.
    const int64_t hidden_bytes =
        calibration_.n_tokens * model_.config.hidden * static_cast<int64_t>(sizeof(float));
    check_room("quantize", output_, plan_.quantised_bytes + plan_.bytes() + 2 * hidden_bytes, true);
    request_.on_layer = [&](int layer, const auto& modules) { report_->layer(layer, modules); };
    request_.on_quantised = [&](int64_t bytes) { report_->quantised(bytes); };
    method_.write(model_, request_, plan_, calibration_, *backend(), pool_);
    report_->finish();
    tell_changes();
  }

  /// What became of weights that were quantised already, and all that is to be told.
  void tell_changes() {
    if (!report_) report_.emplace(model_.config.n_layers, plan_.source_bytes, is_awq(to_));
    // AWQ moves scales from matrix to matrix: what it wrote cannot be laid beside the source.
    if (has_quantised(model_.sources))
      outcome_.weights =
          is_awq(to_) ? report_->changes : read_back(request_.output, model_.sources, pool_);
    std::vector<std::string> said = report_->warnings();
    said.push_back(requantised_warning(outcome_.weights));
    for (const std::string& warning : said) {
      if (warning.empty()) continue;
      logger().warn("{}", warning);
      outcome_.warnings.push_back(warning);
    }
  }

  double compare(const GptqBudget& budget) {
    const double measured = budget.compare(request_.output);
    logger().info("KL divergence predicted {:.6f}, measured {:.6f}", budget.predicted_kl(),
                  measured);
    return measured;
  }

  /// Errors, before anything is measured: those of BudgetAttempts; invalid_argument (what search()
  /// would write over is not ours).
  BudgetAttempts begin_search(const quantize::GptqRequest& asked, const BudgetFlags& flags) {
    const std::string job = fmt::format("{}tokens {}, sequences {}\n",
                                        gptq_job(model_.source(), calibration_, *backend(), asked),
                                        flags.sensitivity_tokens, flags_.calibration.cut.length);
    BudgetAttempts attempts(output_ + ".attempts.json", job);
    request_.output = output_ + ".unproven";
    request_.work = output_ + ".work";
    if (!attempts.is_resumed()) check_new(request_.output);
    return attempts;
  }

  /// Writes under another name until the divergence keeps --max-kl, from where an interrupted run
  /// was. What is measured of what then gets its name.
  double search(GptqBudget& budget, BudgetAttempts& attempts) {
    for (;; use_budget(budget)) {
      const std::vector<int> bits = budget.chosen_bits();
      const std::optional<double> known = attempts.measured(bits);
      if (!known && attempts.is_begun(bits) && is_there(request_.output)) {
        tell_changes();  // interrupted while it was compared
      } else if (!known) {
        remove_unproven();
        attempts.begin(bits);
        write();
      }
      const double measured = known ? *known : compare(budget);
      if (!known) attempts.finish(measured);
      bool again = false;
      try {
        again = budget.choose_again(measured);
      } catch (const Error&) {
        remove_unproven();
        attempts.remove();
        throw;
      }
      if (again) continue;
      if (known) {  // what is there is another, if any
        remove_unproven();
        write();
      }
      rename_synced(request_.output, output_);
      attempts.remove();
      budget.forget_measured();
      return measured;
    }
  }

  static bool is_there(const std::string& path) {
    std::error_code error;
    return std::filesystem::exists(path, error);
  }
  static void check_new(const std::string& output) {
    if (!is_there(output)) return;
    fail(ErrorKind::kInvalidArgument, "quantize",
         "--output: expected a directory that is not there yet, got {}", printable(output, 4096));
  }
  /// Of bits that others are chosen for.
  void remove_unproven() const {
    std::error_code error;
    std::filesystem::remove_all(request_.output, error);
    if (!error) return;
    fail(ErrorKind::kIo, "quantize",
         "output: expected to remove what other bits are chosen for, got {} ({})", error.message(),
         printable(request_.output, 4096));
  }

  void finish(bool dry_run) {
    if (!report_) report_.emplace(model_.config.n_layers, plan_.source_bytes, is_awq(to_));
    outcome_.seconds = seconds_since(start_);
    print_outcome(options_, outcome_, method_, plan_, calibration_, *report_,
                  dry_run ? "" : output_);
  }

  const Clock::time_point start_ = Clock::now();
  const CommonOptions& options_;
  const LayerFlags& flags_;
  std::string to_, output_;
  Opened model_;
  ThreadPool pool_;
  std::unique_ptr<Backend> backend_;
  quantize::LayerRequest request_;
  quantize::CalibrationSet calibration_;
  Method method_;
  quantize::LayerPlan plan_;
  std::optional<Report> report_;
  Outcome outcome_;
};

}  // namespace

void run_layers(const CommonOptions& options, const LayerFlags& flags, std::string_view to,
                const std::string& output, bool dry_run) {
  LayerRun(options, flags, to, output).run(dry_run);
}

void run_gptq_budget(const CommonOptions& options, const LayerFlags& flags,
                     const BudgetFlags& budget, const std::string& output, bool dry_run) {
  LayerRun(options, flags, kGptqOfBudget, output).run(dry_run, budget);
}

}  // namespace qw::app
