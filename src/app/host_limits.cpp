#include "app/host_limits.h"

#include <algorithm>
#include <array>

#include "app/command.h"
#include "base/thread_pool.h"
#include "kernels/isa.h"

namespace qw::app {

HostProbe::HostProbe(const BackendOptions& options)
    : isa_(kernels::choose_isa(options.isa)),
      pool_(options.n_threads > 0 ? options.n_threads : physical_cores()),
      probe_(isa_, pool_, &interrupted()),
      at_start_{probe_.at_start(), std::string(kernels::name_of(isa_.level)), pool_.size()} {}

MeasuredLimits HostProbe::now(std::span<const ComputeUnit> units) {
  return {probe_.now(units), at_start_.isa, at_start_.threads};
}

ComputeUnit compute_unit(const std::string& kernel) {
  if (kernel.find("(int8)") != std::string::npos) return ComputeUnit::kInt8;
  return kernel.find("(bf16)") != std::string::npos ? ComputeUnit::kBf16 : ComputeUnit::kF32;
}

ComputeUnit compute_unit(const Model& model) {
  std::array<int64_t, kComputeUnits.size()> weights{};  // of each unit
  for (const Model::LayerInfo& layer : model.layers())
    weights[static_cast<size_t>(compute_unit(layer.kernel))] += layer.n * layer.k;
  return kComputeUnits[static_cast<size_t>(std::max_element(weights.begin(), weights.end()) -
                                           weights.begin())];
}

}  // namespace qw::app
