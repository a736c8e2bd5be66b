// Low-rank additions (LoRA, DoRA) to linear layers of the CPU backend.
//
// Level 4 (backend). The rows of each adapter are gathered, so that a delta costs two thin
// products however many sequences use it; adapters that no sequence of a step has cost it nothing.
// Deltas join a row in the order of Linear::deltas.
#include <algorithm>

#include "backend/cpu_backend.h"
#include "base/error.h"

namespace qw {

void CpuBackend::add_deltas(const Rows& x, const Linear& layer, const Rows& y,
                            std::span<const int32_t> rows_of_plan) {
  const auto adapter_of = [&](int64_t r) {
    return adapter_of_row_[static_cast<size_t>(
        rows_of_plan.empty() ? r : rows_of_plan[static_cast<size_t>(r)])];
  };
  for (const int32_t id : step_adapters_) {
    if (std::ranges::find(layer.deltas, id, &LoraDelta::adapter) == layer.deltas.end()) continue;
    std::vector<int32_t> rows;
    for (int64_t r = 0; r < x.rows; ++r) {
      if (adapter_of(r) == id) rows.push_back(static_cast<int32_t>(r));
    }
    if (rows.empty()) continue;
    const auto count = static_cast<int64_t>(rows.size());
    const Rows in = delta_in_.rows(count, x.cols);
    gather(x, rows, in);
    Rows base;  // W x without bias, once for all DoRA deltas of this adapter
    for (const LoraDelta& delta : layer.deltas) {
      if (delta.adapter != id) continue;
      if (delta.row_factor != nullptr && base.data == nullptr) {
        base = delta_base_.rows(count, layer.weight->n);
        CpuLinearCall call;
        call.x = row_of(in, 0);
        call.ldx = in.stride;
        call.m = count;
        call.y = row_of(base, 0);
        call.ldy = base.stride;
        run_cpu_linear(static_cast<const CpuLinear&>(*layer.weight), call, context_);
      }
      add_delta(in, delta, rows, base, y);
    }
  }
}

/// y[rows[i]] += the delta's share of input row i. base: W x of the same rows, for DoRA.
void CpuBackend::add_delta(const Rows& x, const LoraDelta& delta, std::span<const int32_t> rows,
                           const Rows& base, const Rows& y) {
  const int64_t n = delta.b->n;
  QW_CHECK(delta.a->k == x.cols && delta.b->k == delta.a->n && delta.out_begin >= 0 &&
               delta.out_begin + n <= y.cols,
           "adapter {}: A [{}, {}], B [{}, {}] on [{}, {}]", delta.adapter, delta.a->n, delta.a->k,
           n, delta.b->k, y.cols, x.cols);
  const Rows low = delta_rank_.rows(x.rows, delta.a->n), high = delta_out_.rows(x.rows, n);
  const auto product = [&](const LinearWeight& weight, const Rows& from, const Rows& to) {
    run_cpu_linear(static_cast<const CpuLinear&>(weight), product_of(from, to), context_);
  };
  product(*delta.a, x, low);
  product(*delta.b, low, high);
  const float* factor = nullptr;
  if (delta.row_factor != nullptr) {
    QW_CHECK(delta.row_factor->size == n, "adapter {}: {} row factors for {} rows", delta.adapter,
             delta.row_factor->size, n);
    factor = static_cast<const CpuVector&>(*delta.row_factor).data();
  }
  for_rows(x.rows, n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* out = row_of(y, rows[static_cast<size_t>(i)]) + delta.out_begin;
      if (factor == nullptr) {
        ops_.add_scaled(row_of(high, i), delta.scale, out, n);
      } else {
        ops_.add_dora(factor, row_of(base, i) + delta.out_begin, row_of(high, i), delta.scale, out,
                      n);
      }
    }
  });
}

}  // namespace qw
