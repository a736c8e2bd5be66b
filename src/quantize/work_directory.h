// The work directory of a long quantisation: every finished layer in a file of its own, and where
// to go on after an interruption.
//
// Level 6 (quantize). OUTPUT.work/: job.json (what is being done), layer-00000.safetensors ...,
// hidden.safetensors (the calibration tokens behind the last finished layer), lock (held while a
// run uses the directory). Each file appears when it is whole and on the disk.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "checkpoint/safetensors.h"

namespace qw::quantize {

class WorkDirectory {
 public:
  /// Makes the directory, or goes on with the one that is there. `job` is a JSON object that says
  /// all that results depend on; a directory of another job is taken over when nothing in it is
  /// finished. `component` is named in errors. Errors: invalid_argument, when the directory is
  /// another job's, none of ours, or another run uses it; io. What is there then stays as it is.
  WorkDirectory(std::string path, const std::string& job, std::string component = "quantize");

  const std::string& path() const noexcept { return path_; }
  std::string layer_path(int layer) const;
  std::string file(const std::string& name) const;

  /// Layers that are finished: 0 .. n - 1.
  int n_finished() const noexcept { return n_finished_; }
  /// The hidden states behind the last of them, `n` floats. Errors: corrupt (another number of
  /// them), io.
  std::vector<float> read_hidden(int64_t n) const;

  struct Tensor {
    SafetensorsEntry entry;
    std::span<const std::byte> bytes;
  };
  /// Of a job without layers: what note() was last told of; 0: nothing.
  int64_t n_noted() const noexcept { return n_noted_; }
  /// So much is finished. Errors: io.
  void note(int64_t n);

  /// Writes the next layer's tensors, then the hidden states behind it. Errors: io.
  void finish_layer(const std::vector<Tensor>& tensors, const std::vector<float>& hidden);

  /// Of an interrupted run, whose work stays. Throws cancelled.
  [[noreturn]] void fail_interrupted() const;

  /// Removes everything. Errors: io.
  void remove();

 private:
  void check_ours() const;
  void take_lock();
  void go_on();
  [[noreturn]] void fail_io(const char* action, const std::string& reason) const;

  std::string path_, component_;
  std::optional<Descriptor> lock_;
  int n_finished_ = 0;
  int64_t n_noted_ = 0;
};

}  // namespace qw::quantize
