// Where the time of a model goes: a backend that passes every operation on to another one and notes
// how long it took, how many bytes it had to read and how many operations it had to do.
//
// Level 4 (backend). A decorator of the device seam, so that neither the model nor a device knows
// about it. Meant for devices whose operations are done when they return.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "backend/backend.h"

namespace qw {

/// What the calls of one operation of one layer added up to.
struct OpRecord {
  int64_t calls = 0;
  double seconds = 0;
  double bytes = 0;       // that must be read: weights (of a mixture's experts, those that a row
                          // of the step was routed to), keys and values; 0: only activations
  double operations = 0;  // 2 per multiply-add of products; 0: none worth counting
  std::string kernel;     // products with weights: what ran; a mixture: that of its experts
};

/// Records by (operation, layer); layer -1: the operation stands outside the layers. Linear layers
/// go by their own name without "layers.N.".
class Profile {
 public:
  using Key = std::pair<std::string, int>;
  void clear() { records_.clear(); }
  const std::map<Key, OpRecord>& records() const noexcept { return records_; }
  OpRecord& at(const std::string& operation, int layer) { return records_[{operation, layer}]; }
  /// Seconds of all records.
  double seconds() const;

 private:
  std::map<Key, OpRecord> records_;
};

/// `inner`, with every operation noted in `profile`, which must outlive the backend.
std::unique_ptr<Backend> make_profiled_backend(std::unique_ptr<Backend> inner, Profile& profile);

}  // namespace qw
