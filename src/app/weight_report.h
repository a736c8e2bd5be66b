// What a written checkpoint holds beside the quantised one that it was made of, for the commands
// that make one.
//
// Level 8 (app).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "quantize/weight_comparison.h"

namespace qw::app {

using WeightDifferences = std::vector<quantize::WeightDifference>;

/// Whether any matrix is quantised already.
bool has_quantised(const NetworkSources& sources);

/// Reads what is at `path` and compares every weight with `from`, with progress on stderr. Errors:
/// those of opening a checkpoint and of compare_weights.
WeightDifferences read_back(const std::string& path, const NetworkSources& from, ThreadPool& pool);

/// Errors: unsupported, naming the matrix that changed most, when one is further off than
/// `max_error` (relative root mean square).
void check_errors(const WeightDifferences& differences, double max_error);

/// {"exact", "weights", "changed", "relative_error", "largest_error", "tensors": [...]}; of the
/// tensors those that changed, with all of them as `total`.
nlohmann::ordered_json weights_json(const WeightDifferences& differences);

/// A line for every tensor, and for all.
std::string tensor_lines(const WeightDifferences& differences);
/// A line for each kind of quantised matrix ("q_proj"), and for all of them.
std::string class_lines(const WeightDifferences& differences);

/// A sentence, where quantised matrices changed; else "".
std::string requantised_warning(const WeightDifferences& differences);

}  // namespace qw::app
