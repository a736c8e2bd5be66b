// Adapters merged into the weights that they change.
//
// Level 6 (quantize). W' = W + sum_i [(f_i - 1) W + f_i s_i B_i A_i], what the live adapters
// compute (backend/backend.h), in f64 and rounded once; whole tensors (modules_to_save) go first.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/adapter_file.h"
#include "model/config.h"
#include "model/model.h"
#include "model/sources.h"

namespace qw {

/// Decodes rows [begin, begin + n) of a matrix [.., k]: out[r * k + i]. Thread safe.
using RowDecoder = std::function<void(int64_t begin, int64_t n, float* out)>;

class AdapterMerge {
 public:
  /// Reads and checks the adapters against the network. `config` and `sources` must outlive it.
  /// Errors: those of read_adapter; corrupt (a module that the network has not, shapes, values that
  /// are not finite);
  /// invalid_argument (a scale that is no number, two adapters that replace the same tensor).
  AdapterMerge(const ModelConfig& config, const NetworkSources& sources,
               const std::vector<AdapterSpec>& adapters);

  bool changes(const ModuleId& id) const;
  /// The rows of a module's matrix with what the adapters make of them. `base`: its source. What it
  /// returns holds the module's A matrices in f32, and for an embedding with a low-rank change the
  /// whole table. It throws corrupt where what is changed is not finite.
  RowDecoder rows(const ModuleId& id, const LinearSource& base) const;
  /// A norm that an adapter replaces; null: none does.
  const std::vector<float>* norm(const ModuleId& id) const;
  /// Whether embedding and output matrix, tied in the base, are no longer the same.
  bool unties() const;
  /// Modules that are changed.
  int64_t n_modules() const { return static_cast<int64_t>(modules_.size() + norms_.size()); }

 private:
  struct Change {
    std::optional<LinearSource> replacement;
    std::vector<std::pair<const LowRankDelta*, double>> deltas;              // with their scales
    std::vector<std::pair<const EmbeddingDelta*, double>> embedding_deltas;  // likewise
    std::string paths;  // of the adapters, for errors

    void add_path(const std::string& path) { paths += (paths.empty() ? "" : ", ") + path; }
  };
  struct ById {
    bool operator()(const ModuleId& a, const ModuleId& b) const;
  };

  void add_replacements(const AdapterFile& file);
  void add_deltas(const AdapterFile& file, double scale);
  void replace(const ModuleId& id, const std::string& path);

  const ModelConfig& config_;
  std::vector<AdapterFile> files_;
  std::map<ModuleId, const LinearSource*, ById> base_;  // of every matrix of the network
  std::map<ModuleId, Change, ById> modules_;
  std::map<ModuleId, std::vector<float>, ById> norms_;
  std::map<ModuleId, std::string, ById> replaced_by_;  // path of the adapter
};

}  // namespace qw
