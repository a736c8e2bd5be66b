// The CPU backend: f32 activations, packed weights, all operations on all threads.
//
// Level 4 (backend), private to the CPU backend: callers use make_cpu_backend. Linear layers are
// cpu_linear, attention is cpu_attention, mixture of experts cpu_moe, low-rank additions cpu_lora.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/bad_row.h"
#include "backend/cpu_attention.h"
#include "backend/cpu_linear.h"
#include "backend/cpu_memory.h"
#include "kernels/elementwise.h"

namespace qw {

/// A buffer that grows to the largest size asked for and is kept from call to call.
class CpuScratch {
 public:
  /// [rows, cols]; what it held before is lost.
  Rows rows(int64_t rows, int64_t cols);

 private:
  std::unique_ptr<CpuRows> buffer_;
};

/// The call of a plain product that takes rows of x to rows of y.
inline CpuLinearCall product_of(const Rows& x, const Rows& y) {
  return {row_of(x, 0), x.stride, x.rows, row_of(y, 0), y.stride};
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options);

  std::string_view name() const override { return "cpu"; }
  int n_threads() const override { return context_.pool.size(); }

  std::unique_ptr<RowsBuffer> allocate(int64_t rows, int64_t cols) override;
  std::unique_ptr<LinearWeight> pack_linear(std::span<const LinearSource> parts) override;
  std::unique_ptr<EmbeddingWeight> pack_embedding(const LinearSource& source) override;
  int64_t embedding_bytes(const LinearSource& /*source*/) const override { return 0; }
  int64_t working_bytes(const StepSizes& step) const override;
  std::unique_ptr<DeviceVector> upload(std::span<const float> values) override;
  std::unique_ptr<Backend> make_packer() const override;
  std::unique_ptr<KvCache> make_kv(const KvSpec& spec) override;
  int kv_page_tokens() const override { return kernels::kKvPageTokens; }
  int64_t kv_bytes(const KvSpec& spec) const override { return CpuKv::bytes(spec); }
  void download(const Rows& rows, float* out) const override;
  void upload_rows(const float* in, const Rows& rows) const override;

  void begin_step(const BatchPlan& plan, std::span<const float> rope_cos,
                  std::span<const float> rope_sin) override;
  void embed(const EmbeddingWeight& table, int64_t begin, int64_t end, const Rows& x) override;
  void add_rms_norm(const Rows& y, const Rows& x, const DeviceVector& w, float eps,
                    const Rows& h) override;
  void linear(const Rows& x, const Linear& layer, const Rows& y, Epilogue epilogue = {},
              std::span<const int32_t> rows_of_plan = {}) override;
  void rope_store_kv(const Rows& qkv, KvCache& kv, int layer, const AttentionSpec& spec) override;
  void paged_attention(const Rows& qkv, const KvCache& kv, int layer, const AttentionSpec& spec,
                       const Rows& o) override;
  void silu_mul(const Rows& gate_up) override;
  Rows gated_linear(const Rows& h, const Linear& gate_up,
                    std::span<const int32_t> rows_of_plan) override;
  void moe_ffn(const Rows& h, const MoeWeights& moe, const Rows& y, float* router_logits) override;
  void logits(const Rows& h, std::span<const int32_t> rows, const Linear& lm_head,
              float* out) override;
  void run_on_host(int64_t n, FunctionRef<void(int64_t)> body) override {
    context_.pool.parallel_for(n, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        body(i);
    });
  }
  void sync() override {
    if (context_.store == nullptr) return;
    context_.store->report();
    context_.store->check_readable();
  }

  std::optional<NumericFault> take_fault() override { return std::exchange(fault_, std::nullopt); }
  std::string numerics() const override;
  std::vector<std::string> describe() const override;

 private:
  /// One expert's share of a step: rows of h, and the factor of each.
  struct ExpertRows {
    std::vector<int32_t> rows;
    std::vector<float> factors;
  };

  /// Remembers the first fault; row -1 is none.
  void note_fault(int64_t row, std::string_view what) {
    if (row >= 0 && !fault_) fault_ = NumericFault{row, std::string(what)};
  }
  const BatchPlan& plan() const;
  /// body(begin, end) for chunks of rows, big enough to be worth a thread.
  void for_rows(int64_t n_rows, int64_t cols, FunctionRef<void(int64_t, int64_t)> body);
  static void check_attention(const Rows& qkv, const KvCache& kv, const AttentionSpec& spec,
                              const BatchPlan& plan);

  // cpu_lora.cpp
  void add_deltas(const Rows& x, const Linear& layer, const Rows& y,
                  std::span<const int32_t> rows_of_plan);
  void add_delta(const Rows& x, const LoraDelta& delta, std::span<const int32_t> rows,
                 const Rows& base, const Rows& y);

  // cpu_moe.cpp
  std::vector<ExpertRows> route(const MoeWeights& moe, const Rows& scores);
  void add_expert(const Rows& h, const Linear& gate_up, const Linear& down, const ExpertRows& share,
                  const Rows& y);
  struct ExpertBatch;
  Rows gate_experts(const Rows& in, const MoeWeights& moe, const ExpertBatch& batch);
  void sum_experts(const Rows& h, const MoeWeights& moe, const std::vector<ExpertRows>& shares,
                   const Rows& y);
  void add_shared_expert(const Rows& h, const MoeWeights& moe, const Rows& y);
  /// out row i = in row rows[i].
  void gather(const Rows& in, std::span<const int32_t> rows, const Rows& out);

  static constexpr std::string_view kGatedActivation = "gated activation";  // of a fault

  const BackendOptions options_;
  CpuContext context_;
  const kernels::ElementwiseOps& ops_;
  CpuAttention attention_;
  const BatchPlan* plan_ = nullptr;
  std::span<const float> rope_cos_, rope_sin_;
  std::vector<int32_t> adapter_of_row_;  // empty: no sequence of this step has one
  std::vector<int32_t> step_adapters_;   // ids of this step's sequences, each once
  std::optional<NumericFault> fault_;
  std::map<std::string, std::string> kernels_used_;  // format -> kernel, for describe()
  CpuScratch gated_, delta_in_, delta_rank_, delta_out_, delta_base_;
  CpuScratch expert_in_, expert_out_, router_scores_, head_in_;
};

}  // namespace qw
