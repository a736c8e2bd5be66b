#include "backend/cpu_backend.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "backend/profile.h"
#include "base/checked.h"
#include "base/error.h"
#include "kernels/linear_kernel.h"

namespace qw {

namespace {

/// Elements that one thread takes at a time in memory-bound loops: some microseconds of work.
constexpr int64_t kGrainElems = 16384;

const float* values_of(const DeviceVector& vector) {
  return static_cast<const CpuVector&>(vector).data();
}

}  // namespace

Rows CpuScratch::rows(int64_t rows, int64_t cols) {
  if (!buffer_ || buffer_->view.rows < rows || buffer_->view.cols < cols) {
    const int64_t kept_rows = buffer_ ? buffer_->view.rows : 0,
                  kept_cols = buffer_ ? buffer_->view.cols : 0;
    buffer_.reset();
    buffer_ = std::make_unique<CpuRows>(std::max(rows, kept_rows), std::max(cols, kept_cols));
  }
  return buffer_->view.first(rows).slice_cols(0, cols);
}

CpuBackend::CpuBackend(const BackendOptions& options)
    : options_(options),
      context_(options),
      ops_(kernels::elementwise_ops(context_.isa)),
      attention_(context_.isa, context_.pool) {}

// ---- memory and packing -----------------------------------------------------------------------

std::unique_ptr<RowsBuffer> CpuBackend::allocate(int64_t rows, int64_t cols) {
  return std::make_unique<CpuRows>(rows, cols);
}

std::unique_ptr<LinearWeight> CpuBackend::pack_linear(std::span<const LinearSource> parts) {
  std::unique_ptr<CpuLinear> weight = pack_cpu_linear(parts, context_);
  for (const LinearSource& part : parts)
    kernels_used_[part.format_name()] = weight->kernel;
  return weight;
}

std::unique_ptr<EmbeddingWeight> CpuBackend::pack_embedding(const LinearSource& source) {
  return std::make_unique<CpuEmbedding>(source);
}

std::unique_ptr<DeviceVector> CpuBackend::upload(std::span<const float> values) {
  return std::make_unique<CpuVector>(values);
}

int64_t CpuBackend::working_bytes(const StepSizes& step) const {
  // The inputs of all experts are rounded together, each to whole groups of rows.
  const int64_t expert_rows =
      step.rows * step.experts_per_token + step.n_experts * kernels::kTileRows;
  return step.logit_rows * step.hidden * int64_t{sizeof(float)} +
         std::max(linear_working_bytes(step.rows, step.columns, n_threads()),
                  linear_working_bytes(expert_rows, step.expert_columns, n_threads())) +
         attention_.working_bytes(step);
}

/// One thread, its own: the team would have the steps wait. Nor does it look for stored weights, of
/// which only this backend keeps count.
std::unique_ptr<Backend> CpuBackend::make_packer() const {
  BackendOptions options = options_;
  options.n_threads = 1;
  options.packed_cache.clear();
  return std::make_unique<CpuBackend>(options);
}

std::unique_ptr<KvCache> CpuBackend::make_kv(const KvSpec& spec) {
  return std::make_unique<CpuKv>(spec);
}

void CpuBackend::download(const Rows& rows, float* out) const {
  for (int64_t r = 0; r < rows.rows; ++r)
    std::copy_n(row_of(rows, r), rows.cols, out + r * rows.cols);
}

void CpuBackend::upload_rows(const float* in, const Rows& rows) const {
  for (int64_t r = 0; r < rows.rows; ++r)
    std::copy_n(in + r * rows.cols, rows.cols, row_of(rows, r));
}

// ---- one step ---------------------------------------------------------------------------------

const BatchPlan& CpuBackend::plan() const {
  QW_CHECK(plan_ != nullptr, "an operation before begin_step");
  return *plan_;
}

void CpuBackend::for_rows(int64_t n_rows, int64_t cols, FunctionRef<void(int64_t, int64_t)> body) {
  const int64_t grain = std::max<int64_t>(1, kGrainElems / std::max<int64_t>(cols, 1));
  context_.pool.parallel_for(n_rows, grain,
                             [&](int64_t begin, int64_t end, int) { body(begin, end); });
}

void CpuBackend::begin_step(const BatchPlan& plan, std::span<const float> rope_cos,
                            std::span<const float> rope_sin) {
  check_plan(plan);
  QW_CHECK(rope_cos.size() == rope_sin.size(), "{} cosines, {} sines", rope_cos.size(),
           rope_sin.size());
  plan_ = &plan;
  rope_cos_ = rope_cos;
  rope_sin_ = rope_sin;
  adapter_of_row_.clear();
  if (std::all_of(plan.adapters.begin(), plan.adapters.end(), [](int32_t id) { return id < 0; }))
    return;
  adapter_of_row_.resize(plan.tokens.size());
  step_adapters_.clear();
  for (size_t s = 0; s < plan.adapters.size(); ++s) {
    const int32_t id = plan.adapters[s];
    if (id >= 0 && std::ranges::find(step_adapters_, id) == step_adapters_.end())
      step_adapters_.push_back(id);
    std::fill(adapter_of_row_.begin() + plan.seq_begin[s],
              adapter_of_row_.begin() + plan.seq_begin[s + 1], id);
  }
}

void CpuBackend::embed(const EmbeddingWeight& table, int64_t begin, int64_t end, const Rows& x) {
  const LinearSource& source = static_cast<const CpuEmbedding&>(table).source;
  QW_CHECK(begin >= 0 && end <= plan().n_tokens() && end <= x.rows && x.cols == source.k,
           "rows {}..{} of {}", begin, end, x.rows);
  for_rows(end - begin, source.k, [&](int64_t first, int64_t last) {
    for (int64_t t = begin + first; t < begin + last; ++t) {
      const int32_t token = plan().tokens[static_cast<size_t>(t)];
      QW_CHECK(token >= 0 && token < source.n, "token {} of {}", token, source.n);
      source.decode_rows(token, 1, row_of(x, t));
    }
  });
}

void CpuBackend::add_rms_norm(const Rows& y, const Rows& x, const DeviceVector& w, float eps,
                              const Rows& h) {
  QW_CHECK(w.size == x.cols && h.cols == x.cols && h.rows == x.rows, "norm of {} over [{}, {}]",
           w.size, x.rows, x.cols);
  QW_CHECK(y.data == nullptr || (y.rows == x.rows && y.cols == x.cols), "adding [{}, {}]", y.rows,
           y.cols);
  BadRow bad;
  for_rows(x.rows, x.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* addend = y.data == nullptr ? nullptr : row_of(y, r);
      if (!ops_.add_rms_norm(addend, row_of(x, r), values_of(w), eps, x.cols, row_of(h, r)))
        bad.note(r);
    }
  });
  note_fault(bad.row(), "input of rms norm");
}

void CpuBackend::linear(const Rows& x, const Linear& layer, const Rows& y, Epilogue epilogue,
                        std::span<const int32_t> rows_of_plan) {
  const auto& weight = static_cast<const CpuLinear&>(*layer.weight);
  QW_CHECK(x.cols == weight.k && y.cols == weight.n && x.rows == y.rows,
           "{}: [{}, {}] -> [{}, {}] by [{}, {}]", layer.name, x.rows, x.cols, y.rows, y.cols,
           weight.n, weight.k);
  if (x.rows == 0) return;
  CpuLinearCall call = product_of(x, y);
  call.bias = layer.bias == nullptr ? nullptr : values_of(*layer.bias);
  call.accumulate = epilogue.accumulate;
  run_cpu_linear(weight, call, context_);
  if (!layer.deltas.empty() && !adapter_of_row_.empty()) add_deltas(x, layer, y, rows_of_plan);
}

void CpuBackend::check_attention(const Rows& qkv, const KvCache& kv, const AttentionSpec& spec,
                                 const BatchPlan& plan) {
  QW_CHECK(spec.n_kv_heads > 0 && spec.n_heads % spec.n_kv_heads == 0, "{} heads over {}",
           spec.n_heads, spec.n_kv_heads);
  QW_CHECK(qkv.rows == plan.n_tokens() &&
               qkv.cols == int64_t{spec.n_heads + 2 * spec.n_kv_heads} * spec.head_dim,
           "qkv [{}, {}]", qkv.rows, qkv.cols);
  QW_CHECK(kv.spec.n_kv_heads == spec.n_kv_heads && kv.spec.head_dim == spec.head_dim,
           "cache of {} heads of {}", kv.spec.n_kv_heads, kv.spec.head_dim);
}

void CpuBackend::rope_store_kv(const Rows& qkv, KvCache& kv, int layer, const AttentionSpec& spec) {
  check_attention(qkv, kv, spec, plan());
  QW_CHECK(static_cast<int64_t>(rope_cos_.size()) == plan().n_tokens() * (spec.head_dim / 2),
           "{} cosines for {} tokens", rope_cos_.size(), plan().n_tokens());
  const int64_t n_slots = kv.spec.n_pages * kernels::kKvPageTokens;
  for (const int32_t slot : plan().slots)
    QW_CHECK(slot >= 0 && slot < n_slots, "slot {} of {}", slot, n_slots);
  auto& cache = static_cast<CpuKv&>(kv);
  attention_.rope_store({qkv, cache, layer, spec, plan()}, cache, rope_cos_.data(),
                        rope_sin_.data());
}

void CpuBackend::paged_attention(const Rows& qkv, const KvCache& kv, int layer,
                                 const AttentionSpec& spec, const Rows& o) {
  check_attention(qkv, kv, spec, plan());
  QW_CHECK(o.rows == qkv.rows && o.cols == int64_t{spec.n_heads} * spec.head_dim, "output [{}, {}]",
           o.rows, o.cols);
  for (size_t s = 0; s < plan().seq_context.size(); ++s) {
    const int64_t n_pages = plan().page_begin[s + 1] - plan().page_begin[s];
    QW_CHECK(n_pages * kernels::kKvPageTokens >= plan().seq_context[s], "{} pages for {} tokens",
             n_pages, plan().seq_context[s]);
  }
  for (const int32_t page : plan().pages)
    QW_CHECK(page >= 0 && page < kv.spec.n_pages, "page {}", page);
  note_fault(attention_.run({qkv, static_cast<const CpuKv&>(kv), layer, spec, plan()}, o),
             "attention scores");
}

void CpuBackend::silu_mul(const Rows& gate_up) {
  const int64_t inter = gate_up.cols / 2;
  // One long row is worth several threads too: a task is a piece of a row.
  const int64_t piece = std::min(inter, kGrainElems / 4),
                n_pieces = ceil_div(inter, std::max<int64_t>(piece, 1));
  BadRow bad;
  for_rows(gate_up.rows * n_pieces, piece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / n_pieces, first = i % n_pieces * piece;
      float* gate = row_of(gate_up, r) + first;
      if (!ops_.silu_mul(gate, gate + inter, std::min(piece, inter - first))) bad.note(r);
    }
  });
  note_fault(bad.row(), kGatedActivation);
}

Rows CpuBackend::gated_linear(const Rows& h, const Linear& gate_up,
                              std::span<const int32_t> rows_of_plan) {
  const auto& weight = static_cast<const CpuLinear&>(*gate_up.weight);
  const bool has_deltas = !gate_up.deltas.empty() && !adapter_of_row_.empty();
  if (has_deltas || gate_up.bias != nullptr || !can_run_gated(weight, h.rows))
    return Backend::gated_linear(h, gate_up, rows_of_plan);
  QW_CHECK(h.cols == weight.k, "{}: [{}, {}] by [{}, {}]", gate_up.name, h.rows, h.cols, weight.n,
           weight.k);
  const Rows out = gated_.rows(h.rows, weight.n / 2);
  const CpuLinearProduct product{&weight, product_of(h, out)};
  if (const auto bad = run_cpu_gated({&product, 1}, ops_.silu_mul, context_))
    note_fault(bad->row, kGatedActivation);
  return out;
}

void CpuBackend::logits(const Rows& h, std::span<const int32_t> rows, const Linear& lm_head,
                        float* out) {
  const auto count = static_cast<int64_t>(rows.size());
  const Rows in = head_in_.rows(count, h.cols);
  gather(h, rows, in);
  const int64_t vocab = lm_head.weight->n;
  linear(in, lm_head, {out, count, vocab, vocab, sizeof(float)}, {}, rows);
}

std::string CpuBackend::numerics() const {
  std::vector<std::string_view> levels;
  for (const kernels::IsaLevel level : kernels::levels_of(context_.isa))
    levels.push_back(kernels::name_of(level));
  return fmt::format("cpu, {}, activations {}", fmt::join(levels, " "),
                     name_of(context_.activations));
}

std::vector<std::string> CpuBackend::describe() const {
  std::vector<std::string> out = {
      fmt::format("cpu: {} threads, f32 activations, elementwise {}, attention {}", n_threads(),
                  ops_.name, attention_.kernel_name())};
  for (const auto& [format, kernel] : kernels_used_)
    out.push_back(fmt::format("linear {}: {}", format, kernel));
  return out;
}

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  options.check();
  return std::make_unique<CpuBackend>(options);
}

std::unique_ptr<Backend> make_backend(std::string_view device, const BackendOptions& options) {
  if (options.profile != nullptr) {
    BackendOptions plain = options;
    plain.profile = nullptr;
    return make_profiled_backend(make_backend(device, plain), *options.profile);
  }
  if (device == "cpu") return make_cpu_backend(options);
  if (device == "reference") return make_reference_backend(options);
  fail(ErrorKind::kUnsupported, "backend", "device: expected cpu or reference, got {}",
       printable(device));
}

}  // namespace qw
