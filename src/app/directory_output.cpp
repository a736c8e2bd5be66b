#include "app/directory_output.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>

#include "app/output_room.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "engine/bundle.h"
#include "model/gguf_tokenizer.h"

namespace qw::app {

namespace {

namespace fs = std::filesystem;

/// Errors before anything is read, where nothing could come of it.
void check_output(const DirectoryRequest& request) {
  std::error_code error;
  if (request.output.empty()) {
    fail(ErrorKind::kInvalidArgument, "convert",
         "--output: expected a directory (or --dry-run), got none");
  }
  if (fs::exists(request.output, error)) {
    fail(ErrorKind::kInvalidArgument, "convert",
         "--output: expected a directory that is not there yet, got {}",
         printable(request.output, 4096));
  }
}

}  // namespace

DirectoryReport write_as_directory(const DirectoryRequest& request) {
  const auto start = std::chrono::steady_clock::now();
  if (!request.dry_run) check_output(request);
  const ModelFiles files = open_files(request.model);
  const Checkpoint& checkpoint = *files.checkpoint;
  const ModelConfig config = ModelConfig::from_checkpoint(checkpoint);
  const NetworkSources sources = open_network(checkpoint, config);
  DirectoryChoices choices;
  choices.dtype = *dtype_from_name(request.type);
  choices.shard_bytes = request.shard_bytes;
  for (const int32_t id : files.generation.eos_token_id) {
    if (std::ranges::find(choices.eos_ids, id) == choices.eos_ids.end())
      choices.eos_ids.push_back(id);
  }
  std::optional<AdapterMerge> merge;
  if (!request.adapters.empty()) {
    merge.emplace(config, sources, request.adapters);
    choices.merge = &*merge;
  }
  std::optional<TokenizerSpec> tokenizer;
  if (checkpoint.gguf) tokenizer = gguf_tokenizer_spec(*checkpoint.gguf);
  const DirectoryPlan plan =
      plan_directory(checkpoint, config, sources, tokenizer ? &*tokenizer : nullptr, choices);
  for (const std::string& warning : plan.warnings)
    logger().warn("{}", warning);
  DirectoryReport report;
  report.n_bytes = plan.n_bytes();
  report.n_tensors = std::ssize(plan.tensors);
  report.n_changed = merge ? merge->n_modules() : 0;
  report.warnings = plan.warnings;
  if (!request.dry_run) {
    check_room("convert", request.output, plan.n_bytes());
    ThreadPool pool(request.threads > 0 ? request.threads : physical_cores());
    Progress progress("writing " + request.output, plan.n_bytes(), Progress::Unit::kBytes);
    report.merge = write_directory(
        plan, request.output, pool, [&](int64_t n) { progress.add(n); }, &interrupted());
    checkpoint.check_readable();
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

void add_shard_flag(CLI::App& app, int64_t& shard_bytes) {
  app.add_option("--max-shard-size", shard_bytes,
                 "Bytes of weights in a file; GGUF is one file unless this is given")
      ->check(integer_in(1 << 20, uint64_t{1} << 50))
      ->capture_default_str();
}

}  // namespace qw::app
