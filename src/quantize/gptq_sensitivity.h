// How much worse a network predicts for each number of bits that GPTQ gives its matrices: what a
// budget of bytes is shared out by.
//
// Level 6 (quantize). The layers are quantised once with the same bits for all, and of each group
// of matrices that share their inputs (q, k, v; o; gate, up; down), whose bits must be the same,
//   error(b)  = sum over its matrices of trace((W - Q_b) H (W - Q_b)^T) / trace(W diag(H) W^T)
//               from some of the rows, each quantised with b bits by GPTQ itself
//   damage(b) = KL measured with the group's matrices of the probe bits * error(b) / error(probe)
// Errors of experts count with the tokens that reach them, as parts of all of their layer.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "quantize/gptq_checkpoint.h"
#include "quantize/network_probe.h"
#include "quantize/work_directory.h"

namespace qw::quantize {

struct GptqGroupChoice {
  int bits = 4;
  int64_t bytes = 0;  // of all matrices, in a file
  double error = 0;   // relative, of the outputs
  double damage = 0;  // predicted share of the mean KL divergence, in nats
};

/// Matrices that share their inputs, and so their bits.
struct GptqGroup {
  std::string name;  // "layers.3.qkv"
  std::vector<ModuleId> modules;
  int64_t n_weights = 0;
  std::vector<GptqGroupChoice> choices;  // 2, 3, 4, 8 bits
};

struct GptqSensitivityOptions {
  int probe_bits = 4;
  /// The most groups that are measured by themselves; those of one kind in layers next to each
  /// other share one measurement, and so do the experts of a layer.
  int64_t max_probes = 96;
  /// Where what is measured of each band of layers is kept, with what is given behind it, so that
  /// an interrupted run goes on with the next band, to the same bits; null: nowhere. Its job says
  /// all that the numbers depend on.
  WorkDirectory* work = nullptr;
  /// A layer is done, or was (in `work`).
  std::function<void(int layer, bool is_known)> on_layer;
};

/// All groups in the order of the network. `request` says how to quantise; its bits do not matter.
/// `probe()` is asked for when it is needed. Memory beside the probe's: that of write_gptq, and the
/// codes (a byte a weight) of the layers that share a measurement: of n, n / 24 of a dense network,
/// rounded up. Errors: those of gptq_layer and NetworkProbe; io, corrupt (of the work directory);
/// cancelled.
std::vector<GptqGroup> measure_gptq(const LayerSource& source, const CalibrationSet& calibration,
                                    const std::function<NetworkProbe&()>& probe, Backend& backend,
                                    ThreadPool& pool, const GptqRequest& request,
                                    const GptqSensitivityOptions& options);

/// Bits for each group: the commonest (by matrices) as request.gptq.bits, the others by module.
/// chosen[i] is an index of groups[i].choices.
void set_bits(GptqRequest& request, const std::vector<GptqGroup>& groups,
              const std::vector<size_t>& chosen);

}  // namespace qw::quantize
