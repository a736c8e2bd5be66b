// What every device gets for free: fused operations made of the simple ones.
//
// Level 4 (backend). A new backend overrides these only to be faster.
#include "backend/backend.h"

#include <algorithm>

#include "base/error.h"

namespace qw {

namespace {

/// Rows of logits computed at a time: bounds the scratch at 64 x vocabulary.
constexpr int64_t kLogitRows = 64;

/// A buffer with room for [rows, cols], kept from call to call.
Rows scratch(Backend& backend, std::unique_ptr<RowsBuffer>& buffer, int64_t rows, int64_t cols) {
  if (!buffer || buffer->view.rows < rows || buffer->view.cols < cols) {
    const int64_t kept_rows = buffer ? buffer->view.rows : 0;
    const int64_t kept_cols = buffer ? buffer->view.cols : 0;
    buffer.reset();
    buffer = backend.allocate(std::max(rows, kept_rows), std::max(cols, kept_cols));
  }
  return buffer->view.first(rows).slice_cols(0, cols);
}

}  // namespace

ActivationMode activation_mode_from_name(std::string_view name) {
  if (name == "auto") return ActivationMode::kAuto;
  if (name == "int8") return ActivationMode::kInt8;
  if (name == "bf16") return ActivationMode::kBf16;
  if (name == "f32") return ActivationMode::kF32;
  fail(ErrorKind::kInvalidArgument, "backend",
       "activations: expected auto, int8, bf16 or f32, got '{}'", printable(name));
}

std::string_view name_of(ActivationMode mode) {
  switch (mode) {
    case ActivationMode::kAuto:
      return "auto";
    case ActivationMode::kInt8:
      return "int8";
    case ActivationMode::kBf16:
      return "bf16";
    case ActivationMode::kF32:
      return "f32";
  }
  return "auto";
}

void BackendOptions::check() const {
  if (n_threads < 0 || n_threads > kMaxThreads) {
    fail(ErrorKind::kInvalidArgument, "backend",
         "threads: expected 0 (one for each physical core) to {}, got {}", kMaxThreads, n_threads);
  }
}

void check_plan(const BatchPlan& plan) {
  const size_t n_tokens = plan.tokens.size(), n_seqs = plan.seq_context.size();
  QW_CHECK(plan.positions.size() == n_tokens && plan.slots.size() == n_tokens,
           "{} tokens, {} positions, {} slots", n_tokens, plan.positions.size(), plan.slots.size());
  QW_CHECK(plan.seq_begin.size() == n_seqs + 1 && plan.page_begin.size() == n_seqs + 1 &&
               plan.seq_begin.front() == 0 &&
               plan.seq_begin.back() == static_cast<int32_t>(n_tokens),
           "{} sequences, {} offsets, {} page offsets", n_seqs, plan.seq_begin.size(),
           plan.page_begin.size());
  QW_CHECK(plan.adapters.empty() || plan.adapters.size() == n_seqs, "{} adapters",
           plan.adapters.size());
  for (size_t s = 0; s < n_seqs; ++s) {
    QW_CHECK(plan.seq_begin[s] <= plan.seq_begin[s + 1], "sequence {} begins at {} and ends at {}",
             s, plan.seq_begin[s], plan.seq_begin[s + 1]);
    for (int32_t t = plan.seq_begin[s]; t < plan.seq_begin[s + 1]; ++t) {
      const int32_t position = plan.positions[static_cast<size_t>(t)];
      QW_CHECK(position >= 0 && position < plan.seq_context[s],
               "token {} at position {} of a context of {}", t, position, plan.seq_context[s]);
    }
  }
}

Rows Backend::gated_linear(const Rows& h, const Linear& gate_up,
                           std::span<const int32_t> rows_of_plan) {
  const Rows gate_and_up = scratch(*this, gated_scratch_, h.rows, gate_up.weight->n);
  linear(h, gate_up, gate_and_up, {}, rows_of_plan);
  silu_mul(gate_and_up);
  return gate_and_up.slice_cols(0, gate_up.weight->n / 2);
}

void Backend::ffn(const Rows& h, const Linear& gate_up, const Linear& down, const Rows& y) {
  QW_CHECK(gate_up.weight->n == 2 * down.weight->k, "{}: {} rows for {} columns", gate_up.name,
           gate_up.weight->n, down.weight->k);
  linear(gated_linear(h, gate_up), down, y);
}

void Backend::logits(const Rows& h, std::span<const int32_t> rows, const Linear& lm_head,
                     float* out) {
  const int64_t vocab = lm_head.weight->n;
  for (size_t begin = 0; begin < rows.size();) {
    // Adjacent rows go through one product; one row's sum does not depend on its neighbours.
    size_t end = begin + 1;
    while (end < rows.size() && rows[end] == rows[end - 1] + 1 && end - begin < kLogitRows)
      ++end;
    const auto count = static_cast<int64_t>(end - begin);
    const Rows y = scratch(*this, logits_scratch_, count, vocab);
    linear(h.slice_rows(rows[begin], count), lm_head, y, {}, rows.subspan(begin, end - begin));
    download(y, out + static_cast<int64_t>(begin) * vocab);
    begin = end;
  }
}

}  // namespace qw
