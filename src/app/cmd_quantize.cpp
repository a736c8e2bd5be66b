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
#include "app/convert_codes.h"
#include "app/directory_output.h"
#include "app/open.h"
#include "app/output_room.h"
#include "app/quantize_layers.h"
#include "app/weight_report.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "quantize/gguf_plan.h"
#include "quantize/kept_types.h"
#include "text/tokenizer_files.h"

namespace qw::app {

namespace {

using nlohmann::ordered_json;

struct Options : CommonOptions {
  std::string to, output, name;
  std::vector<std::string> tensor_types;  // REGEX=TYPE
  std::string embedding_type, output_type, imatrix;
  bool pure = false, dry_run = false, force = false;
  bool keeps = false;        // convert: weights stay what they are, as far as a type holds them
  double max_error = 0.001;  // of what is kept, relative
  LayerFlags layers;
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

/// Errors: invalid_argument, where a file would be lost or could not be written whole.
void check_output(const Options& options, int64_t n_bytes) {
  namespace fs = std::filesystem;
  const fs::path path(options.output);
  std::error_code error;
  if (fs::is_directory(path, error)) {
    fail(ErrorKind::kInvalidArgument, "quantize", "--output: expected a file, got a directory ({})",
         printable(options.output));
  }
  if (fs::exists(path, error) && !options.force) {
    fail(ErrorKind::kInvalidArgument, "quantize",
         "--output: expected a file that is not there yet (or --force), got {}",
         printable(options.output));
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

/// convert --type same, or a block type for what is quantised already.
bool is_kept_type(const std::string& type) {
  return type == "same" || is_block(*dtype_from_name(type));
}

/// The recipe by whose name a file of these types goes.
const GgufRecipe* recipe_of(const quantize::KeptTypes& types) {
  const DType main = types.main().value_or(types.of({Slot::kEmbedding}));
  if (const GgufRecipe* named = find_gguf_recipe(name_of(main))) return named;
  for (const std::string_view name : gguf_recipe_names()) {
    if (base_of(*find_gguf_recipe(name)) == main) return find_gguf_recipe(name);
  }
  return find_gguf_recipe("F32");
}

quantize::KeptTypes kept_types(const Options& options, const NetworkSources& sources,
                               ThreadPool& pool) {
  const bool is_same = options.to == "same";
  quantize::KeptTypes types(sources, is_same ? std::nullopt : dtype_from_name(options.to), pool,
                            &interrupted());
  if (!is_same && !types.main()) {
    fail(ErrorKind::kInvalidArgument, "convert",
         "--type {}: expected weights that are quantised already, got none (quantize --to {} "
         "quantises)",
         options.to, options.to);
  }
  if (types.n_reordered() > 0) {
    logger().warn(
        "{} matrices have groups of inputs that are no neighbours (act-order): blocks of 32 "
        "neighbours are rounded anew",
        types.n_reordered());
  }
  return types;
}

bool has_quantised(const NetworkSources& sources) {
  bool found = false;
  sources.for_each([&](const LinearParts& linear) {
    for (const LinearSource& part : linear.parts)
      found = found || !std::holds_alternative<DenseRows>(part.data);
  });
  return found;
}

/// What was written, read back: of a checkpoint that was quantised already.
struct Written {
  WeightDifferences weights;  // empty: not compared
  double seconds = 0;
  std::string warning;
};

void report(const Options& options, const GgufPlan& plan, const Written& written) {
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
    if (options.dry_run) {
      ordered_json tensors = ordered_json::object();
      for (const GgufTensor& tensor : plan.tensors)
        tensors[tensor.name] = name_of(tensor.dtype);
      json["tensors"] = std::move(tensors);
    } else {
      json["seconds"] = written.seconds;
      if (!written.weights.empty()) json["weights"] = weights_json(written.weights);
    }
    json["warnings"] = plan.warnings;
    if (!written.warning.empty()) json["warnings"].push_back(written.warning);
    return print_json(json);
  }
  std::string text;
  if (!written.weights.empty())
    text = options.keeps ? tensor_lines(written.weights) : class_lines(written.weights);
  if (options.dry_run) {
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
  text += options.dry_run
              ? "; nothing was written\n"
              : fmt::format("; {} written in {:.1f} s\n", options.output, written.seconds);
  print_result(text);
}

/// Writes the file, and reads it back where it was made of quantised weights. What is to keep them
/// gets its name only when it does.
Written write(const Options& options, const GgufPlan& plan, const Checkpoint& checkpoint,
              const NetworkSources& sources, ThreadPool& pool) {
  namespace fs = std::filesystem;
  check_output(options, plan.bytes());
  const std::string path = options.output + (options.keeps ? ".unproven" : "");
  Written written;
  try {
    {
      Progress progress("writing " + options.output, plan.bytes(), Progress::Unit::kBytes);
      write_gguf_plan(
          plan, path, pool, [&](int64_t n) { progress.add(n); }, &interrupted());
    }
    checkpoint.check_readable();
    if (options.keeps || has_quantised(sources)) written.weights = read_back(path, sources, pool);
    if (options.keeps) {
      check_errors(written.weights, options.max_error);
      fs::rename(path, options.output);
    }
  } catch (...) {
    std::error_code ignored;
    if (options.keeps) fs::remove(path, ignored);
    throw;
  }
  written.warning = requantised_warning(written.weights);
  if (!written.warning.empty()) logger().warn("{}", written.warning);
  return written;
}

void run(const Options& options) {
  init_logging(options.log_level);
  GgufChoices choices = options.keeps ? GgufChoices() : choices_of(options);
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
  ThreadPool pool(options.load.threads > 0 ? options.load.threads : physical_cores());
  std::optional<quantize::KeptTypes> types;
  if (options.keeps) {
    types.emplace(kept_types(options, sources, pool));
    choices.types = &*types;
    choices.recipe = recipe_of(*types);
    choices.name = options.name;
  }
  const GgufPlan plan =
      plan_gguf(*checkpoint, config, sources, tokenizer ? &*tokenizer : nullptr, choices);
  for (const std::string& warning : plan.warnings)
    logger().warn("{}", warning);
  Written written;
  if (!options.dry_run) written = write(options, plan, *checkpoint, sources, pool);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  written.seconds = seconds.count();
  report(options, plan, written);
}

/// A Hugging Face directory, for `convert`.
void write_directory_of(const Options& options, int64_t shard_bytes) {
  init_logging(options.log_level);
  if (!options.name.empty() || options.force) {
    fail(ErrorKind::kInvalidArgument, "convert",
         "{}: expected it with --to gguf only, got it with --to safetensors",
         options.force ? "--force" : "--name");
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

void add_shared_flags(CLI::App& app, Options& options) {
  add_model_argument(app, options);
  add_compute_flags(app, options, ComputeFlags::kWithoutEffect);
  app.add_option("--output", options.output, "The file to write");
  app.add_option("--name", options.name, "What the file calls the model (default: from MODEL)");
  app.add_flag("--force", options.force, "Replace the file that is there");
  app.add_flag("--dry-run", options.dry_run, "Say what would be written, tensor by tensor");
}

bool is_layered(std::string_view to) {
  return is_gptq(to) || is_awq(to);
}

/// Flags that have no effect on what is asked for. Errors: invalid_argument.
void check_flags(const CLI::App& app, const Options& options) {
  const auto refuse = [&](const std::string& flag, std::string_view with) {
    fail(ErrorKind::kInvalidArgument, "quantize", "{}: expected it with --to {}, got it with {}",
         flag, with, printable(options.to));
  };
  const auto refuse_all = [&](const std::vector<const CLI::Option*>& flags, std::string_view with) {
    for (const CLI::Option* flag : flags) {
      if (flag->count() > 0) refuse(flag->get_name(), with);
    }
  };
  const LayerFlags& layers = options.layers;
  if (!is_gptq(options.to)) refuse_all(layers.of_gptq, "gptq-int4 and its like");
  if (!is_awq(options.to)) refuse_all(layers.of_awq, "awq");
  if (!is_layered(options.to)) return refuse_all(layers.of_both, "gptq-int4 and its like, or awq");
  for (const char* flag : {"--tensor-type", "--embedding-type", "--output-type", "--pure", "--name",
                           "--force", "--imatrix"}) {
    if (app.count(flag) > 0) refuse(flag, "a GGUF type");
  }
}

/// The same for convert.
void check_convert_flags(const CLI::App& app, const Options& options,
                         const std::string& container) {
  const bool is_codes = container == "gptq" || container == "awq";
  const auto refuse = [&](const char* flag, std::string_view with) {
    if (app.count(flag) == 0) return;
    fail(ErrorKind::kInvalidArgument, "convert", "{}: expected it with --to {}, got it with {}",
         flag, with, container);
  };
  if (container != "gptq") refuse("--v2", "gptq");
  if (container != "awq") refuse("--version", "awq");
  if (is_codes) {
    refuse("--type", "gguf or safetensors");
    refuse("--name", "gguf");
    refuse("--force", "gguf");
    return;
  }
  if (options.keeps && container != "gguf") {
    fail(ErrorKind::kInvalidArgument, "convert",
         "--type: expected f16, bf16 or f32 with --to {}, got {}", container, options.to);
  }
  if (!options.keeps && app.count("--max-error") > 0) {
    fail(ErrorKind::kInvalidArgument, "convert",
         "--max-error: expected it with --type same or a block type, got it with {}", options.to);
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
         "gptq-int3, gptq-int2; or awq")
      ->required();
  app->add_option("--tensor-type", options->tensor_types,
                  "REGEX=TYPE: the type of tensors in whose name REGEX is found; may be repeated")
      ->allow_extra_args(false);
  app->add_option("--embedding-type", options->embedding_type, "The type of the embedding");
  app->add_option("--output-type", options->output_type, "The type of the output matrix");
  app->add_flag("--pure", options->pure, "The same type for all matrices");
  app->add_option("--imatrix", options->imatrix,
                  "How much each input matters: what imatrix or llama-imatrix wrote");
  add_layer_flags(*app, options->layers);
  return {app, [app, options] {
            need_output(*options);
            check_flags(*app, *options);
            if (!is_layered(options->to)) return run(*options);
            run_layers(*options, options->layers, options->to, options->output, options->dry_run);
          }};
}

Command register_convert(CLI::App& root) {
  struct ConvertOptions : Options {
    std::string container = "gguf", version = "gemm";
    bool v2 = false;
    int64_t shard_bytes = DirectoryChoices().shard_bytes;
  };
  auto options = std::make_shared<ConvertOptions>();
  options->to = "bf16";
  CLI::App* app = root.add_subcommand("convert", "Write a model as another kind of file");
  add_shared_flags(*app, *options);
  app->add_option("--to", options->container,
                  "gguf, or safetensors (a Hugging Face directory); gptq or awq, of what is "
                  "quantised already")
      ->check(CLI::IsMember({"gguf", "safetensors", "gptq", "awq"}))
      ->required();
  app->add_option(
         "--type", options->to,
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
            need_output(*options);
            options->keeps = is_kept_type(options->to);
            check_convert_flags(*app, *options, options->container);
            if (options->container == "gguf") return run(*options);
            if (options->container != "safetensors") {
              return convert_codes(
                  *options, {options->container, options->output, options->version, options->v2,
                             options->shard_bytes, options->max_error, options->dry_run});
            }
            write_directory_of(*options, options->shard_bytes);
          }};
}

}  // namespace qw::app
