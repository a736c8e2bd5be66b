// From a model to a GGUF file, for the commands that make one: what is read, where it goes, the
// proof, the report.
//
// Level 8 (app). Of cmd_quantize.cpp and cmd_convert.cpp.
#pragma once

#include <CLI/App.hpp>
#include <chrono>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "app/command.h"
#include "app/weight_report.h"
#include "base/atomic_directory.h"
#include "quantize/gguf_plan.h"

namespace qw::app {

/// Flags of commands that write a model; those for directories take some of them too.
struct GgufOutput {
  std::string path;
  std::string name;  // general.name; "": from the model
  bool force = false, dry_run = false;
  GgufSplitLimits split;
  /// By how much a matrix may change (relative root mean square), for a file that is to hold the
  /// weights as they are; none: they may be rounded.
  std::optional<double> max_error;
  /// An interruption leaves OUTPUT.work to go on with; not where another has that directory.
  bool resumes = true;
};

/// Adds --output, --name, --force, --dry-run and --max-shard-tensors.
void add_gguf_output_flags(CLI::App& app, GgufOutput& output);
/// GGUF is one file unless a limit is given. `shard_bytes`: what --max-shard-size was read into.
void take_shard_bytes(const CLI::App& app, GgufOutput& output, int64_t shard_bytes);
/// Errors: invalid_argument, where neither --output nor --dry-run is given.
void need_output(const GgufOutput& output);

/// Everything that is read before anything is planned.
struct GgufModel {
  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  NetworkSources sources;
  std::optional<TokenizerSpec> tokenizer;  // of a directory

  /// Errors: those of opening a checkpoint.
  static GgufModel open(const std::string& path);
  static GgufModel of(std::shared_ptr<const Checkpoint> checkpoint);
  GgufPlan plan(const GgufChoices& choices) const;
};

/// What was written.
struct GgufWritten {
  WeightDifferences weights;  // read back, where some were quantised already; else empty
  std::vector<std::string> warnings;
};

/// Errors before anything is read or measured: invalid_argument, where --output is a directory, or
/// a file without --force; not_found, where there is no directory for it.
void check_gguf_output(const GgufOutput& output);

/// The same of the files that a plan becomes.
void check_gguf_output(const GgufOutput& output, const GgufPlan& plan);

/// The files that a plan becomes.
std::vector<std::string> gguf_output_paths(const GgufOutput& output, const GgufPlan& plan);

/// Writes with progress on stderr; reads back what was made of quantised weights, and logs what
/// became of them. With `max_error` the files get their names when they are proved. Errors:
/// invalid_argument (a file is there, without --force), io, cancelled, those of write_gguf_plan and
/// check_errors.
GgufWritten write_gguf_output(const GgufOutput& output, const GgufPlan& plan,
                              const Checkpoint& checkpoint, const NetworkSources& sources,
                              ThreadPool& pool);

/// Files that are proved before they get their names: they are written into a folder beside the
/// output, of which nothing is left in the end.
class UnprovenFiles {
 public:
  /// Errors: invalid_argument (a folder of that name that is not ours), io.
  explicit UnprovenFiles(const GgufOutput& output);

  /// The same output, in the folder.
  const GgufOutput& hidden() const { return hidden_; }
  /// Of what `plan` became. Errors: io.
  void give_names(const GgufPlan& plan) const;

 private:
  const GgufOutput output_;
  GgufOutput hidden_;
  const OwnDirectory folder_;
};

/// Sizes, types, and how far weights are from what they were. `more` joins what is printed as JSON.
void report_gguf(const CommonOptions& options, const GgufOutput& output, const GgufPlan& plan,
                 const GgufWritten& written, double seconds, const nlohmann::ordered_json& more);

/// Logs the warnings, writes unless it is a dry run, and reports. `start`: of the command. Errors:
/// those of write_gguf_output.
void make_gguf(const CommonOptions& options, const GgufOutput& output, const GgufModel& model,
               const GgufPlan& plan, ThreadPool& pool, std::chrono::steady_clock::time_point start);

}  // namespace qw::app
