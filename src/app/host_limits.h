// The machine's limits as `info` and `bench` need them, and which of them bounds a model.
//
// Level 8 (app).
#pragma once

#include <span>
#include <string>

#include "backend/backend.h"
#include "backend/cpu_limits.h"
#include "model/model.h"

namespace qw::app {

struct MeasuredLimits : HostLimits {
  std::string isa;
  int threads = 0;
};

/// Measures with the threads and the ISA that `options` give.
class HostProbe {
 public:
  /// Measures: takes about a second. Errors: out_of_memory, cancelled.
  explicit HostProbe(const BackendOptions& options);
  const MeasuredLimits& at_start() const noexcept { return at_start_; }
  /// As they are now: LimitProbe::now.
  MeasuredLimits now(std::span<const ComputeUnit> units);

 private:
  kernels::Isa isa_;
  ThreadPool pool_;  // its threads sleep while nothing is measured
  LimitProbe probe_;
  MeasuredLimits at_start_;
};

/// The unit that a kernel of this name multiplies with; f32 where there is no kernel.
ComputeUnit compute_unit(const std::string& kernel);
/// That of most of the model's weights.
ComputeUnit compute_unit(const Model& model);

}  // namespace qw::app
