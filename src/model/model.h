// A Qwen2-family network ready to run: weights packed by a backend, and the forward pass.
//
// Level 5 (model). Written once, against backend/backend.h; dense and mixture-of-experts models
// differ only in the FFN. Holds no sequence state: that is the KV cache and the plan.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "base/cancel.h"
#include "base/error.h"
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
};

/// One adapter directory or GGUF file with the factor that the user gave.
struct AdapterSpec {
  std::string path;
  double scale = 1.0;
};

/// One thread at a time may use a model, and one the backend under it: both keep scratch memory.
class Model {
 public:
  /// Checks every tensor's name, shape and type against the config before packing anything.
  /// Errors: corrupt (among them a missing tensor), unsupported, out_of_memory, cancelled.
  static std::unique_ptr<Model> load(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend,
                                     const LoadOptions& options = {});
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  virtual Backend& backend() const = 0;

  /// Loads one combination of adapters (their deltas add up) and returns its id for
  /// BatchPlan::adapters. peft directories or GGUF LoRA files. Errors: corrupt, unsupported,
  /// not_found; invalid_argument when two replace the same module; each names the adapter and the
  /// module.
  virtual int32_t add_adapters(const std::vector<AdapterSpec>& adapters) = 0;

  /// How many ids add_adapters has given out: 0 .. n_adapters() - 1.
  virtual int32_t n_adapters() const = 0;

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
};

}  // namespace qw
