// Which GGUF type holds each matrix of a checkpoint as it is: floats in their own, codes of GPTQ
// and AWQ in the smallest block type that has them all.
//
// Level 6 (quantize). For GgufChoices::types.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "base/cancel.h"
#include "base/thread_pool.h"
#include "model/sources.h"

namespace qw::quantize {

struct KeptTypes {
  std::map<std::string, DType> of;                  // of every matrix, by its name in GGUF
  std::map<DType, int64_t> n_weights, n_quantised;  // of all; of those that are quantised
  /// Matrices whose columns were quantised in another order (act-order), so that a block's 32 are
  /// of several groups.
  int64_t n_reordered = 0;
};

/// Reads every quantised matrix once. `blocks`: the type for what is quantised, whether it holds
/// the codes or not; none: the smallest of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 that changes no weight,
/// or, where none is, the one of the nearest grid; of nf4 and fp4, whose levels are no grid, the
/// type of their values. Errors: cancelled.
KeptTypes find_kept_types(const NetworkSources& sources, std::optional<DType> blocks,
                          ThreadPool& pool, const CancelFlag* cancel);

}  // namespace qw::quantize
