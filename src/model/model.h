// A Qwen2-family network ready to run: weights packed by a backend, and the forward pass.
//
// Level 5 (model). Written once, against backend/backend.h; dense and mixture-of-experts models
// differ only in the FFN. Holds no sequence state: that is the KV cache and the plan.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/cancel.h"
#include "base/error.h"
#include "base/keyed_hash.h"
#include "checkpoint/checkpoint.h"
#include "model/config.h"

namespace qw {

/// Sees intermediate values of a forward pass; null by default. Names follow the goldens:
/// "hidden.embed", "hidden.layer.N", "hidden.norm", "layerN.input_layernorm",
/// "layerN.post_attention_layernorm", "layerN.q_rope", ".k_rope", ".v", ".attn_context",
/// ".attn_output", ".mlp_output", ".router_logits", ".moe_output".
class ForwardObserver {
 public:
  virtual ~ForwardObserver() = default;
  /// Whether the value is wanted (reading it back costs time).
  virtual bool wants(std::string_view name) = 0;
  virtual void on_value(std::string_view name, int64_t rows, int64_t cols, const float* values) = 0;
};

/// A value of a forward pass is NaN or infinite. One row is at fault: without its sequence the same
/// plan can be computed.
class NumericError : public Error {
 public:
  NumericError(const std::string& message, int64_t row)
      : Error(ErrorKind::kCorrupt, message), row_(row) {}
  /// The row of the plan in which it was seen first.
  int64_t row() const noexcept { return row_; }

 private:
  int64_t row_;
};

struct LoadOptions {
  bool quiet = false;  // no progress on stderr
  const CancelFlag* cancel = nullptr;
  std::function<void(std::string)> on_warning;  // null: logged
  /// For Model::content_name(). Computed while loading, since files may change later; none: it
  /// costs nothing.
  std::vector<std::shared_ptr<const KeyedHash>> content_hashes;
};

/// One adapter directory or GGUF file with the factor that the user gave.
struct AdapterSpec {
  std::string path;
  double scale = 1.0;
};

/// A combination of adapters that was read, checked and packed for one model, and is not, or no
/// longer, in it.
class StagedAdapter {
 public:
  virtual ~StagedAdapter() = default;
  int64_t resident_bytes = 0;
};

struct StageOptions {
  /// Refuse what would take more; nullopt: no limit.
  std::optional<int64_t> limit_bytes;
  const CancelFlag* cancel = nullptr;
};

class Model;

/// While it lives, an adapter stays in its model, even one that is removed. Of the model's thread.
class AdapterUse {
 public:
  AdapterUse() = default;  // of none
  AdapterUse(AdapterUse&& other) noexcept
      : model_(std::exchange(other.model_, nullptr)), id_(other.id_) {}
  AdapterUse& operator=(AdapterUse&& other) noexcept {
    std::swap(model_, other.model_);
    std::swap(id_, other.id_);
    return *this;
  }
  ~AdapterUse();

 private:
  friend class Model;
  AdapterUse(Model& model, int32_t id) : model_(&model), id_(id) {}
  Model* model_ = nullptr;
  int32_t id_ = -1;
};

/// One thread at a time may use a model, and one the backend under it: both keep scratch memory.
/// stage_adapters alone may run on others meanwhile.
class Model {
 public:
  /// Checks every tensor's name, shape and type against the config before packing anything.
  /// Errors: corrupt (among them a missing tensor), unsupported, out_of_memory, cancelled.
  static std::unique_ptr<Model> load(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend,
                                     const LoadOptions& options = {});
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  virtual Backend& backend() const = 0;

  // Adapters come in two parts, so that loading one keeps no step waiting: all that takes time is
  // done by stage_adapters, on whatever thread; install_adapter and remove_adapter are for the
  // model's own, between two steps, and move pointers. An id is given once and never again: what
  // was computed with it (kept pages of a KV cache) stays true.

  /// Reads, checks and packs one combination of adapters (their deltas add up): peft directories
  /// or GGUF LoRA files. Any thread, while others stage and the model's own computes. Errors:
  /// corrupt, unsupported, not_found; invalid_argument when two replace the same module; each names
  /// the adapter and the module; out_of_memory, with the numbers; cancelled.
  virtual std::unique_ptr<StagedAdapter> stage_adapters(const std::vector<AdapterSpec>& adapters,
                                                        const StageOptions& options = {}) = 0;
  /// Puts it into the model that staged it; returns its id for BatchPlan::adapters.
  int32_t install_adapter(std::unique_ptr<StagedAdapter> staged);
  int32_t add_adapters(const std::vector<AdapterSpec>& adapters) {
    return install_adapter(stage_adapters(adapters));
  }
  /// Keeps it until the use ends; -1: none. Errors: invalid_argument, for an id that was never
  /// given, or whose adapter was removed.
  AdapterUse use_adapter(int32_t id);
  /// Gets what was removed, to free it on another thread, say.
  using OnRemoved = std::function<void(std::unique_ptr<StagedAdapter>)>;
  /// From now on nobody can begin to use it. It goes, and `on_removed` is called, when the last use
  /// has ended: now, if there is none. Errors: as use_adapter.
  void remove_adapter(int32_t id, OnRemoved on_removed = {});
  /// Installed, removed ones in use included, and the bytes that they take.
  int64_t n_adapters() const { return std::ssize(adapters_); }
  int64_t adapter_bytes() const;

  /// A hash of all bytes that decide what the model computes: weights and configuration as they
  /// were when they were loaded, or those of an adapter, with its scale. By
  /// LoadOptions::content_hashes[which]; "": not known.
  virtual std::string content_name(int32_t /*adapter*/, size_t /*which*/) const { return ""; }

  virtual std::unique_ptr<KvCache> make_kv(int64_t n_pages, DType type) const = 0;

  /// One step: logits [plan.logit_rows.size(), vocab] to `logits` (host; null: none wanted).
  /// Ids must be in [0, vocab), slots in the cache. Errors: internal when the plan is inconsistent;
  /// NumericError, naming the layer, when a hidden state is not finite (the logits are the caller's
  /// to check, row by row: one broken row does not spoil the others); io when a file of weights was
  /// cut or lost since it was opened. After an error the logits and the plan's slots hold nothing
  /// of use.
  virtual void forward(const BatchPlan& plan, KvCache& kv, float* logits,
                       ForwardObserver* observer = nullptr) = 0;

  /// Resident bytes of packed weights, and bytes that decoding one token must read
  /// (weights but the embedding table; active experts only).
  virtual int64_t weight_bytes() const = 0;
  virtual int64_t read_bytes_per_token() const = 0;
  /// Name, shape, format and kernel of every packed linear layer, for `info`.
  struct LayerInfo {
    std::string name, format, kernel;
    int64_t n, k, resident_bytes;
  };
  virtual std::vector<LayerInfo> layers() const = 0;

 protected:
  /// Makes a combination that this model staged part of the forward pass, under an id; nothing may
  /// fail but memory, which leaves no trace. `staged` stays alive until take_adapter.
  virtual void put_adapter(int32_t id, StagedAdapter& staged) = 0;
  /// The reverse: nothing of the forward pass refers to it any more.
  virtual void take_adapter(int32_t id, StagedAdapter& staged) noexcept = 0;

 private:
  friend class AdapterUse;
  struct Installed {
    std::unique_ptr<StagedAdapter> staged;
    int64_t n_uses = 0;
    bool is_removed = false;
    OnRemoved on_removed;
  };
  Installed& installed(int32_t id);
  void end_use(int32_t id) noexcept;
  void take_out(int32_t id);

  std::map<int32_t, Installed> adapters_;  // by id
  int32_t next_adapter_ = 0;
};

}  // namespace qw
