#include "app/gguf_output.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "app/output_room.h"
#include "base/atomic_directory.h"
#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "checkpoint/weight_files.h"
#include "quantize/gguf_resume.h"
#include "text/tokenizer_files.h"

namespace qw::app {

namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using Paths = std::vector<std::string>;

/// Files of a set of the output's name, of however many: nobody could tell two sets apart.
Paths sets_there(const GgufOutput& output) {
  Paths there;
  std::error_code error;
  const fs::path folder = fs::path(output.path).parent_path();
  const auto own =
      parse_shard_name(fs::path(gguf_split_paths(output.path, 2).front()).filename().string());
  for (fs::directory_iterator entry(folder.empty() ? "." : folder, error), end;
       own && !error && entry != end; entry.increment(error)) {
    const auto name = parse_shard_name(entry->path().filename().string());
    if (name && name->stem == own->stem && name->extension == own->extension)
      there.push_back((folder / entry->path().filename()).string());
  }
  std::ranges::sort(there);
  return there;
}

/// n_files: none, where that is not known yet. Errors: invalid_argument, where a file would be lost
/// or could not be written whole.
void check_output(const GgufOutput& output, std::optional<size_t> n_files, int64_t n_bytes) {
  const bool is_limited = output.split.max_bytes > 0 || output.split.max_tensors > 0;
  Paths there;
  if (is_limited && n_files != 1) there = sets_there(output);
  std::error_code error;
  if ((!is_limited || n_files.value_or(1) == 1) && fs::exists(output.path, error))
    there.push_back(output.path);
  for (const std::string& path : there) {
    if (fs::is_directory(path, error)) {
      fail(ErrorKind::kInvalidArgument, "quantize",
           "--output: expected a file, got a directory ({})", printable(path, 4096));
    }
    if (output.force) continue;
    fail(ErrorKind::kInvalidArgument, "quantize",
         "--output: expected a file that is not there yet (or --force), got {}",
         printable(path, 4096));
  }
  check_room("quantize", output.path, n_bytes, output.resumes);
}

/// Of several files the name may be that of a directory, too.
void check_is_file(const GgufOutput& output) {
  if (output.path.ends_with('/')) check_file_name("quantize", "--output", output.path);
}

void write_files(const GgufOutput& output, const GgufPlan& plan, const std::string& path,
                 const Checkpoint& checkpoint, ThreadPool& pool) {
  std::optional<Progress> progress;
  const auto begin = [&](int64_t n_resumed) {
    if (n_resumed > 0)
      logger().info("{:.1f} MB were there already", 1e-6 * static_cast<double>(n_resumed));
    progress.emplace("writing " + output.path, plan.bytes() - n_resumed, Progress::Unit::kBytes);
  };
  const auto tell = [&](int64_t n) { progress->add(n); };
  if (output.resumes && path == output.path) {  // else it lies where nothing is kept
    quantize::GgufWriteRequest request;
    request.output = path;
    request.split = output.split;
    request.cancel = &interrupted();
    request.on_resumed = begin;
    request.on_written = tell;
    quantize::write_gguf_resumably(checkpoint, plan, pool, request);
  } else {
    begin(0);
    write_gguf_plan(plan, path, pool, tell, &interrupted(), output.split);
  }
  progress.reset();
  checkpoint.check_readable();
}

/// What is proved is that the weights are what they were.
WeightDifferences write_proved(const GgufOutput& output, const GgufPlan& plan,
                               const Checkpoint& checkpoint, const NetworkSources& sources,
                               ThreadPool& pool) {
  const UnprovenFiles files(output);
  write_files(output, plan, files.hidden().path, checkpoint, pool);
  WeightDifferences weights =
      read_back(gguf_output_paths(files.hidden(), plan).front(), sources, pool);
  check_errors(weights, *output.max_error);
  files.give_names(plan);
  return weights;
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

std::string output_words(const Paths& paths) {
  return paths.size() == 1 ? paths.front()
                           : fmt::format("{} and {} more files", paths.front(), paths.size() - 1);
}

ordered_json to_json(const GgufOutput& output, const GgufPlan& plan, const GgufWritten& written,
                     double seconds) {
  ordered_json types = ordered_json::object();
  for (const auto& [name, share] : shares_of(plan)) {
    types[name] = {
        {"tensors", share.n_tensors}, {"weights", share.n_weights}, {"bytes", share.n_bytes}};
  }
  ordered_json json = {{"output", output.dry_run ? ordered_json() : ordered_json(output.path)},
                       {"bytes", plan.bytes()},
                       {"bits_per_weight", plan.bits_per_weight()},
                       {"types", std::move(types)}};
  if (const Paths paths = gguf_output_paths(output, plan); paths.size() > 1) json["files"] = paths;
  if (output.dry_run) {
    ordered_json tensors = ordered_json::object();
    for (const GgufTensor& tensor : plan.tensors)
      tensors[tensor.name] = name_of(tensor.dtype);
    json["tensors"] = std::move(tensors);
  } else {
    json["seconds"] = seconds;
    if (!written.weights.empty()) json["weights"] = weights_json(written.weights);
  }
  std::vector<std::string> warnings = plan.warnings;
  warnings.insert(warnings.end(), written.warnings.begin(), written.warnings.end());
  json["warnings"] = warnings;
  return json;
}

}  // namespace

void add_gguf_output_flags(CLI::App& app, GgufOutput& output) {
  app.add_option("--output", output.path, "The file or directory to write");
  app.add_option("--name", output.name,
                 "GGUF: what the file calls the model (default: from MODEL)");
  app.add_flag("--force", output.force, "GGUF: replace the file that is there");
  app.add_flag("--dry-run", output.dry_run, "Say what would be written, and write nothing");
  app.add_option("--max-shard-tensors", output.split.max_tensors,
                 "GGUF: tensors in a file; there is one unless this or --max-shard-size is given")
      ->check(integer_from(1));
}

void take_shard_bytes(const CLI::App& app, GgufOutput& output, int64_t shard_bytes) {
  if (app.count("--max-shard-size") > 0) output.split.max_bytes = shard_bytes;
}

void need_output(const GgufOutput& output) {
  if (!output.path.empty() || output.dry_run) return;
  fail(ErrorKind::kInvalidArgument, "quantize",
       "--output: expected a path (or --dry-run), got none");
}

GgufModel GgufModel::open(const std::string& path) {
  return of(Checkpoint::open(path));
}

GgufModel GgufModel::of(std::shared_ptr<const Checkpoint> checkpoint) {
  GgufModel model;
  model.checkpoint = std::move(checkpoint);
  model.config = ModelConfig::from_checkpoint(*model.checkpoint);
  model.sources = open_network(*model.checkpoint, model.config);
  if (!model.checkpoint->gguf)
    model.tokenizer = read_tokenizer_directory(model.checkpoint->directory);
  return model;
}

GgufPlan GgufModel::plan(const GgufChoices& choices) const {
  return plan_gguf(*checkpoint, config, sources, tokenizer ? &*tokenizer : nullptr, choices);
}

void check_gguf_output(const GgufOutput& output) {
  check_is_file(output);
  check_output(output, std::nullopt, 0);
}

void check_gguf_output(const GgufOutput& output, const GgufPlan& plan) {
  check_is_file(output);
  check_output(output, gguf_output_paths(output, plan).size(), 0);
}

UnprovenFiles::UnprovenFiles(const GgufOutput& output)
    : output_(output), hidden_(output), folder_(output.path + ".unproven") {
  hidden_.resumes = false;  // the folder is not kept
  hidden_.path = folder_.file(fs::path(output.path).filename().string());
}

void UnprovenFiles::give_names(const GgufPlan& plan) const {
  const Paths from = gguf_output_paths(hidden_, plan), to = gguf_output_paths(output_, plan);
  // The first file of a model comes last: without it the others cannot be opened.
  std::error_code ignored;
  if (to.size() > 1) fs::remove(to.front(), ignored);
  for (size_t i = to.size(); i-- > 0;)
    rename_synced(from[i], to[i]);
}

std::vector<std::string> gguf_output_paths(const GgufOutput& output, const GgufPlan& plan) {
  return gguf_split_paths(output.path, split_gguf(plan.content().tensors, output.split).size());
}

GgufWritten write_gguf_output(const GgufOutput& output, const GgufPlan& plan,
                              const Checkpoint& checkpoint, const NetworkSources& sources,
                              ThreadPool& pool) {
  check_is_file(output);
  const Paths paths = gguf_output_paths(output, plan);
  check_output(output, paths.size(), plan.bytes());
  GgufWritten written;
  if (output.max_error) {
    written.weights = write_proved(output, plan, checkpoint, sources, pool);
  } else {
    write_files(output, plan, output.path, checkpoint, pool);
    if (has_quantised(sources)) written.weights = read_back(paths.front(), sources, pool);
  }
  if (const std::string warning = requantised_warning(written.weights); !warning.empty()) {
    logger().warn("{}", warning);
    written.warnings.push_back(warning);
  }
  return written;
}

void report_gguf(const CommonOptions& options, const GgufOutput& output, const GgufPlan& plan,
                 const GgufWritten& written, double seconds, const ordered_json& more) {
  if (options.json) {
    ordered_json json = to_json(output, plan, written, seconds);
    if (!more.is_null()) json.update(more);
    return print_json(json);
  }
  std::string text;
  if (!written.weights.empty())
    text = output.max_error ? tensor_lines(written.weights) : class_lines(written.weights);
  if (output.dry_run && !more.contains("tensors")) {  // a budget has a table of its own
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
  text += output.dry_run ? "; nothing was written\n"
                         : fmt::format("; {} written in {:.1f} s\n",
                                       output_words(gguf_output_paths(output, plan)), seconds);
  print_result(text);
}

void make_gguf(const CommonOptions& options, const GgufOutput& output, const GgufModel& model,
               const GgufPlan& plan, ThreadPool& pool,
               std::chrono::steady_clock::time_point start) {
  for (const std::string& warning : plan.warnings)
    logger().warn("{}", warning);
  GgufWritten written;
  if (!output.dry_run)
    written = write_gguf_output(output, plan, *model.checkpoint, model.sources, pool);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  report_gguf(options, output, plan, written, seconds.count(), {});
}

}  // namespace qw::app
