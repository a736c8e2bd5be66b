// How much each input of a matrix matters: the mean square of what it is given, as llama-imatrix
// collects it and as its files hold it.
//
// Level 6 (quantize). Names are those of GGUF ("blk.0.attn_q.weight"). Source of the formats:
// llama.cpp's imatrix.cpp (August 2026), restated; a .gguf file, or the older .dat.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/cancel.h"
#include "base/mapped_file.h"
#include "model/sources.h"
#include "quantize/calibration.h"
#include "quantize/layer_checkpoint.h"

namespace qw::quantize {

struct ImportanceEntry {
  std::vector<float> sums;    // of squares, [n_matrices, k]: experts are stacked
  std::vector<float> counts;  // [n_matrices], in tokens; of a .dat one, in chunks
};

struct ImportanceMatrix {
  std::map<std::string, ImportanceEntry> entries;  // by tensor
  std::vector<std::string> datasets;
  int64_t n_chunks = 0, chunk_tokens = 0;
  std::string file;  // that it was read from

  /// Mean squares of the inputs of matrix `index` of `n_matrices` [.., k] in `tensor`; all 1 when
  /// it got no tokens, empty when there is no entry. Errors: invalid_argument, when there is one of
  /// another size.
  std::vector<float> weights(const std::string& tensor, int64_t index, int64_t n_matrices,
                             int64_t k) const;
};

/// Either format, by its first bytes. Errors: not_found, io, corrupt (truncated, sizes that do not
/// go together, values that are not finite or negative).
ImportanceMatrix read_importance(const std::string& path);
ImportanceMatrix read_importance(const std::shared_ptr<const MappedFile>& file);

/// As .dat when the path ends so, else as .gguf; appears when it is whole. Errors: io.
void write_importance(const ImportanceMatrix& matrix, const std::string& path);

/// Runs the sequences through the network as published, a layer in memory at a time. Of tied
/// networks the inputs of the output matrix are kept under the embedding's name, under which it is
/// quantised. `on_layer(index)` may be empty. Errors: those of LayerPass.
ImportanceMatrix collect_importance(const LayerSource& source, const CalibrationSet& calibration,
                                    Backend& backend, const CancelFlag* cancel,
                                    const std::function<void(int)>& on_layer);

/// What the work directory of the following takes on the disk, at most.
int64_t importance_work_bytes(const ModelConfig& config, const NetworkSources& sources,
                              const CalibrationSet& calibration);

/// The same, resumable: an interruption leaves the work directory of `request`, and the same
/// request goes on with the next layer, to the same numbers. on_layer gets no modules; nothing is
/// written. With keeps_work the caller removes the directory. Errors: as for write_layers.
ImportanceMatrix resume_importance(const LayerSource& source, const CalibrationSet& calibration,
                                   Backend& backend, ThreadPool& pool, const LayerRequest& request);

/// The same, and written to request.output (write_importance) with `datasets`. Errors: as for
/// write_layers and write_importance.
ImportanceMatrix make_importance(const LayerSource& source, const CalibrationSet& calibration,
                                 Backend& backend, ThreadPool& pool, const LayerRequest& request,
                                 std::vector<std::string> datasets);

}  // namespace qw::quantize
