// The machine's limits as `info` and `bench` need them, and which of them bounds a model.
//
// Level 8 (app).
#pragma once

#include <string>

#include "backend/backend.h"
#include "model/model.h"

namespace qw::app {

struct MeasuredLimits {
  std::string isa;
  int threads = 0;
  double read_gb_per_second = 0;
  double int8_gop_per_second = 0, bf16_gflop_per_second = 0, f32_gflop_per_second = 0;
};

/// Measures with the threads and the ISA that `options` give; takes a few seconds.
/// Errors: cancelled.
MeasuredLimits measure_host_limits(const BackendOptions& options);

/// "int8", "bf16" or "f32": how the kernels of most of the model's weights multiply.
std::string compute_kind(const Model& model);

}  // namespace qw::app
