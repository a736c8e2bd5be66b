// The reference backend: every operation as its formula says, one thread, f32 values, f64 sums.
//
// Level 4 (backend). The yardstick that every fast backend is tested against, so clarity comes
// first: weights are decoded to f32 once, the cache holds f32 (other cache types are emulated by
// rounding what is stored).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "backend/backend.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/half.h"
#include "base/log.h"
#include "quant/ggml_blocks.h"

namespace qw {

namespace {

constexpr int kPageTokens = 16;

class HostRows : public RowsBuffer {
 public:
  HostRows(int64_t rows, int64_t cols)
      : values_(static_cast<size_t>(checked_mul(rows, cols, "activations"))) {
    view = {values_.data(), rows, cols, cols, sizeof(float)};
  }

 private:
  std::vector<float> values_;
};

float* row_of(const Rows& rows, int64_t r) {
  return static_cast<float*>(rows.data) + r * rows.stride;
}

/// A decoded matrix [n, k].
class HostLinear : public LinearWeight {
 public:
  std::vector<float> values;
};

class HostEmbedding : public EmbeddingWeight {
 public:
  std::vector<float> values;
};

class HostVector : public DeviceVector {
 public:
  std::vector<float> values;
};

const std::vector<float>& values_of(const LinearWeight& weight) {
  return static_cast<const HostLinear&>(weight).values;
}
const std::vector<float>& values_of(const DeviceVector& vector) {
  return static_cast<const HostVector&>(vector).values;
}

/// Decodes `source` and refuses values that are not finite.
void decode_checked(const LinearSource& source, float* out) {
  source.decode_rows(0, source.n, out);
  for (int64_t i = 0; i < source.n * source.k; ++i) {
    if (!std::isfinite(out[i])) {
      fail(ErrorKind::kCorrupt, "backend",
           "{}: expected finite weights, got {} (row {}, column {})", printable(source.name),
           out[i], i / source.k, i % source.k);
    }
  }
}

/// sum_i a[i] * b[i] in f64: eight partial sums, so that the compiler may use vectors.
double dot(const float* a, const float* b, int64_t n) {
  double partial[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j)
      partial[j] += static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
  }
  double sum = std::accumulate(partial, partial + 8, 0.0);
  for (; i < n; ++i)
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

float silu(float x) {
  return x / (1.0f + std::exp(-x));
}

/// Keys and values in f32, [layer][slot][n_kv_heads * head_dim].
class HostKv : public KvCache {
 public:
  explicit HostKv(const KvSpec& kv_spec) {
    spec = kv_spec;
    page_tokens = kPageTokens;
    width_ = int64_t{spec.n_kv_heads} * spec.head_dim;
    slots_ = checked_mul<int64_t>(spec.n_pages, kPageTokens, "KV cache");
    const auto size = static_cast<size_t>(
        checked_mul(checked_mul<int64_t>(spec.n_layers, slots_, "KV cache"), width_, "KV cache"));
    keys_.resize(size);
    values_.resize(size);
    resident_bytes = static_cast<int64_t>(2 * size * sizeof(float));
  }

  float* key(int layer, int64_t slot) { return keys_.data() + (layer * slots_ + slot) * width_; }
  float* value(int layer, int64_t slot) {
    return values_.data() + (layer * slots_ + slot) * width_;
  }
  const float* key(int layer, int64_t slot) const {
    return keys_.data() + (layer * slots_ + slot) * width_;
  }
  const float* value(int layer, int64_t slot) const {
    return values_.data() + (layer * slots_ + slot) * width_;
  }

  void copy_page(int32_t from, int32_t to, int n_tokens) override {
    for (int layer = 0; layer < spec.n_layers; ++layer) {
      std::copy_n(key(layer, int64_t{from} * kPageTokens), n_tokens * width_,
                  key(layer, int64_t{to} * kPageTokens));
      std::copy_n(value(layer, int64_t{from} * kPageTokens), n_tokens * width_,
                  value(layer, int64_t{to} * kPageTokens));
    }
  }

  /// [layer][keys, values][slot][width]
  int64_t page_bytes() const override { return 2 * spec.n_layers * part_bytes(); }
  void read_page(int32_t page, std::span<std::byte> out) const override {
    QW_CHECK(page >= 0 && page < spec.n_pages && std::ssize(out) == page_bytes());
    const auto size = static_cast<size_t>(part_bytes());
    for (int layer = 0; layer < spec.n_layers; ++layer, out = out.subspan(2 * size)) {
      std::memcpy(out.data(), key(layer, int64_t{page} * kPageTokens), size);
      std::memcpy(out.data() + size, value(layer, int64_t{page} * kPageTokens), size);
    }
  }
  void write_page(int32_t page, std::span<const std::byte> in) override {
    QW_CHECK(page >= 0 && page < spec.n_pages && std::ssize(in) == page_bytes());
    const auto size = static_cast<size_t>(part_bytes());
    for (int layer = 0; layer < spec.n_layers; ++layer, in = in.subspan(2 * size)) {
      std::memcpy(key(layer, int64_t{page} * kPageTokens), in.data(), size);
      std::memcpy(value(layer, int64_t{page} * kPageTokens), in.data() + size, size);
    }
  }
  std::string layout_name() const override {
    return fmt::format("reference 1: {} layers, {} heads of {}, {}, {} tokens", spec.n_layers,
                       spec.n_kv_heads, spec.head_dim, name_of(spec.type), kPageTokens);
  }

  /// Stores one token's vector as the cache's type would keep it.
  void store(const float* in, float* out) const {
    switch (spec.type) {
      case DType::kF32:
        std::copy_n(in, width_, out);
        return;
      case DType::kF16:
        std::transform(in, in + width_, out, [](float x) { return f16_to_f32(f32_to_f16(x)); });
        return;
      case DType::kBF16:
        std::transform(in, in + width_, out, [](float x) { return bf16_to_f32(f32_to_bf16(x)); });
        return;
      default:
        std::vector<std::byte> bytes(
            static_cast<size_t>(row_bytes(spec.type, spec.head_dim, "KV head")));
        for (int64_t head = 0; head < spec.n_kv_heads; ++head) {
          encode_row(spec.type, in + head * spec.head_dim, spec.head_dim, bytes.data());
          decode_row(spec.type, bytes.data(), spec.head_dim, out + head * spec.head_dim);
        }
    }
  }

 private:
  int64_t part_bytes() const { return kPageTokens * width_ * int64_t{sizeof(float)}; }

  int64_t width_ = 0, slots_ = 0;
  std::vector<float> keys_, values_;
};

class ReferenceBackend : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  int n_threads() const override { return 1; }

  // ---- memory and packing -------------------------------------------------------------------
  std::unique_ptr<RowsBuffer> allocate(int64_t rows, int64_t cols) override {
    return std::make_unique<HostRows>(rows, cols);
  }
  std::unique_ptr<LinearWeight> pack_linear(std::span<const LinearSource> parts) override;
  std::unique_ptr<EmbeddingWeight> pack_embedding(const LinearSource& source) override;
  int64_t packed_bytes(const LinearSource& source) const override {
    return checked_mul<int64_t>(checked_mul(source.n, source.k, "weight"), sizeof(float), "weight");
  }
  std::unique_ptr<DeviceVector> upload(std::span<const float> values) override;
  std::unique_ptr<Backend> make_packer() const override {
    return std::make_unique<ReferenceBackend>();
  }
  std::unique_ptr<KvCache> make_kv(const KvSpec& spec) override {
    check_kv(spec);
    return std::make_unique<HostKv>(spec);
  }
  int kv_page_tokens() const override { return kPageTokens; }
  int64_t kv_bytes(const KvSpec& spec) const override {
    check_kv(spec);
    const int64_t row = int64_t{2} * spec.n_layers * spec.n_kv_heads * spec.head_dim * 4;
    return checked_mul(checked_mul<int64_t>(row, kPageTokens, "KV cache"), spec.n_pages,
                       "KV cache");
  }
  void download(const Rows& rows, float* out) const override {
    for (int64_t r = 0; r < rows.rows; ++r)
      std::copy_n(row_of(rows, r), rows.cols, out + r * rows.cols);
  }
  void upload_rows(const float* in, const Rows& rows) const override {
    for (int64_t r = 0; r < rows.rows; ++r)
      std::copy_n(in + r * rows.cols, rows.cols, row_of(rows, r));
  }

  // ---- one step -----------------------------------------------------------------------------
  void begin_step(const BatchPlan& plan, std::span<const float> rope_cos,
                  std::span<const float> rope_sin) override;
  void embed(const EmbeddingWeight& table, int64_t begin, int64_t end, const Rows& x) override;
  void add_rms_norm(const Rows& y, const Rows& x, const DeviceVector& w, float eps,
                    const Rows& h) override;
  void linear(const Rows& x, const Linear& layer, const Rows& y, Epilogue epilogue,
              std::span<const int32_t> rows_of_plan) override;
  void rope_store_kv(const Rows& qkv, KvCache& kv, int layer, const AttentionSpec& spec) override;
  void paged_attention(const Rows& qkv, const KvCache& kv, int layer, const AttentionSpec& spec,
                       const Rows& o) override;
  void silu_mul(const Rows& gate_up) override;
  void moe_ffn(const Rows& h, const MoeWeights& moe, const Rows& y, float* router_logits) override;

  std::optional<NumericFault> take_fault() override { return std::exchange(fault_, std::nullopt); }
  std::vector<std::string> describe() const override {
    return {"reference: f32 weights, f64 sums, one thread"};
  }

 private:
  static void check_kv(const KvSpec& spec);
  void note_fault(int64_t row, std::string_view what) {
    if (!fault_) fault_ = NumericFault{row, std::string(what)};
  }
  int32_t adapter_of_row(int64_t plan_row) const {
    return plan_->adapters.empty()
               ? -1
               : plan_->adapters[static_cast<size_t>(seq_of_row_[static_cast<size_t>(plan_row)])];
  }
  void add_delta(const LoraDelta& delta, const float* x, std::span<double> y) const;
  void add_expert(const Rows& h, const Linear& gate_up, const Linear& down,
                  std::span<const int32_t> rows, std::span<const float> factors, const Rows& y);

  const BatchPlan* plan_ = nullptr;
  std::span<const float> cos_, sin_;
  std::vector<int32_t> seq_of_row_;
  std::optional<NumericFault> fault_;
};

std::unique_ptr<LinearWeight> ReferenceBackend::pack_linear(std::span<const LinearSource> parts) {
  QW_CHECK(!parts.empty());
  auto weight = std::make_unique<HostLinear>();
  weight->k = parts.front().k;
  for (const LinearSource& part : parts) {
    QW_CHECK(part.k == weight->k, "{}: {} columns beside {}", part.name, part.k, weight->k);
    weight->n += part.n;
  }
  weight->values.resize(static_cast<size_t>(checked_mul(weight->n, weight->k, "weight")));
  float* out = weight->values.data();
  for (const LinearSource& part : parts) {
    decode_checked(part, out);
    out += part.n * part.k;
  }
  weight->resident_bytes = weight->read_bytes =
      static_cast<int64_t>(weight->values.size() * sizeof(float));
  weight->kernel = "f32/reference";
  return weight;
}

std::unique_ptr<EmbeddingWeight> ReferenceBackend::pack_embedding(const LinearSource& source) {
  auto table = std::make_unique<HostEmbedding>();
  table->vocab = source.n;
  table->hidden = source.k;
  table->values.resize(static_cast<size_t>(checked_mul(source.n, source.k, "embedding")));
  decode_checked(source, table->values.data());
  table->resident_bytes = static_cast<int64_t>(table->values.size() * sizeof(float));
  return table;
}

std::unique_ptr<DeviceVector> ReferenceBackend::upload(std::span<const float> values) {
  auto vector = std::make_unique<HostVector>();
  vector->size = static_cast<int64_t>(values.size());
  vector->values.assign(values.begin(), values.end());
  return vector;
}

void ReferenceBackend::check_kv(const KvSpec& spec) {
  const bool blocks = spec.type == DType::kQ8_0 || spec.type == DType::kQ4_0;
  if (!blocks && spec.type != DType::kF32 && spec.type != DType::kF16 &&
      spec.type != DType::kBF16) {
    fail(ErrorKind::kUnsupported, "backend",
         "KV cache type: expected f32, f16, bf16, q8_0 or q4_0, got {}", name_of(spec.type));
  }
  if (blocks && spec.head_dim % info(spec.type).block_elems != 0) {
    fail(ErrorKind::kUnsupported, "backend",
         "KV cache type {}: expected a head size that is a multiple of {}, got {}",
         name_of(spec.type), info(spec.type).block_elems, spec.head_dim);
  }
}

void ReferenceBackend::begin_step(const BatchPlan& plan, std::span<const float> rope_cos,
                                  std::span<const float> rope_sin) {
  check_plan(plan);
  plan_ = &plan;
  cos_ = rope_cos;
  sin_ = rope_sin;
  seq_of_row_.assign(plan.tokens.size(), 0);
  for (size_t s = 0; s + 1 < plan.seq_begin.size(); ++s) {
    std::fill(seq_of_row_.begin() + plan.seq_begin[s], seq_of_row_.begin() + plan.seq_begin[s + 1],
              static_cast<int32_t>(s));
  }
}

void ReferenceBackend::embed(const EmbeddingWeight& table, int64_t begin, int64_t end,
                             const Rows& x) {
  QW_CHECK(plan_ != nullptr, "an operation before begin_step");
  const float* values = static_cast<const HostEmbedding&>(table).values.data();
  for (int64_t t = begin; t < end; ++t) {
    const int64_t token = plan_->tokens[static_cast<size_t>(t)];
    QW_CHECK(token >= 0 && token < table.vocab, "token {} of {}", token, table.vocab);
    std::copy_n(values + token * table.hidden, table.hidden, row_of(x, t));
  }
}

void ReferenceBackend::add_rms_norm(const Rows& y, const Rows& x, const DeviceVector& w, float eps,
                                    const Rows& h) {
  const float* weight = values_of(w).data();
  for (int64_t r = 0; r < x.rows; ++r) {
    float* row = row_of(x, r);
    if (y.data != nullptr) {
      const float* addend = row_of(y, r);
      for (int64_t i = 0; i < x.cols; ++i)
        row[i] += addend[i];
    }
    const double mean_square = dot(row, row, x.cols) / static_cast<double>(x.cols);
    if (!std::isfinite(mean_square)) note_fault(r, "input of rms norm");
    const auto scale = static_cast<float>(1.0 / std::sqrt(mean_square + static_cast<double>(eps)));
    for (int64_t i = 0; i < x.cols; ++i)
      row_of(h, r)[i] = row[i] * scale * weight[i];
  }
}

void ReferenceBackend::add_delta(const LoraDelta& delta, const float* x,
                                 std::span<double> y) const {
  const int64_t rank = delta.a->n, k = delta.a->k;
  std::vector<float> t(static_cast<size_t>(rank));
  for (int64_t i = 0; i < rank; ++i)
    t[static_cast<size_t>(i)] = static_cast<float>(dot(x, values_of(*delta.a).data() + i * k, k));
  for (int64_t o = 0; o < delta.b->n; ++o) {
    const double addend = static_cast<double>(delta.scale) *
                          dot(t.data(), values_of(*delta.b).data() + o * rank, rank);
    double& out = y[static_cast<size_t>(delta.out_begin + o)];
    if (delta.row_factor == nullptr) {
      out += addend;
    } else {  // `out` is W x as yet: one DoRA delta per row (see LoraDelta)
      out = static_cast<double>(values_of(*delta.row_factor)[static_cast<size_t>(o)]) *
            (out + addend);
    }
  }
}

void ReferenceBackend::linear(const Rows& x, const Linear& layer, const Rows& y, Epilogue epilogue,
                              std::span<const int32_t> rows_of_plan) {
  const LinearWeight& weight = *layer.weight;
  QW_CHECK(x.cols == weight.k && y.cols == weight.n && x.rows == y.rows, "{}: [{}, {}] -> [{}, {}]",
           layer.name, x.rows, x.cols, y.rows, y.cols);
  std::vector<double> product(static_cast<size_t>(weight.n)), plain;
  for (int64_t r = 0; r < x.rows; ++r) {
    const float* in = row_of(x, r);
    for (int64_t o = 0; o < weight.n; ++o)
      product[static_cast<size_t>(o)] = dot(in, values_of(weight).data() + o * weight.k, weight.k);
    const int64_t plan_row = rows_of_plan.empty() ? r : rows_of_plan[static_cast<size_t>(r)];
    if (!layer.deltas.empty()) {
      // Each delta starts from W x, so that several of them add up.
      const int32_t adapter = adapter_of_row(plan_row);
      const std::vector<double> base = product;
      for (const LoraDelta& delta : layer.deltas) {
        if (delta.adapter != adapter) continue;
        plain = base;
        add_delta(delta, in, plain);
        for (size_t o = 0; o < product.size(); ++o)
          product[o] += plain[o] - base[o];
      }
    }
    float* out = row_of(y, r);
    for (int64_t o = 0; o < weight.n; ++o) {
      double value = product[static_cast<size_t>(o)];
      if (layer.bias != nullptr)
        value += static_cast<double>(values_of(*layer.bias)[static_cast<size_t>(o)]);
      if (epilogue.accumulate) value += static_cast<double>(out[o]);
      out[o] = static_cast<float>(value);
    }
  }
}

void ReferenceBackend::rope_store_kv(const Rows& qkv, KvCache& kv, int layer,
                                     const AttentionSpec& spec) {
  auto& cache = static_cast<HostKv&>(kv);
  const int64_t half = spec.head_dim / 2;
  for (int64_t t = 0; t < qkv.rows; ++t) {
    const float* cos = cos_.data() + t * half;
    const float* sin = sin_.data() + t * half;
    float* row = row_of(qkv, t);
    for (int64_t head = 0; head < spec.n_heads + spec.n_kv_heads; ++head) {
      float* first = row + head * spec.head_dim;
      float* second = first + half;
      for (int64_t i = 0; i < half; ++i) {
        const float a = first[i], b = second[i];
        first[i] = a * cos[i] - b * sin[i];
        second[i] = b * cos[i] + a * sin[i];
      }
    }
    const int64_t slot = plan_->slots[static_cast<size_t>(t)];
    const float* key = row + int64_t{spec.n_heads} * spec.head_dim;
    cache.store(key, cache.key(layer, slot));
    cache.store(key + int64_t{spec.n_kv_heads} * spec.head_dim, cache.value(layer, slot));
  }
}

void ReferenceBackend::paged_attention(const Rows& qkv, const KvCache& kv, int layer,
                                       const AttentionSpec& spec, const Rows& o) {
  const auto& cache = static_cast<const HostKv&>(kv);
  const int64_t hd = spec.head_dim, group = spec.n_heads / spec.n_kv_heads;
  std::vector<double> weights, sum(static_cast<size_t>(hd));
  for (int64_t t = 0; t < qkv.rows; ++t) {
    const auto row = static_cast<size_t>(t);
    const auto seq = static_cast<size_t>(seq_of_row_[row]);
    const int64_t position = plan_->positions[row];
    const int64_t first = spec.window > 0 ? std::max<int64_t>(0, position - spec.window + 1) : 0;
    const int32_t* pages = plan_->pages.data() + plan_->page_begin[seq];
    const auto slot_of = [&](int64_t j) {
      return int64_t{pages[j / kPageTokens]} * kPageTokens + j % kPageTokens;
    };
    for (int64_t head = 0; head < spec.n_heads; ++head) {
      const float* q = row_of(qkv, t) + head * hd;
      const int64_t kv_offset = head / group * hd;
      weights.resize(static_cast<size_t>(position - first + 1));
      double largest = -std::numeric_limits<double>::infinity();
      bool finite = true;
      for (int64_t j = first; j <= position; ++j) {
        const double score =
            dot(q, cache.key(layer, slot_of(j)) + kv_offset, hd) * static_cast<double>(spec.scale);
        weights[static_cast<size_t>(j - first)] = score;
        largest = std::max(largest, score);
        finite = finite && std::isfinite(score);
      }
      if (!finite) note_fault(t, "attention scores");
      double total = 0;
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t j = first; j <= position; ++j) {
        const double weight = std::exp(weights[static_cast<size_t>(j - first)] - largest);
        const float* v = cache.value(layer, slot_of(j)) + kv_offset;
        total += weight;
        for (int64_t i = 0; i < hd; ++i)
          sum[static_cast<size_t>(i)] += weight * static_cast<double>(v[i]);
      }
      for (int64_t i = 0; i < hd; ++i)
        row_of(o, t)[head * hd + i] = static_cast<float>(sum[static_cast<size_t>(i)] / total);
    }
  }
}

void ReferenceBackend::silu_mul(const Rows& gate_up) {
  const int64_t inter = gate_up.cols / 2;
  for (int64_t r = 0; r < gate_up.rows; ++r) {
    float* row = row_of(gate_up, r);
    for (int64_t i = 0; i < inter; ++i)
      row[i] = silu(row[i]) * row[inter + i];
    if (!std::all_of(row, row + inter, [](float x) { return std::isfinite(x); }))
      note_fault(r, "gated activation");
  }
}

/// y[rows[i]] += factors[i] * down(silu(gate h) * (up h)) of the rows an expert was given.
void ReferenceBackend::add_expert(const Rows& h, const Linear& gate_up, const Linear& down,
                                  std::span<const int32_t> rows, std::span<const float> factors,
                                  const Rows& y) {
  if (rows.empty()) return;
  const auto count = static_cast<int64_t>(rows.size());
  const HostRows in(count, h.cols), middle(count, gate_up.weight->n), out(count, y.cols);
  for (int64_t i = 0; i < count; ++i)
    std::copy_n(row_of(h, rows[static_cast<size_t>(i)]), h.cols, row_of(in.view, i));
  linear(in.view, gate_up, middle.view, {}, rows);
  const bool faulty_before = fault_.has_value();
  silu_mul(middle.view);
  if (!faulty_before && fault_) fault_->row = rows[static_cast<size_t>(fault_->row)];
  linear(middle.view.slice_cols(0, down.weight->k), down, out.view, {}, rows);
  for (int64_t i = 0; i < count; ++i) {
    float* target = row_of(y, rows[static_cast<size_t>(i)]);
    for (int64_t c = 0; c < y.cols; ++c)
      target[c] += factors[static_cast<size_t>(i)] * row_of(out.view, i)[c];
  }
}

void ReferenceBackend::moe_ffn(const Rows& h, const MoeWeights& moe, const Rows& y,
                               float* router_logits) {
  const int64_t n_experts = moe.router.weight->n;
  QW_CHECK(moe.top_k > 0 && moe.top_k <= n_experts, "top {} of {} experts", moe.top_k, n_experts);
  const HostRows scores(h.rows, n_experts);
  linear(h, moe.router, scores.view, {}, {});
  if (router_logits != nullptr) download(scores.view, router_logits);

  std::vector<std::vector<int32_t>> rows(static_cast<size_t>(n_experts));
  std::vector<std::vector<float>> factors(static_cast<size_t>(n_experts));
  std::vector<size_t> order(static_cast<size_t>(n_experts));
  std::vector<double> p(static_cast<size_t>(n_experts));
  for (int64_t r = 0; r < h.rows; ++r) {
    float* logit = row_of(scores.view, r);
    if (!std::all_of(logit, logit + n_experts, [](float x) { return std::isfinite(x); })) {
      note_fault(r, "router logits");
      std::fill_n(logit, n_experts, 0.0f);  // the step is lost; no order among NaN
    }
    const float largest = *std::max_element(logit, logit + n_experts);
    double total = 0, kept = 0;
    for (size_t e = 0; e < p.size(); ++e)
      total += p[e] = std::exp(static_cast<double>(logit[e]) - static_cast<double>(largest));
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
    order.resize(static_cast<size_t>(moe.top_k));
    for (const size_t e : order)
      kept += p[e];
    for (const size_t e : order) {
      rows[e].push_back(static_cast<int32_t>(r));
      factors[e].push_back(static_cast<float>(p[e] / (moe.norm_topk_prob ? kept : total)));
    }
    order.resize(p.size());
  }

  for (int64_t r = 0; r < y.rows; ++r)
    std::fill_n(row_of(y, r), y.cols, 0.0f);
  for (size_t e = 0; e < rows.size(); ++e)
    add_expert(h, moe.gate_up[e], moe.down[e], rows[e], factors[e], y);

  if (moe.shared_gate_up.weight == nullptr) return;
  const HostRows gate(h.rows, 1);
  linear(h, moe.shared_gate, gate.view, {}, {});
  std::vector<int32_t> all(static_cast<size_t>(h.rows));
  std::iota(all.begin(), all.end(), 0);
  std::vector<float> openness(all.size());
  for (size_t r = 0; r < openness.size(); ++r)
    openness[r] = 1.0f / (1.0f + std::exp(-*row_of(gate.view, static_cast<int64_t>(r))));
  add_expert(h, moe.shared_gate_up, moe.shared_down, all, openness, y);
}

}  // namespace

std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options) {
  options.check();
  if (!options.packed_cache.empty())
    logger().warn("packed cache has no effect: the reference device packs nothing");
  return std::make_unique<ReferenceBackend>();
}

}  // namespace qw
