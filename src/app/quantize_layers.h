// quantize --to gptq-int4 and its like, awq or nf4: flags in, a directory out.
//
// Level 8 (app). Of cmd_quantize.cpp.
#pragma once

#include <CLI/App.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "app/calibration_input.h"
#include "app/command.h"
#include "app/quantize_budget.h"
#include "quant/bitsandbytes.h"
#include "quantize/directory_plan.h"
#include "quantize/gptq_factor.h"

namespace qw::app {

struct LayerFlags {
  quantize::GptqOptions gptq;  // group size and damp are AWQ's too
  bool true_sequential = true;
  std::string gptq_mode = "better", awq_mode = "better", awq_version = "gemm";
  std::string nf4_mode = "better";
  Nf4Options nf4;
  int64_t shard_bytes = DirectoryChoices().shard_bytes;
  CalibrationFlags calibration;
  std::vector<const CLI::Option*> of_gptq, of_awq, of_nf4, of_both;  // no meaning elsewhere
};

void add_layer_flags(CLI::App& app, LayerFlags& flags);

/// --to with a budget, which says how many bits.
constexpr std::string_view kGptqOfBudget = "gptq";

/// "gptq-int4" and so on; "awq"; "nf4". In lower case.
bool is_gptq(std::string_view to);
bool is_awq(std::string_view to);
bool is_nf4(std::string_view to);

/// Quantises, reports. `dry_run` says what would be written. Errors: those of plan_gptq, plan_awq,
/// plan_nf4, write_layers and read_calibration.
void run_layers(const CommonOptions& options, const LayerFlags& flags, std::string_view to,
                const std::string& output, bool dry_run);

/// The same for GPTQ with bits chosen for a budget. Errors: those of GptqBudget, too.
void run_gptq_budget(const CommonOptions& options, const LayerFlags& flags,
                     const BudgetFlags& budget, const std::string& output, bool dry_run);

}  // namespace qw::app
