// The one implementation of Model: dense and mixture-of-experts networks of the Qwen2 family.
//
// Level 5 (model).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "model/model.h"
#include "model/network.h"
#include "model/rope.h"
#include "model/sources.h"

namespace qw {

struct NormOverride {
  ModuleId id;
  std::unique_ptr<DeviceVector> weight;
};

/// What one combination of adapters replaces as a whole (low-rank deltas live in the layers).
struct AdapterOverrides {
  std::unique_ptr<EmbeddingWeight> embedding;  // null: the base's
  Linear lm_head;                              // weight null: the base's
  std::vector<NormOverride> norms;             // the base's where an id is missing
};

class Qwen2Model : public Model {
 public:
  Qwen2Model(std::shared_ptr<const Checkpoint> checkpoint, ModelConfig config,
             NetworkSources sources, Network network, Backend& backend);

  const ModelConfig& config() const override { return config_; }
  Backend& backend() const override { return backend_; }
  int32_t add_adapters(const std::vector<AdapterSpec>& adapters) override;
  int32_t n_adapters() const override { return static_cast<int32_t>(adapters_.size()); }
  std::unique_ptr<KvCache> make_kv(int64_t n_pages, DType type) const override;
  void forward(const BatchPlan& plan, KvCache& kv, float* logits,
               ForwardObserver* observer) override;
  int64_t weight_bytes() const override { return weight_bytes_; }
  int64_t read_bytes_per_token() const override { return read_bytes_per_token_; }
  std::vector<LayerInfo> layers() const override;

 private:
  /// Activations of one step, [T, ...]; grown when a step needs more rows, never shrunk.
  struct Activations {
    Rows x, h, y, qkv, o;
  };
  Activations activations(int64_t n_tokens);
  /// What the adapters of sequence s replace; null: nothing.
  const AdapterOverrides* overrides_of(const BatchPlan& plan, size_t s) const;
  void embed(const BatchPlan& plan, const Rows& x);
  /// x += y (unless y is empty); h = norm(x) with weight `base`, or the adapter's own.
  void add_norm(const BatchPlan& plan, const ModuleId& id, const DeviceVector& base, const Rows& y,
                const Activations& a);
  void attention(int layer, const Activations& a, KvCache& kv, ForwardObserver* observer);
  void feed_forward(int layer, const Activations& a, ForwardObserver* observer);
  void compute_logits(const BatchPlan& plan, const Rows& h, float* logits);
  void check_plan(const BatchPlan& plan, const KvCache& kv) const;
  /// Takes the backend's fault, whose rows count from row `first_row` of the plan; the first stays.
  void note_fault(int64_t first_row);
  /// Errors: NumericError, when a fault was noted in this step.
  void check_fault(int layer, std::string_view block);
  /// Errors: io, when a file that weights are read from was cut or lost since it was opened.
  void check_readable() const;

  std::shared_ptr<const Checkpoint> checkpoint_;  // keeps the sources' bytes alive
  ModelConfig config_;
  NetworkSources sources_;
  Network network_;
  Backend& backend_;
  Rope rope_;
  std::vector<AdapterOverrides> adapters_;                        // by adapter id
  std::vector<std::shared_ptr<const MappedFile>> adapter_files_;  // that overrides may read
  int64_t weight_bytes_ = 0, read_bytes_per_token_ = 0;

  std::optional<NumericFault> fault_;  // of the step under way, by the plan's rows
  int64_t capacity_ = 0;               // rows of the buffers below
  std::unique_ptr<RowsBuffer> x_, h_, y_, qkv_, o_;
  std::vector<float> cos_, sin_;
};

}  // namespace qw
