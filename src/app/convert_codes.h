// convert --to gptq and --to awq: the codes of a quantised checkpoint in a directory.
//
// Level 8 (app). Of cmd_quantize.cpp.
#pragma once

#include <string>

#include "app/command.h"
#include "quantize/directory_plan.h"

namespace qw::app {

struct CodesRequest {
  std::string to;  // "gptq", "awq"
  std::string output;
  std::string version = "gemm";  // of AWQ
  bool v2 = false;               // of GPTQ
  int64_t shard_bytes = DirectoryChoices().shard_bytes;
  double max_error = 0;  // by how much a matrix may change, relative
  bool dry_run = false;
};

/// Writes, reads back, reports; the directory gets its name when it is proved. Errors: those of
/// plan_transcode, write_transcoded and check_errors.
void convert_codes(const CommonOptions& options, const CodesRequest& request);

}  // namespace qw::app
