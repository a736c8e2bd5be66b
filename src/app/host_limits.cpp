#include "app/host_limits.h"

#include <algorithm>
#include <array>

#include "app/command.h"
#include "backend/cpu_limits.h"
#include "base/thread_pool.h"
#include "kernels/isa.h"

namespace qw::app {

MeasuredLimits measure_host_limits(const BackendOptions& options) {
  const kernels::Isa isa = kernels::choose_isa(options.isa);
  MeasuredLimits limits;
  limits.isa = std::string(kernels::name_of(isa.level));
  limits.threads = options.n_threads > 0 ? options.n_threads : physical_cores();
  ThreadPool pool(limits.threads);
  const HostLimits host = measure_limits(isa, pool, &interrupted());
  limits.read_gb_per_second = host.read_gb_per_second;
  limits.int8_gop_per_second = host.int8_gop_per_second;
  limits.bf16_gflop_per_second = host.bf16_gflop_per_second;
  limits.f32_gflop_per_second = host.f32_gflop_per_second;
  return limits;
}

std::string compute_kind(const Model& model) {
  static constexpr std::array<const char*, 3> kKinds = {"int8", "bf16", "f32"};
  std::array<int64_t, 3> weights{};
  for (const Model::LayerInfo& layer : model.layers()) {
    size_t kind = 2;
    if (layer.kernel.find("(bf16)") != std::string::npos) kind = 1;
    if (layer.kernel.find("(int8)") != std::string::npos) kind = 0;
    weights[kind] += layer.n * layer.k;
  }
  return kKinds[static_cast<size_t>(std::max_element(weights.begin(), weights.end()) -
                                    weights.begin())];
}

}  // namespace qw::app
