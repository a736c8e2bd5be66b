// merge --type same: adapters into a checkpoint in its own format, and what became of them.
//
// Level 8 (app). Of cmd_merge.cpp.
#pragma once

#include <cstdint>
#include <string>

#include "app/calibration_input.h"
#include "app/command.h"

namespace qw::app {

struct OwnFormatFlags {
  std::string output;
  CalibrationFlags calibration;
  double damp = 0.01;
  int64_t shard_bytes = 0;
  bool is_split = false;  // a GGUF file has a limit, too
  std::string file;       // compare on this text; "": the calibration's
  bool compares = true;
  bool dry_run = false;
};

/// Merges, reports, compares with the live adapters. Errors: those of AdapterMerge,
/// plan_own_format, write_own_format and compare_on_text.
void merge_in_own_format(const CommonOptions& options, const OwnFormatFlags& flags);

}  // namespace qw::app
