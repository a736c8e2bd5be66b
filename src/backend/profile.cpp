#include "backend/profile.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <string_view>
#include <vector>

namespace qw {

double Profile::seconds() const {
  double total = 0;
  for (const auto& [key, record] : records_)
    total += record.seconds;
  return total;
}

namespace {

/// "layers.12.qkv" is ("qkv", 12); a name without a layer is (name, -1).
Profile::Key key_of(std::string_view name) {
  constexpr std::string_view kPrefix = "layers.";
  if (name.substr(0, kPrefix.size()) != kPrefix) return {std::string(name), -1};
  const std::string_view rest = name.substr(kPrefix.size());
  int layer = -1;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
  const auto digits = static_cast<size_t>(end - rest.data());
  if (error != std::errc() || digits == rest.size()) return {std::string(name), -1};
  return {std::string(rest.substr(digits + 1)), layer};
}

double product_operations(int64_t rows, const LinearWeight& weight) {
  return 2.0 * static_cast<double>(rows) * static_cast<double>(weight.n) *
         static_cast<double>(weight.k);
}

/// Which experts have a row of a step: the top_k of some row's logits, of equal ones the first.
std::vector<bool> experts_taken(const float* logits, int64_t rows, const MoeWeights& moe) {
  const int64_t n_experts = moe.router.weight->n;
  std::vector<bool> taken(static_cast<size_t>(n_experts), false);
  std::vector<int32_t> order(static_cast<size_t>(n_experts));
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = logits + r * n_experts;
    const auto value = [row](int32_t e) {  // of a step that is lost: no order among NaN
      return std::isnan(row[e]) ? -std::numeric_limits<float>::infinity() : row[e];
    };
    std::iota(order.begin(), order.end(), 0);
    const auto end = order.begin() + moe.top_k;
    std::partial_sort(order.begin(), end, order.end(), [&](int32_t a, int32_t b) {
      return value(a) > value(b) || (value(a) == value(b) && a < b);
    });
    std::for_each(order.begin(), end, [&](int32_t e) { taken[static_cast<size_t>(e)] = true; });
  }
  return taken;
}

class ProfiledBackend final : public Backend {
 public:
  ProfiledBackend(std::unique_ptr<Backend> inner, Profile& profile)
      : inner_(std::move(inner)), profile_(profile) {}

  std::string_view name() const override { return inner_->name(); }
  int n_threads() const override { return inner_->n_threads(); }

  // ---- memory and packing: passed on ------------------------------------------------------------
  std::unique_ptr<RowsBuffer> allocate(int64_t rows, int64_t cols) override {
    return inner_->allocate(rows, cols);
  }
  std::unique_ptr<LinearWeight> pack_linear(std::span<const LinearSource> parts) override {
    return inner_->pack_linear(parts);
  }
  std::unique_ptr<EmbeddingWeight> pack_embedding(const LinearSource& source) override {
    return inner_->pack_embedding(source);
  }
  int64_t packed_bytes(const LinearSource& source) const override {
    return inner_->packed_bytes(source);
  }
  int64_t embedding_bytes(const LinearSource& source) const override {
    return inner_->embedding_bytes(source);
  }
  int64_t working_bytes(const StepSizes& step) const override {
    return inner_->working_bytes(step);
  }
  std::unique_ptr<DeviceVector> upload(std::span<const float> values) override {
    return inner_->upload(values);
  }
  std::unique_ptr<Backend> make_packer() const override { return inner_->make_packer(); }
  std::unique_ptr<KvCache> make_kv(const KvSpec& spec) override { return inner_->make_kv(spec); }
  int kv_page_tokens() const override { return inner_->kv_page_tokens(); }
  int64_t kv_bytes(const KvSpec& spec) const override { return inner_->kv_bytes(spec); }
  void download(const Rows& rows, float* out) const override { inner_->download(rows, out); }
  void upload_rows(const float* in, const Rows& rows) const override {
    inner_->upload_rows(in, rows);
  }
  std::optional<NumericFault> take_fault() override { return inner_->take_fault(); }
  std::string numerics() const override { return inner_->numerics(); }
  std::vector<std::string> describe() const override { return inner_->describe(); }

  // ---- one step: noted --------------------------------------------------------------------------
  // ffn is not passed on: its default calls the noted operations, which says more than their sum.
  // gated_linear is: a device may have one kernel for it.

  void begin_step(const BatchPlan& plan, std::span<const float> rope_cos,
                  std::span<const float> rope_sin) override {
    plan_ = &plan;
    noted({"begin_step", -1}, [&] { inner_->begin_step(plan, rope_cos, rope_sin); });
  }
  void embed(const EmbeddingWeight& table, int64_t begin, int64_t end, const Rows& x) override {
    noted({"embed", -1}, [&] { inner_->embed(table, begin, end, x); });
  }
  void add_rms_norm(const Rows& y, const Rows& x, const DeviceVector& w, float eps,
                    const Rows& h) override {
    noted({"add_rms_norm", -1}, [&] { inner_->add_rms_norm(y, x, w, eps, h); });
  }
  void linear(const Rows& x, const Linear& layer, const Rows& y, Epilogue epilogue,
              std::span<const int32_t> rows_of_plan) override {
    product(layer, x.rows, [&] { inner_->linear(x, layer, y, epilogue, rows_of_plan); });
  }
  void rope_store_kv(const Rows& qkv, KvCache& kv, int layer, const AttentionSpec& spec) override {
    noted({"rope_store_kv", layer}, [&] { inner_->rope_store_kv(qkv, kv, layer, spec); });
  }
  void paged_attention(const Rows& qkv, const KvCache& kv, int layer, const AttentionSpec& spec,
                       const Rows& o) override {
    OpRecord& record = noted({"paged_attention", layer},
                             [&] { inner_->paged_attention(qkv, kv, layer, spec, o); });
    const double page_bytes = static_cast<double>(kv.resident_bytes) /
                              (static_cast<double>(kv.spec.n_pages) * kv.spec.n_layers);
    for (const int32_t context : plan_->seq_context)
      record.bytes += page_bytes * context / kv.page_tokens;
    for (const int32_t position : plan_->positions) {
      const int64_t seen =
          spec.window > 0 ? std::min<int64_t>(position + 1, spec.window) : int64_t{position} + 1;
      record.operations += 4.0 * spec.n_heads * spec.head_dim * static_cast<double>(seen);
    }
  }
  Rows gated_linear(const Rows& h, const Linear& gate_up,
                    std::span<const int32_t> rows_of_plan) override {
    Rows out;
    product(gate_up, h.rows, [&] { out = inner_->gated_linear(h, gate_up, rows_of_plan); });
    return out;
  }
  void silu_mul(const Rows& gate_up) override {
    noted({"silu_mul", -1}, [&] { inner_->silu_mul(gate_up); });
  }
  void moe_ffn(const Rows& h, const MoeWeights& moe, const Rows& y, float* router_logits) override {
    router_logits_.resize(static_cast<size_t>(h.rows * moe.router.weight->n));
    float* const logits = router_logits != nullptr ? router_logits : router_logits_.data();
    OpRecord& record = noted({"moe_ffn", key_of(moe.router.name).second},
                             [&] { inner_->moe_ffn(h, moe, y, logits); });
    const auto read = [&](const Linear& layer) {
      record.bytes += static_cast<double>(layer.weight->read_bytes);
    };
    const auto multiplied = [&](const Linear& layer, int64_t rows) {
      record.operations += product_operations(rows, *layer.weight);
    };
    const std::vector<bool> taken = experts_taken(logits, h.rows, moe);
    for (size_t e = 0; e < taken.size(); ++e) {
      if (!taken[e]) continue;
      read(moe.gate_up[e]);
      read(moe.down[e]);
    }
    multiplied(moe.gate_up.front(), h.rows * moe.top_k);
    multiplied(moe.down.front(), h.rows * moe.top_k);
    for (const Linear* layer :
         {&moe.router, &moe.shared_gate, &moe.shared_gate_up, &moe.shared_down}) {
      if (layer->weight == nullptr) continue;  // no shared expert
      read(*layer);
      multiplied(*layer, h.rows);
    }
    // That of the experts, which do nearly all of it: what the router and the gate of the shared
    // expert multiply is a few rows.
    record.kernel = moe.gate_up.front().weight->kernel;
    const std::string& down = moe.down.front().weight->kernel;
    if (record.kernel.find(down) == std::string::npos) record.kernel += " + " + down;
  }
  void logits(const Rows& h, std::span<const int32_t> rows, const Linear& lm_head,
              float* out) override {
    product(lm_head, static_cast<int64_t>(rows.size()),
            [&] { inner_->logits(h, rows, lm_head, out); });
  }
  void run_on_host(int64_t n, FunctionRef<void(int64_t)> body) override {
    inner_->run_on_host(n, body);
  }
  void sync() override { inner_->sync(); }

 private:
  template <class Call>
  OpRecord& noted(const Profile::Key& key, const Call& call) {
    const auto start = std::chrono::steady_clock::now();
    call();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    OpRecord& record = profile_.at(key.first, key.second);
    ++record.calls;
    record.seconds += taken.count();
    return record;
  }

  template <class Call>
  void product(const Linear& layer, int64_t rows, const Call& call) {
    OpRecord& record = noted(key_of(layer.name), call);
    record.bytes += static_cast<double>(layer.weight->read_bytes);
    record.operations += product_operations(rows, *layer.weight);
    record.kernel = layer.weight->kernel;
  }

  std::unique_ptr<Backend> inner_;
  Profile& profile_;
  std::vector<float> router_logits_;
  const BatchPlan* plan_ = nullptr;
};

}  // namespace

std::unique_ptr<Backend> make_profiled_backend(std::unique_ptr<Backend> inner, Profile& profile) {
  return std::make_unique<ProfiledBackend>(std::move(inner), profile);
}

}  // namespace qw
