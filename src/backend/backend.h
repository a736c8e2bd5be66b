// The device seam: about eighteen coarse, model-level operations, one virtual call each.
//
// Level 4 (backend). All that model/ and train/ may call. A backend owns memory, packing, kernel
// choice and threads; callers never name an element type, a quantised format, an ISA or a device.
// Fused operations have a default made of the simple ones, so a new device never breaks.
//
// Numeric contract: the reduction order of an output element depends on (layout, kernel, K) only,
// never on batch size, thread count or chunking; attention reduces over the KV cache in pages from
// position 0. So every equality of docs/architecture.md ("batched == alone" ...) holds bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/batch_plan.h"
#include "base/function_ref.h"
#include "quant/linear_source.h"

namespace qw {

/// Activations [rows, cols] in device memory; element type is the backend's affair. A view.
struct Rows {
  void* data = nullptr;
  int64_t rows = 0, cols = 0;
  int64_t stride = 0;  // elements between rows
  int elem_bytes = 0;

  Rows first(int64_t n) const { return {data, n, cols, stride, elem_bytes}; }
  Rows slice_rows(int64_t begin, int64_t n) const {
    return {static_cast<std::byte*>(data) + begin * stride * elem_bytes, n, cols, stride,
            elem_bytes};
  }
  Rows slice_cols(int64_t begin, int64_t n) const {
    return {static_cast<std::byte*>(data) + begin * elem_bytes, rows, n, stride, elem_bytes};
  }
};

/// Owner of activations.
class RowsBuffer {
 public:
  virtual ~RowsBuffer() = default;
  Rows view;
};

/// A packed weight W [n, k]; possibly several matrices stacked along n that share their input.
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;
  int64_t n = 0, k = 0;
  int64_t resident_bytes = 0;
  int64_t read_bytes = 0;  // bytes that one application must read, for the bench's bandwidth
  std::string kernel;      // chosen kernels, for `info`: "q4_k_16/avx512vnni"
};

/// An embedding table [vocab, hidden].
class EmbeddingWeight {
 public:
  virtual ~EmbeddingWeight() = default;
  int64_t vocab = 0, hidden = 0;
  int64_t resident_bytes = 0;
};

/// A vector of floats in device memory (norm weights, biases, row factors).
class DeviceVector {
 public:
  virtual ~DeviceVector() = default;
  int64_t size = 0;
};

/// A low-rank addition to rows [out_begin, out_begin + b->n) of a linear layer's output, for the
/// sequences whose BatchPlan::adapters entry equals `adapter`:
///   LoRA   y += scale * B (A x)
///   DoRA   y += (f - 1) * (W x) + f * scale * B (A x),  f = row_factor = m / ||W + scale B A||_row
/// (bias excluded from W x). A [r, k], B [n_part, r]. Source: peft.
struct LoraDelta {
  int32_t adapter = 0;
  int64_t out_begin = 0;
  float scale = 1.0f;
  std::unique_ptr<LinearWeight> a, b;
  std::unique_ptr<DeviceVector> row_factor;  // null: plain LoRA
};

/// A linear layer as the model sees it: y = W x + bias (+ deltas).
struct Linear {
  std::string name;  // "layers.3.qkv", for messages and profiles
  std::unique_ptr<LinearWeight> weight;
  std::unique_ptr<DeviceVector> bias;  // null: none
  std::vector<LoraDelta> deltas;
};

/// What to do with the result of a linear layer besides its bias.
struct Epilogue {
  bool accumulate = false;  // y += instead of y =
};

struct MoeWeights {
  Linear router;                       // [n_experts, hidden]
  std::vector<Linear> gate_up;         // per expert [2 * inter, hidden]: gate rows, then up rows
  std::vector<Linear> down;            // per expert [hidden, inter]
  Linear shared_gate_up, shared_down;  // weight null: no shared expert
  Linear shared_gate;                  // [1, hidden]; y += sigmoid(x . w) * shared(x)
  int top_k = 0;
  bool norm_topk_prob = false;  // divide the kept weights by their sum
};

struct KvSpec {
  int n_layers = 0, n_kv_heads = 0, head_dim = 0;
  int64_t n_pages = 0;
  DType type = DType::kF16;  // f32, f16, bf16, q8_0, q4_0
};

/// The paged KV cache of all layers.
class KvCache {
 public:
  virtual ~KvCache() = default;
  KvSpec spec;
  int page_tokens = 0;
  int64_t resident_bytes = 0;
  /// Copies the first n_tokens of page `from` to page `to`, all layers (copy on write).
  virtual void copy_page(int32_t from, int32_t to, int n_tokens) = 0;

  /// A page's bytes in all layers, so that it can leave the machine's memory and come back: in a
  /// cache of the same layout_name() they mean the same. read_page() copies them to `out`, of
  /// page_bytes() bytes (what lies behind the page's last token is unspecified), write_page() from
  /// `in`.
  virtual int64_t page_bytes() const = 0;
  virtual void read_page(int32_t page, std::span<std::byte> out) const = 0;
  virtual void write_page(int32_t page, std::span<const std::byte> in) = 0;
  /// All that decides what the bytes mean: element type, sizes, the order of the parts and its
  /// version.
  virtual std::string layout_name() const = 0;
};

struct AttentionSpec {
  int n_heads = 0, n_kv_heads = 0, head_dim = 0;
  float scale = 1.0f;
  int64_t window = 0;  // key j visible to query i when i - window < j <= i; 0: every j <= i
};

/// A value that is not finite, found while computing; the model names layer and place.
struct NumericFault {
  int64_t row = 0;
  std::string what;  // "input of rms norm", "attention scores", ...
};

/// How linear layers round their input. kAuto: the fastest that stays inside the documented
/// accuracy.
enum class ActivationMode { kAuto, kInt8, kBf16, kF32 };

/// "auto", "int8", "bf16", "f32". Errors: invalid_argument.
ActivationMode activation_mode_from_name(std::string_view name);
std::string_view name_of(ActivationMode mode);

class Profile;

struct BackendOptions {
  static constexpr int kMaxThreads = 1024;
  int n_threads = 0;  // 0: physical cores; at most kMaxThreads
  std::string isa;    // "": the best this CPU has (or QIANWEN_ISA); else a cap
  ActivationMode activations = ActivationMode::kAuto;
  std::string packed_cache;    // directory for packed weights, "": none (backend/packed_store.h)
  bool deterministic = false;  // refuse kernels that break the numeric contract
  Profile* profile = nullptr;  // where to note every operation (backend/profile.h); null: nowhere

  /// Errors: invalid_argument, naming the option. Every backend begins with this.
  void check() const;
};

/// Sizes of the largest step, for Backend::working_bytes.
struct StepSizes {
  int64_t rows = 0;                              // tokens
  int64_t columns = 0;                           // widest input of a linear layer
  int64_t n_experts = 0, experts_per_token = 0;  // mixture of experts, and the widest input of one
  int64_t expert_columns = 0;
  int64_t hidden = 0, vocab = 0;
  int64_t logit_rows = 0;
  int64_t n_heads = 0, head_dim = 0;
  int64_t ctx = 0;  // longest sequence
};

/// One thread at a time may call a backend, which then uses its own: it keeps scratch memory, and
/// the state of the step under way.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;  // "cpu", "reference"
  virtual int n_threads() const = 0;

  // ---- memory and packing (load time) -------------------------------------------------------
  virtual std::unique_ptr<RowsBuffer> allocate(int64_t rows, int64_t cols) = 0;
  /// Packs matrices with equal k, stacked along n, into one weight. Errors: unsupported,
  /// corrupt (NaN or infinity in scales), out_of_memory.
  virtual std::unique_ptr<LinearWeight> pack_linear(std::span<const LinearSource> parts) = 0;
  virtual std::unique_ptr<EmbeddingWeight> pack_embedding(const LinearSource& source) = 0;
  /// Bytes that `source` will take once packed, for the memory plan. Default: as published.
  virtual int64_t packed_bytes(const LinearSource& source) const {
    return source.published_bytes();
  }
  /// Bytes that `source` will take as an embedding table; 0: its rows are read from the file where
  /// they lie. Default: as a linear weight.
  virtual int64_t embedding_bytes(const LinearSource& source) const { return packed_bytes(source); }
  /// Scratch that a step of these sizes takes besides its activations (the memory plan). Default:
  /// the logits and their inputs before they are downloaded.
  virtual int64_t working_bytes(const StepSizes& step) const {
    return step.logit_rows * (step.hidden + step.vocab) * int64_t{sizeof(float)};
  }
  virtual std::unique_ptr<DeviceVector> upload(std::span<const float> values) = 0;
  /// A backend that packs for this one: its weights, tables and vectors can be used in this one's
  /// steps, with the same bits as if this one had packed them. Another thread may use it while this
  /// one computes, and is not in its way: they share nothing that changes. Any thread.
  virtual std::unique_ptr<Backend> make_packer() const = 0;
  virtual std::unique_ptr<KvCache> make_kv(const KvSpec& spec) = 0;
  virtual int kv_page_tokens() const = 0;
  /// Bytes that a cache of this spec takes, without making it (the memory plan).
  virtual int64_t kv_bytes(const KvSpec& spec) const = 0;
  virtual void download(const Rows& rows, float* out) const = 0;  // dense [rows, cols]
  virtual void upload_rows(const float* in, const Rows& rows) const = 0;

  // ---- one step -----------------------------------------------------------------------------
  /// Starts a step. rope_cos, rope_sin: [T, head_dim / 2] on the host, attention factor included.
  /// All must stay alive until the next begin_step.
  virtual void begin_step(const BatchPlan& plan, std::span<const float> rope_cos,
                          std::span<const float> rope_sin) = 0;
  /// x[t] = table[tokens[t]] for t in [begin, end): rows of the plan, and of x.
  virtual void embed(const EmbeddingWeight& table, int64_t begin, int64_t end, const Rows& x) = 0;
  /// x += y (unless y.data is null); h = x / sqrt(mean(x^2) + eps) * w. f32 throughout.
  virtual void add_rms_norm(const Rows& y, const Rows& x, const DeviceVector& w, float eps,
                            const Rows& h) = 0;
  /// y = x W^T + bias + deltas.  x [T, k], y [T, n]. Rows of x are rows of the plan: row r of x
  /// belongs to plan row rows_of_plan[r] (empty: r), which decides the adapter.
  virtual void linear(const Rows& x, const Linear& layer, const Rows& y, Epilogue epilogue = {},
                      std::span<const int32_t> rows_of_plan = {}) = 0;
  /// qkv [T, (nh + 2 nkv) * hd]: rotates q and k in place (half-split pairs i, i + hd/2), then
  /// writes k and v to the cache at the plan's slots.
  virtual void rope_store_kv(const Rows& qkv, KvCache& kv, int layer,
                             const AttentionSpec& spec) = 0;
  /// o [T, nh * hd] = softmax(scale * q k^T + causal mask) v over the cached positions.
  virtual void paged_attention(const Rows& qkv, const KvCache& kv, int layer,
                               const AttentionSpec& spec, const Rows& o) = 0;
  /// a[:, 0:inter] = silu(gate) * up, with gate = a[:, 0:inter], up = a[:, inter:2 inter].
  virtual void silu_mul(const Rows& gate_up) = 0;
  /// [T, inter] = silu(gate h) * (up h), in memory that lasts until the next call; gate_up holds
  /// the gate rows, then as many up rows. rows_of_plan as in linear. Default: linear, silu_mul.
  virtual Rows gated_linear(const Rows& h, const Linear& gate_up,
                            std::span<const int32_t> rows_of_plan = {});
  /// y = down(silu(gate h) * (up h)). Default: gated_linear, linear.
  virtual void ffn(const Rows& h, const Linear& gate_up, const Linear& down, const Rows& y);
  /// Mixture of experts (Qwen2Moe): softmax over all experts, top_k, experts batched by rows,
  /// plus the gated shared expert. router_logits: null, or [T, n_experts] on the host.
  virtual void moe_ffn(const Rows& h, const MoeWeights& moe, const Rows& y,
                       float* router_logits) = 0;
  /// out [rows.size(), n] on the host = h[rows] W^T.
  virtual void logits(const Rows& h, std::span<const int32_t> rows, const Linear& lm_head,
                      float* out);
  /// body(i) for i in [0, n), in any order, on whatever threads the backend has: work of the host
  /// between two steps. body must not throw. Default: one after the other.
  virtual void run_on_host(int64_t n, FunctionRef<void(int64_t)> body) {
    for (int64_t i = 0; i < n; ++i)
      body(i);
  }
  /// Waits until all that was asked for is done, a step or packing a model, and warns of what
  /// packing met. Errors: io, when weights in a file of the packed cache could not be read.
  virtual void sync() {}

  /// The first non-finite value seen since the last call, if any; clears it.
  virtual std::optional<NumericFault> take_fault() = 0;

  /// What bits of results depend on besides program, weights and steps: instruction set and modes.
  virtual std::string numerics() const { return std::string(name()); }

  /// What it chose and why, one line per distinct (format, kernel): for `info`.
  virtual std::vector<std::string> describe() const { return {}; }

 protected:
  std::unique_ptr<RowsBuffer> gated_scratch_, logits_scratch_;  // of the defaults
};

std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options);
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);
/// "cpu", "reference". Errors: unsupported, naming what this build has.
std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options);

}  // namespace qw
