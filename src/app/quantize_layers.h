// quantize --to gptq-int4 and its like: flags in, a directory out.
//
// Level 8 (app). Of cmd_quantize.cpp.
#pragma once

#include <CLI/App.hpp>
#include <string_view>
#include <vector>

#include "app/calibration_input.h"
#include "app/command.h"
#include "quantize/directory_plan.h"
#include "quantize/gptq_factor.h"

namespace qw::app {

struct GptqFlags {
  quantize::GptqOptions gptq;
  bool true_sequential = true;
  std::string mode = "better";
  int64_t shard_bytes = DirectoryChoices().shard_bytes;
  CalibrationFlags calibration;
  std::vector<const CLI::Option*> added;  // which have a meaning for GPTQ alone
};

void add_gptq_flags(CLI::App& app, GptqFlags& flags);

/// "gptq-int4" and so on, in any case.
bool is_gptq(std::string_view to);

/// Quantises, reports. `dry_run` says what would be written. Errors: those of quantise_gptq.
void run_gptq(const CommonOptions& options, const GptqFlags& flags, std::string_view to,
              const std::string& output, bool dry_run);

}  // namespace qw::app
