// Writing a model as a Hugging Face directory, for the commands that do.
//
// Level 8 (app).
#pragma once

#include <string>
#include <vector>

#include "app/command.h"
#include "model/model.h"
#include "quantize/directory_plan.h"

namespace qw::app {

struct DirectoryRequest {
  std::string model, output;
  std::string type = "bf16";          // f32, f16 or bf16
  std::vector<AdapterSpec> adapters;  // to merge
  int64_t shard_bytes = DirectoryChoices().shard_bytes;
  int threads = 0;       // 0: the machine's cores
  bool dry_run = false;  // check and say, write nothing
};

struct DirectoryReport {
  int64_t n_bytes = 0, n_tensors = 0;
  int64_t n_changed = 0;  // modules that adapters change
  MergeFigures merge;
  std::vector<std::string> warnings;
  double seconds = 0;
};

/// Writes, with progress on stderr; logs the warnings. Errors: those of opening a checkpoint,
/// AdapterMerge, plan_directory and write_directory; io where there is too little room.
DirectoryReport write_as_directory(const DirectoryRequest& request);

/// Adds --max-shard-size.
void add_shard_flag(CLI::App& app, int64_t& shard_bytes);

}  // namespace qw::app
