// The one implementation of Model: dense and mixture-of-experts networks of the Qwen2 family.
//
// Level 5 (model).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/layer.h"
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

/// A combination of adapters. Installed, its deltas are in the layers.
struct Qwen2Adapter : StagedAdapter {
  const Model* model = nullptr;  // that staged it
  AdapterOverrides overrides;
  struct Delta {
    Linear* layer = nullptr;  // of the model, or overrides.lm_head
    LoraDelta delta;
  };
  std::vector<Delta> deltas;
  std::map<Linear*, size_t> n_deltas;                    // of each layer
  std::vector<std::shared_ptr<const MappedFile>> files;  // that overrides may read
  std::vector<std::string> content_names;                // Model::content_name, by hash
};

class Qwen2Model : public Model {
 public:
  Qwen2Model(std::shared_ptr<const Checkpoint> checkpoint, ModelConfig config,
             NetworkSources sources, Network network, Backend& backend, const LoadOptions& options);

  const ModelConfig& config() const override { return config_; }
  Backend& backend() const override { return backend_; }
  std::unique_ptr<StagedAdapter> stage_adapters(const std::vector<AdapterSpec>& adapters,
                                                const StageOptions& options) override;
  std::string content_name(int32_t adapter, size_t which) const override;
  std::unique_ptr<KvCache> make_kv(int64_t n_pages, DType type) const override;
  void forward(const BatchPlan& plan, KvCache& kv, float* logits,
               ForwardObserver* observer) override;
  int64_t weight_bytes() const override { return weight_bytes_; }
  int64_t read_bytes_per_token() const override { return read_bytes_per_token_; }
  std::vector<LayerInfo> layers() const override;

 protected:
  void put_adapter(int32_t id, StagedAdapter& staged) override;
  void take_adapter(int32_t id, StagedAdapter& staged) noexcept override;

 private:
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
  void check_fault(const BatchPlan& plan, int layer, std::string_view block);
  /// Errors: io, when a file that weights of a step are read from was cut or lost since it was
  /// opened.
  void check_readable(const BatchPlan& plan) const;
  std::vector<std::string> name_content(std::span<const KeyedHash::Bytes> parts,
                                        Backend& backend) const;

  std::shared_ptr<const Checkpoint> checkpoint_;  // keeps the sources' bytes alive
  ModelConfig config_;
  NetworkSources sources_;
  Network network_;
  Backend& backend_;
  Rope rope_;
  std::unordered_map<int32_t, const Qwen2Adapter*> installed_;  // by id
  std::vector<std::shared_ptr<const KeyedHash>> content_hashes_;
  std::vector<std::string> content_names_;  // of the base, by hash
  int64_t weight_bytes_ = 0, read_bytes_per_token_ = 0;

  std::optional<NumericFault> fault_;  // of the step under way, by the plan's rows
  ActivationBuffers buffers_;
  std::vector<float> cos_, sin_;
};

}  // namespace qw
