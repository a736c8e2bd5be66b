// The work directory of a long quantisation: every finished layer in a file of its own, and where
// to go on after an interruption.
//
// Level 6 (quantize). OUTPUT.work/: job.json (what is being done), layer-00000.safetensors ...,
// hidden.safetensors (the calibration tokens behind the last finished layer). Each file appears
// when it is whole and on the disk.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"

namespace qw::quantize {

class WorkDirectory {
 public:
  /// Makes the directory, or goes on with the one that is there. `job` is a JSON object that says
  /// all that results depend on. Errors: invalid_argument, when the directory is another job's,
  /// or none of ours; io.
  WorkDirectory(std::string path, const std::string& job);

  const std::string& path() const noexcept { return path_; }
  std::string layer_path(int layer) const;

  /// Layers that are finished: 0 .. n - 1.
  int n_finished() const noexcept { return n_finished_; }
  /// The hidden states behind the last of them, `n` floats. Errors: corrupt (another number of
  /// them), io.
  std::vector<float> read_hidden(int64_t n) const;

  struct Tensor {
    SafetensorsEntry entry;
    std::span<const std::byte> bytes;
  };
  /// Writes the next layer's tensors, then the hidden states behind it. Errors: io.
  void finish_layer(const std::vector<Tensor>& tensors, const std::vector<float>& hidden);

  /// Removes everything. Errors: io.
  void remove();

 private:
  std::string path_;
  int n_finished_ = 0;
};

}  // namespace qw::quantize
