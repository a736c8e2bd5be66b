// A network with some of its matrices in other types, beside itself: how far apart they predict.
//
// Level 6 (quantize). Layer by layer for all tokens (layer_pass.h), with keys and values in f32.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/cancel.h"
#include "base/thread_pool.h"
#include "model/network.h"
#include "quantize/calibration.h"
#include "quantize/gguf_plan.h"
#include "quantize/layer_checkpoint.h"

namespace qw::quantize {

/// A matrix in the place of a module's. `make` gives it when its layer is reached.
struct ChangedMatrix {
  ModuleId id;
  std::function<LinearSource()> make;
};

/// What a probe keeps so that it need not be made again. No bit of what is measured depends on it.
struct ProbeOptions {
  /// Of packed matrices: the output matrix where it fits, and the last layers, which are run most.
  /// The others are packed each time that they are run, from the checkpoint. That costs little
  /// beside running them: packing bf16 moves 4 bytes a weight, running 4,096 tokens takes 8,192
  /// operations. All that a 0.5B has is kept.
  int64_t packed_bytes = int64_t{1} << 30;
  /// Of hidden states before layers. Where those of all are more, those before every so many are
  /// kept and the layers between run again; a 7B with 4,096 tokens has 2.2 GB, of which every third
  /// makes one layer more on average.
  int64_t hidden_bytes = int64_t{1} << 30;
  std::function<void(int layer)> on_layer = {};  // run as published; may be empty
};

/// The network as published, ready to be run with some matrices in other types. Memory: that of
/// ProbeOptions (of hidden states two at least, 4 * tokens * hidden bytes each), one layer or the
/// output matrix, the tokens (layer_pass.h), and up to half a gigabyte of logits.
class NetworkProbe {
 public:
  /// All must outlive this. Errors: those of LayerPass and packing.
  NetworkProbe(const LayerSource& source, const CalibrationSet& calibration, Backend& backend,
               ThreadPool& pool, const CancelFlag* cancel, const ProbeOptions& options = {});
  ~NetworkProbe();
  NetworkProbe(const NetworkProbe&) = delete;
  NetworkProbe& operator=(const NetworkProbe&) = delete;

  /// Mean over predictions of sum_i p(i) log(p(i) / q(i)), in nats, where q is predicted with these
  /// tensors in the types that they have. Errors: those of LayerPass and encoding.
  double kl(const std::vector<const GgufTensor*>& changed);
  /// The same, predicted with these matrices.
  double kl(const std::vector<ChangedMatrix>& changed);
  /// The same, predicted by another checkpoint, a layer of it in memory at a time. Errors:
  /// invalid_argument (another vocabulary), those of LayerPass and packing, io.
  double kl(const LayerSource& other, const std::function<void(int layer)>& on_layer = {});

  /// Of matrices that are kept packed.
  int64_t packed_bytes() const;
  /// Predictions that count: of every so many tokens one, so that logits are few enough.
  int64_t n_predictions() const;
  static int64_t n_predictions(const ModelConfig& config, const CalibrationSet& calibration);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qw::quantize
