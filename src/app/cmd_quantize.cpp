// qianwen quantize, qianwen convert: another file of the same model.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/command.h"
#include "app/directory_output.h"
#include "app/open.h"
#include "app/output_room.h"
#include "app/quantize_budget.h"
#include "app/quantize_layers.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "quantize/gguf_plan.h"
#include "text/tokenizer_files.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

struct Options : CommonOptions {
  std::string to, output, name;
  std::vector<std::string> tensor_types;  // REGEX=TYPE
  std::string embedding_type, output_type, imatrix;
  bool pure = false, dry_run = false, force = false;
  GgufSplitLimits split;
  LayerFlags layers;
  BudgetFlags budget;
};

DType block_type(const std::string& flag, const std::string& name) {
  const std::optional<DType> dtype = dtype_from_name(name);
  if (!dtype || info(*dtype).ggml_id < 0) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "{}: expected a GGML type such as q6_k, q8_0 or f16, got '{}'", flag, printable(name));
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
    fail(ErrorKind::kInvalidArgument, "quantize", "--to: expected one of {}, got '{}'",
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
  choices.name = options.name;
  return choices;
}

std::vector<std::string> paths_of(const Options& options, const GgufPlan& plan) {
  return gguf_split_paths(options.output, split_gguf(plan.content().tensors, options.split).size());
}

/// Errors: invalid_argument, where a file would be lost or could not be written whole.
void check_output(const Options& options, const std::vector<std::string>& paths, int64_t n_bytes) {
  namespace fs = std::filesystem;
  for (const std::string& path : paths) {
    std::error_code error;
    if (fs::is_directory(path, error)) {
      fail(ErrorKind::kInvalidArgument, "quantize",
           "--output: expected a file, got a directory ({})", printable(path));
    }
    if (fs::exists(path, error) && !options.force) {
      fail(ErrorKind::kInvalidArgument, "quantize",
           "--output: expected a file that is not there yet (or --force), got {}", printable(path));
    }
  }
  check_room("quantize", options.output, n_bytes);
}

/// Matrices, weights and bytes of a type.
struct TypeShare {
  int64_t n_tensors = 0, n_weights = 0, n_bytes = 0;
};

std::map<std::string, TypeShare> shares_of(const GgufPlan& plan) {
  std::map<std::string, TypeShare> shares;
  for (const GgufTensor& tensor : plan.tensors) {
    TypeShare& share = shares[std::string(name_of(tensor.dtype))];
    ++share.n_tensors;
    share.n_weights += tensor.shape.n_elems();
    share.n_bytes += tensor.bytes();
  }
  return shares;
}

std::string output_words(const std::vector<std::string>& paths) {
  return paths.size() == 1 ? paths.front()
                           : fmt::format("{} and {} more files", paths.front(), paths.size() - 1);
}

/// `more` joins what is printed as JSON.
void report(const Options& options, const GgufPlan& plan, double seconds,
            const ordered_json& more = {}) {
  if (options.json) {
    ordered_json types = ordered_json::object();
    for (const auto& [name, share] : shares_of(plan)) {
      types[name] = {
          {"tensors", share.n_tensors}, {"weights", share.n_weights}, {"bytes", share.n_bytes}};
    }
    ordered_json json = {
        {"output", options.dry_run ? ordered_json() : ordered_json(options.output)},
        {"bytes", plan.bytes()},
        {"bits_per_weight", plan.bits_per_weight()},
        {"types", std::move(types)}};
    if (const auto paths = paths_of(options, plan); paths.size() > 1) json["files"] = paths;
    if (options.dry_run) {
      ordered_json tensors = ordered_json::object();
      for (const GgufTensor& tensor : plan.tensors)
        tensors[tensor.name] = name_of(tensor.dtype);
      json["tensors"] = std::move(tensors);
    } else {
      json["seconds"] = seconds;
    }
    json["warnings"] = plan.warnings;
    if (!more.is_null()) json.update(more);
    return print_json(json);
  }
  std::string text;
  if (options.dry_run && more.is_null()) {
    for (const GgufTensor& tensor : plan.tensors)
      text +=
          fmt::format("{:<40} {:<8} {}\n", tensor.name, name_of(tensor.dtype), tensor.shape.str());
  }
  for (const auto& [name, share] : shares_of(plan)) {
    text += fmt::format("{:<8} {:>5} tensors {:>14} weights {:>10.1f} MB\n", name, share.n_tensors,
                        share.n_weights, static_cast<double>(share.n_bytes) / 1e6);
  }
  text += fmt::format("{:.1f} MB of tensors, {:.2f} bits per weight",
                      static_cast<double>(plan.bytes()) / 1e6, plan.bits_per_weight());
  text += options.dry_run ? "; nothing was written\n"
                          : fmt::format("; {} written in {:.1f} s\n",
                                        output_words(paths_of(options, plan)), seconds);
  print_result(text);
}

/// Writes `plan`, with progress.
void write(const Options& options, const GgufPlan& plan) {
  ThreadPool pool(options.load.threads > 0 ? options.load.threads : physical_cores());
  Progress progress("writing " + options.output, plan.bytes(), Progress::Unit::kBytes);
  write_gguf_plan(
      plan, options.output, pool, [&](int64_t n) { progress.add(n); }, &interrupted(),
      options.split);
}

void run(const Options& options) {
  init_logging(options.log_level);
  GgufChoices choices = choices_of(options);
  std::optional<quantize::ImportanceMatrix> importance;
  if (!options.imatrix.empty()) {
    importance = quantize::read_importance(options.imatrix);
    choices.importance = &*importance;
  }
  const auto start = std::chrono::steady_clock::now();
  const std::string path = model_path(options);
  const auto checkpoint = Checkpoint::open(path);
  const ModelConfig config = ModelConfig::from_checkpoint(*checkpoint);
  const NetworkSources sources = open_network(*checkpoint, config);
  std::optional<TokenizerSpec> tokenizer;
  if (!checkpoint->gguf) tokenizer = read_tokenizer_directory(checkpoint->directory);
  const GgufPlan plan =
      plan_gguf(*checkpoint, config, sources, tokenizer ? &*tokenizer : nullptr, choices);
  for (const std::string& warning : plan.warnings)
    logger().warn("{}", warning);
  if (!options.dry_run) {
    check_output(options, paths_of(options, plan), plan.bytes());
    write(options, plan);
    checkpoint->check_readable();
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  report(options, plan, seconds.count());
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
  const auto start = std::chrono::steady_clock::now();
  BudgetPlanner planner(options, options.budget, options.layers.calibration, options.imatrix,
                        options.name);
  const GgufPlan* plan = &planner.plan();
  for (const std::string& warning : plan->warnings)
    logger().warn("{}", warning);
  double measured = 0;
  if (!options.dry_run) {
    check_output(options, paths_of(options, *plan), plan->bytes());
    write(options, *plan);
    planner.check_readable();
    measured = planner.compare(paths_of(options, *plan).front());
    // The search measures without a cache of keys and values, which rounds a little, too.
    while (options.budget.max_kl > 0 && measured > options.budget.max_kl) {
      remove_all(paths_of(options, *plan));  // the next may be in fewer files, or not be found
      plan = &planner.stricter_plan(measured);
      check_output(options, paths_of(options, *plan), plan->bytes());
      write(options, *plan);
      measured = planner.compare(paths_of(options, *plan).front());
    }
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  ordered_json more = planner.json();
  if (!options.dry_run) more["measured_kl"] = measured;
  if (!options.json) {
    print_result(planner.table());
    print_result(fmt::format(
        "KL divergence predicted {:.6f}, measured {}\n", planner.predicted_kl(),
        options.dry_run ? "not: nothing was written" : fmt::format("{:.6f}", measured)));
  }
  report(options, *plan, seconds.count(), more);
}

/// A Hugging Face directory, for `convert`.
void write_directory_of(const Options& options, int64_t shard_bytes) {
  init_logging(options.log_level);
  if (!options.name.empty() || options.force || options.split.max_tensors > 0) {
    fail(ErrorKind::kInvalidArgument, "convert",
         "{}: expected it with --to gguf only, got it with --to safetensors",
         options.force          ? "--force"
         : options.name.empty() ? "--max-shard-tensors"
                                : "--name");
  }
  DirectoryRequest request;
  request.model = model_path(options);
  request.output = options.output;
  request.type = options.to;
  request.shard_bytes = shard_bytes;
  request.threads = options.load.threads;
  request.dry_run = options.dry_run;
  const DirectoryReport report = write_as_directory(request);
  if (options.json) {
    return print_json({{"output", options.dry_run ? ordered_json() : ordered_json(options.output)},
                       {"bytes", report.n_bytes},
                       {"tensors", report.n_tensors},
                       {"type", options.to},
                       {"warnings", report.warnings}});
  }
  print_result(fmt::format(
      "{:.1f} MB of tensors in {}; {}\n", static_cast<double>(report.n_bytes) / 1e6, options.to,
      options.dry_run ? "nothing was written"
                      : fmt::format("{} written in {:.1f} s", options.output, report.seconds)));
}

/// Adds --max-shard-tensors; --max-shard-size is there for directories.
void add_split_flag(CLI::App& app, Options& options) {
  app.add_option("--max-shard-tensors", options.split.max_tensors, "Tensors of a GGUF file")
      ->check(integer_from(1));
}
/// GGUF is one file unless a limit is given. `shard_bytes`: what --max-shard-size was read into.
void take_split_flag(const CLI::App& app, Options& options, int64_t shard_bytes) {
  if (app.count("--max-shard-size") > 0) options.split.max_bytes = shard_bytes;
}

void add_shared_flags(CLI::App& app, Options& options) {
  add_model_argument(app, options);
  add_compute_flags(app, options, ComputeFlags::kWithoutEffect);
  app.add_option("--output", options.output, "The file to write");
  app.add_option("--name", options.name, "What the file calls the model (default: from MODEL)");
  app.add_flag("--force", options.force, "Replace the file that is there");
  app.add_flag("--dry-run", options.dry_run, "Say what would be written, tensor by tensor");
}

bool is_layered(std::string_view to) {
  return is_gptq(to) || is_awq(to) || is_nf4(to);
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
  if (options.to.empty()) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "--to: expected a type or a recipe, or --budget, --max-bytes or --max-kl, got none");
  }
  for (const CLI::Option* flag : options.budget.all) {
    if (flag->count() > 0) refuse(flag->get_name(), "--budget, --max-bytes or --max-kl");
  }
  if (!is_gptq(options.to)) refuse_all(layers.of_gptq, "--to gptq-int4 and its like");
  if (!is_awq(options.to)) refuse_all(layers.of_awq, "--to awq");
  if (!is_nf4(options.to)) refuse_all(layers.of_nf4, "--to nf4");
  if (!is_gptq(options.to) && !is_awq(options.to))
    refuse_all(layers.of_both, "--to gptq-int4 and its like, or awq");
  if (!is_layered(options.to)) return;
  for (const char* flag : {"--tensor-type", "--embedding-type", "--output-type", "--pure", "--name",
                           "--force", "--imatrix", "--max-shard-tensors"}) {
    if (app.count(flag) > 0) refuse(flag, "--to a GGUF type");
  }
}

/// Flags that have no effect on a budget. Errors: invalid_argument.
void check_budget_flags(const CLI::App& app, const Options& options) {
  const auto refuse = [&](const std::string& flag) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "{}: expected it with --to, got it with a budget, which chooses all types", flag);
  };
  for (const char* flag : {"--tensor-type", "--embedding-type", "--output-type", "--pure"}) {
    if (app.count(flag) > 0) refuse(flag);
  }
  const LayerFlags& layers = options.layers;
  for (const auto* flags : {&layers.of_gptq, &layers.of_awq, &layers.of_nf4, &layers.of_both}) {
    for (const CLI::Option* flag : *flags) {
      const std::string name = flag->get_name();
      if (flag->count() > 0 && !name.starts_with("--calibration")) refuse(name);
    }
  }
}

void need_output(const Options& options) {
  if (!options.output.empty() || options.dry_run) return;
  fail(ErrorKind::kInvalidArgument, "quantize",
       "--output: expected a path (or --dry-run), got none");
}

}  // namespace

Command register_quantize(CLI::App& root) {
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("quantize", "Write a model with fewer bits per weight");
  add_shared_flags(*app, *options);
  app->add_option(
      "--to", options->to,
      "q4_k_m, q8_0, iq4_xs, ...: a name as llama.cpp uses it; or gptq-int4, gptq-int8, "
      "gptq-int3, gptq-int2; or awq; or nf4");
  app->add_option("--tensor-type", options->tensor_types,
                  "REGEX=TYPE: the type of tensors in whose name REGEX is found; may be repeated")
      ->allow_extra_args(false);
  app->add_option("--embedding-type", options->embedding_type, "The type of the embedding");
  app->add_option("--output-type", options->output_type, "The type of the output matrix");
  app->add_flag("--pure", options->pure, "The same type for all matrices");
  app->add_option("--imatrix", options->imatrix,
                  "How much each input matters: what imatrix or llama-imatrix wrote");
  add_layer_flags(*app, options->layers);
  add_split_flag(*app, *options);
  add_budget_flags(*app, options->budget);
  return {app, [app, options] {
            need_output(*options);
            if (options->budget.is_asked()) {
              check_budget_flags(*app, *options);
              take_split_flag(*app, *options, options->layers.shard_bytes);
              return run_budget(*options);
            }
            check_flags(*app, *options);
            take_split_flag(*app, *options, options->layers.shard_bytes);
            if (!is_layered(options->to)) return run(*options);
            run_layers(*options, options->layers, options->to, options->output, options->dry_run);
          }};
}

Command register_convert(CLI::App& root) {
  struct ConvertOptions : Options {
    std::string container = "gguf";
    int64_t shard_bytes = DirectoryChoices().shard_bytes;
  };
  auto options = std::make_shared<ConvertOptions>();
  options->to = "bf16";
  CLI::App* app = root.add_subcommand("convert", "Write a model as another kind of file");
  add_shared_flags(*app, *options);
  app->add_option("--to", options->container, "gguf, or safetensors (a Hugging Face directory)")
      ->check(CLI::IsMember({"gguf", "safetensors"}))
      ->required();
  app->add_option("--type", options->to, "f16, bf16 or f32")
      ->check(CLI::IsMember({"f16", "bf16", "f32"}))
      ->capture_default_str();
  add_shard_flag(*app, options->shard_bytes);
  add_split_flag(*app, *options);
  return {app, [app, options] {
            need_output(*options);
            take_split_flag(*app, *options, options->shard_bytes);
            if (options->container == "gguf") return run(*options);
            write_directory_of(*options, options->shard_bytes);
          }};
}

}  // namespace qw::app
