// Which GGUF type holds each matrix of a checkpoint as it is: floats in their own, codes of GPTQ
// and AWQ in the smallest block type that has them all.
//
// Level 6 (quantize).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/thread_pool.h"
#include "model/sources.h"

namespace qw::quantize {

class KeptTypes {
 public:
  /// Reads every quantised matrix once. `blocks`: the type for what is quantised, whether it holds
  /// the codes or not; none: the smallest of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 that changes no
  /// weight, or, where none is, the one of the nearest grid. Errors: cancelled.
  KeptTypes(const NetworkSources& sources, std::optional<DType> blocks, ThreadPool& pool,
            const CancelFlag* cancel);

  /// Of a matrix as GGUF has it: experts' ids are without their index.
  DType of(const ModuleId& id) const;
  /// The type of most weights of what is quantised; none: nothing is.
  std::optional<DType> main() const;
  /// Matrices whose columns were quantised in another order (act-order), so that a block's 32 are
  /// of several groups.
  int64_t n_reordered() const noexcept { return n_reordered_; }

 private:
  struct Key {
    ModuleId id;
    bool operator<(const Key& other) const;
  };
  void add(const ModuleId& id, const std::vector<const LinearSource*>& parts,
           std::optional<DType> blocks, ThreadPool& pool, const CancelFlag* cancel);

  std::map<Key, DType> types_;
  std::map<DType, int64_t> n_weights_;
  int64_t n_reordered_ = 0;
};

}  // namespace qw::quantize
