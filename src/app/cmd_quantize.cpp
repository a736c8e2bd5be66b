// qianwen quantize: a file or directory of the same model with fewer bits per weight.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <array>
#include <chrono>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "app/command.h"
#include "app/flag_groups.h"
#include "app/gguf_feedback_output.h"
#include "app/gguf_output.h"
#include "app/quantize_budget.h"
#include "app/quantize_layers.h"
#include "base/error.h"
#include "base/log.h"
#include "quantize/gptq_factor.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct Options : CommonOptions {
  std::string to;
  std::vector<std::string> tensor_types;  // REGEX=TYPE
  std::string embedding_type, output_type, imatrix;
  bool pure = false;
  GgufOutput output;
  LayerFlags layers;
  BudgetFlags budget;
  bool feedback = false;
};

DType block_type(const std::string& flag, const std::string& name) {
  const std::optional<DType> dtype = dtype_from_name(name);
  if (!dtype || info(*dtype).ggml_id < 0) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "{}: expected a GGML type such as q6_k, q8_0 or f16, got '{}'", flag, printable(name));
  }
  // What others only round inputs to, and doubles.
  if (*dtype == DType::kQ8_1 || *dtype == DType::kQ8_K || *dtype == DType::kF64) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "{}: expected a type that programs run matrices in, such as q8_0 or f32, got {}", flag,
         name_of(*dtype));
  }
  return *dtype;
}

std::string recipe_list() {
  std::string list;
  for (const std::string_view name : gguf_recipe_names())
    list += (list.empty() ? "" : ", ") + std::string(name);
  return list;
}

GgufChoices choices_of(const Options& options) {
  GgufChoices choices;
  choices.recipe = find_gguf_recipe(options.to);
  if (choices.recipe == nullptr) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "--to: expected gptq-int8, gptq-int4, gptq-int3, gptq-int2, awq, nf4 or one of {}, got "
         "'{}'",
         recipe_list(), printable(options.to));
  }
  for (const std::string& text : options.tensor_types) {
    const size_t equals = text.rfind('=');
    if (equals == std::string::npos || equals == 0) {
      fail(ErrorKind::kInvalidArgument, "quantize", "--tensor-type: expected REGEX=TYPE, got '{}'",
           printable(text));
    }
    choices.tensor_types.emplace_back(text.substr(0, equals),
                                      block_type("--tensor-type", text.substr(equals + 1)));
  }
  if (!options.embedding_type.empty())
    choices.embedding = block_type("--embedding-type", options.embedding_type);
  if (!options.output_type.empty())
    choices.output = block_type("--output-type", options.output_type);
  choices.pure = options.pure;
  choices.name = options.output.name;
  return choices;
}

void run(const Options& options) {
  init_logging(options.log_level);
  const auto start = Clock::now();
  GgufChoices choices = choices_of(options);
  if (options.feedback) {
    return run_gguf_feedback(options, options.output, std::move(choices),
                             options.layers.calibration, options.imatrix, options.layers.gptq.damp);
  }
  std::optional<quantize::ImportanceMatrix> importance;
  if (!options.imatrix.empty()) {
    importance = quantize::read_importance(options.imatrix);
    choices.importance = &*importance;
  }
  ThreadPool pool(options.load.threads > 0 ? options.load.threads : physical_cores());
  const GgufModel model = GgufModel::open(model_path(options));
  make_gguf(options, options.output, model, model.plan(choices), pool, start);
}

void remove_all(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    std::error_code error;
    if (!std::filesystem::remove(path, error)) {
      fail(ErrorKind::kIo, "quantize",
           "output: expected to remove what is above --max-kl, got {} ({})", error.message(),
           printable(path));
    }
  }
}

/// Types within a budget, by measuring.
void run_budget(const Options& options) {
  init_logging(options.log_level);
  const auto start = Clock::now();
  const GgufOutput& output = options.output;
  if (!output.dry_run) check_gguf_output(output);
  // What is promised of the divergence is seen to be kept before there is a file.
  std::optional<UnprovenFiles> unproven;
  if (!output.dry_run && options.budget.max_kl > 0) unproven.emplace(output);
  BudgetPlanner planner(options, options.budget, options.layers.calibration, options.imatrix,
                        output);
  const GgufPlan* plan = &planner.plan();
  for (const std::string& warning : plan->warnings)
    logger().warn("{}", warning);
  FeedbackWritten made;
  double measured = 0;
  if (!output.dry_run) {
    const GgufOutput& target = unproven ? unproven->hidden() : output;
    const auto write = [&] {
      made = planner.write(target);
      if (!unproven) planner.forget_measured();
      measured = planner.compare(gguf_output_paths(target, *plan).front());
    };
    write();
    // The search measures what the types make of the matrices; this, what is read from the file.
    while (options.budget.max_kl > 0 && measured > options.budget.max_kl) {
      // The next may be in fewer files, or not be found.
      remove_all(gguf_output_paths(target, *plan));
      plan = &planner.stricter_plan(measured);
      write();
    }
    if (unproven) {
      unproven->give_names(*plan);
      planner.forget_measured();
    }
  }
  const std::chrono::duration<double> seconds = Clock::now() - start;
  ordered_json more = planner.json();
  if (!output.dry_run) more["measured_kl"] = measured;
  if (!made.more.is_null()) more.update(made.more);
  if (!options.json) {
    print_result(planner.table());
    print_result(made.line);
    print_result(
        fmt::format("KL divergence predicted {:.6f}, measured {}\n", planner.predicted_kl(),
                    output.dry_run ? "not: nothing was written" : fmt::format("{:.6f}", measured)));
  }
  report_gguf(options, output, *plan, made.written, seconds.count(), more);
}

/// Flags of GGUF files.
constexpr std::array kOnlyGguf = {
    "--tensor-type", "--embedding-type", "--output-type",       "--pure",    "--name",
    "--force",       "--imatrix",        "--max-shard-tensors", "--feedback"};

bool is_layered(std::string_view to) {
  return is_gptq(to) || is_awq(to) || is_nf4(to);
}

/// The names of directories in lower case; those of recipes are found in any.
void take_any_case(std::string& to) {
  std::string lower = to;
  for (char& c : lower)
    c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  if (is_layered(lower) || lower == kGptqOfBudget) to = lower;
}

/// Flags that have no effect on what is asked for. Errors: invalid_argument.
void check_flags(const CLI::App& app, const Options& options) {
  const auto refuse = [&](const std::string& flag, std::string_view with) {
    fail(ErrorKind::kInvalidArgument, "quantize", "{}: expected it with {}, got it with {}", flag,
         with, printable(options.to));
  };
  const auto refuse_all = [&](const std::vector<const CLI::Option*>& flags, std::string_view with) {
    for (const CLI::Option* flag : flags) {
      if (flag->count() > 0) refuse(flag->get_name(), with);
    }
  };
  const LayerFlags& layers = options.layers;
  if (options.to.empty() || options.to == kGptqOfBudget) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "--to: expected a type or a recipe, or --budget, --max-bytes or --max-kl, got {}",
         options.to.empty() ? "none" : "gptq without a number of bits");
  }
  for (const CLI::Option* flag : options.budget.all) {
    if (flag->count() > 0) refuse(flag->get_name(), "--budget, --max-bytes or --max-kl");
  }
  if (!is_gptq(options.to)) refuse_all(layers.of_gptq, "--to gptq-int4 and its like");
  if (!is_awq(options.to)) refuse_all(layers.of_awq, "--to awq");
  if (is_awq(options.to) && layers.awq_mode == "reference" && app.count("--damp") > 0) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "--damp: expected it with --awq-mode better, got it with reference, which has none");
  }
  if (!is_nf4(options.to)) refuse_all(layers.of_nf4, "--to nf4");
  if (options.feedback) {
    if (app.count("--group-size") > 0)
      refuse("--group-size", "--to gptq-int4 and its like, or awq");
  } else if (!is_gptq(options.to) && !is_awq(options.to)) {
    refuse_all(layers.of_both, "--to gptq-int4 and its like, or awq, or --feedback");
  }
  if (!is_layered(options.to)) return;
  for (const char* flag : kOnlyGguf) {
    if (app.count(flag) > 0) refuse(flag, "--to a GGUF type");
  }
}

/// Flags that have no effect on a budget. Errors: invalid_argument.
void check_budget_flags(const CLI::App& app, const Options& options) {
  const bool is_gptq = options.to == kGptqOfBudget;
  if (!is_gptq && !options.to.empty()) {
    fail(
        ErrorKind::kInvalidArgument, "quantize",
        "--to: expected gptq, or none for a GGUF file, with a budget, which chooses all types, got "
        "'{}'",
        printable(options.to));
  }
  const auto refuse = [&](const std::string& flag, const char* with) {
    fail(ErrorKind::kInvalidArgument, "quantize", "{}: expected it with {}, got it with a budget{}",
         flag, with, is_gptq ? " for gptq" : "");
  };
  for (const char* flag : {"--tensor-type", "--embedding-type", "--output-type", "--pure"}) {
    if (app.count(flag) > 0) refuse(flag, "--to a GGUF type, for a budget chooses all types");
  }
  if (options.feedback && options.budget.max_kl > 0) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "--feedback: expected it with --budget or --max-bytes, got it with --max-kl, which "
         "searches "
         "among plain files");
  }
  if (is_gptq) {
    for (const char* flag : kOnlyGguf) {
      if (app.count(flag) > 0) refuse(flag, "a GGUF file");
    }
  }
  const LayerFlags& layers = options.layers;
  const auto refuse_all = [&](const std::vector<const CLI::Option*>& flags, const char* with) {
    for (const CLI::Option* flag : flags) {
      const std::string name = flag->get_name();
      const bool is_feedbacks = options.feedback && name == "--damp";
      if (flag->count() > 0 && !name.starts_with("--calibration") && !is_feedbacks)
        refuse(name, with);
    }
  };
  refuse_all(layers.of_awq, "--to awq");
  refuse_all(layers.of_nf4, "--to nf4");
  if (is_gptq) return;
  refuse_all(layers.of_gptq, "--to gptq");
  refuse_all(layers.of_both, "--to gptq, or awq");
}

}  // namespace

Command register_quantize(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("quantize", "Write a model with fewer bits per weight");
  add_model_argument(*app, *options);
  add_compute_flags(*app, *options);
  add_gguf_output_flags(*app, options->output);
  // All but the threads for what the model is run for.
  group_compute_flags(*app, {"--threads", "--isa", "--device", "--activations"});
  app->add_option(
      "--to", options->to,
      "q4_k_m, q8_0, iq4_xs, ...: a name as llama.cpp uses it; or gptq-int4, gptq-int8, "
      "gptq-int3, gptq-int2; or awq; or nf4; with a budget gptq, or none for a GGUF file");
  app->add_option(
         "--tensor-type", options->tensor_types,
         "GGUF: REGEX=TYPE: the type of tensors in whose name REGEX is found; may be repeated")
      ->allow_extra_args(false);
  app->add_option("--embedding-type", options->embedding_type, "GGUF: the type of the embedding");
  app->add_option("--output-type", options->output_type, "GGUF: the type of the output matrix");
  app->add_flag("--pure", options->pure, "GGUF: the same type for all matrices");
  app->add_option("--imatrix", options->imatrix,
                  "GGUF: how much each input matters: what imatrix or llama-imatrix wrote");
  add_feedback_flag(*app, options->feedback);
  add_layer_flags(*app, options->layers);
  add_budget_flags(*app, options->budget);
  return {app, [app, options] {
            refuse_adapters(*options, "quantize");
            take_any_case(options->to);
            need_output(options->output);
            take_shard_bytes(*app, options->output, options->layers.shard_bytes);
            if (options->budget.is_asked()) {
              check_budget_flags(*app, *options);
              options->budget.feedback = options->feedback;
              options->budget.damp = options->layers.gptq.damp;
              quantize::check_damp(options->budget.damp);
              if (options->to == kGptqOfBudget)
                return run_gptq_budget(*options, options->layers, options->budget,
                                       options->output.path, options->output.dry_run);
              return run_budget(*options);
            }
            check_flags(*app, *options);
            if (!is_layered(options->to)) return run(*options);
            run_layers(*options, options->layers, options->to, options->output.path,
                       options->output.dry_run);
          }};
}

}  // namespace qw::app
