// Mixture of experts on the CPU backend: rows are grouped by expert, and the products of all
// experts are done together (a grouped GEMM), so that threads meet a few times per layer, not per
// expert.
//
// Level 4 (backend). A row's sum starts at 0 and takes its experts in ascending order of expert
// index (as Transformers' index_add_ does), the shared expert last: batch mates change nothing.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "backend/cpu_backend.h"
#include "base/error.h"

namespace qw {

void CpuBackend::gather(const Rows& in, std::span<const int32_t> rows, const Rows& out) {
  for_rows(static_cast<int64_t>(rows.size()), in.cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::copy_n(row_of(in, rows[static_cast<size_t>(i)]), in.cols, row_of(out, i));
    }
  });
}

/// Softmax over all experts, then the top_k of each row; of equal weights the lower index wins.
std::vector<CpuBackend::ExpertRows> CpuBackend::route(const MoeWeights& moe, const Rows& scores) {
  const int64_t n_experts = scores.cols;
  const auto top_k = static_cast<size_t>(moe.top_k);
  std::vector<ExpertRows> shares(static_cast<size_t>(n_experts));
  std::vector<int32_t> order(static_cast<size_t>(n_experts));
  for (int64_t r = 0; r < scores.rows; ++r) {
    float* p = row_of(scores, r);
    if (!ops_.softmax(p, n_experts)) {
      note_fault(r, "router logits");
      std::fill_n(p, n_experts, 0.0F);  // the step is lost; no order among NaN
    }
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + moe.top_k, order.end(),
                      [&](int32_t a, int32_t b) { return p[a] > p[b] || (p[a] == p[b] && a < b); });
    float kept = 0;
    for (size_t i = 0; i < top_k; ++i)
      kept += p[order[i]];
    for (size_t i = 0; i < top_k; ++i) {
      ExpertRows& share = shares[static_cast<size_t>(order[i])];
      share.rows.push_back(static_cast<int32_t>(r));
      share.factors.push_back(moe.norm_topk_prob ? p[order[i]] / kept : p[order[i]]);
    }
  }
  return shares;
}

/// y[rows[i]] += factors[i] * down(silu(gate h) * (up h)) for the rows that an expert was given.
void CpuBackend::add_expert(const Rows& h, const Linear& gate_up, const Linear& down,
                            const ExpertRows& share, const Rows& y) {
  const auto count = static_cast<int64_t>(share.rows.size());
  if (count == 0) return;
  const Rows in = expert_in_.rows(count, h.cols);
  const Rows out = expert_out_.rows(count, y.cols);
  gather(h, share.rows, in);
  const std::optional<NumericFault> before = fault_;
  const Rows middle = gated_linear(in, gate_up, share.rows);
  if (!before && fault_) fault_->row = share.rows[static_cast<size_t>(fault_->row)];
  linear(middle, down, out, {}, share.rows);
  for_rows(count, y.cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto at = static_cast<size_t>(i);
      ops_.add_scaled(row_of(out, i), share.factors[at], row_of(y, share.rows[at]), y.cols);
    }
  });
}

/// The shares of a step one after the other, as rows of one matrix.
struct CpuBackend::ExpertBatch {
  struct Expert {
    size_t index;
    int64_t begin, count;
  };
  std::vector<Expert> experts;  // those that have rows
  std::vector<int32_t> rows;    // of the step
  /// For each row of the step its places in `rows`, in ascending order of expert: top_k of them.
  std::vector<int32_t> places;
  std::vector<float> factors;  // as `rows`

  ExpertBatch(const std::vector<ExpertRows>& shares, int64_t n_rows, int64_t top_k)
      : places(static_cast<size_t>(n_rows * top_k)) {
    std::vector<int32_t> n_places(static_cast<size_t>(n_rows), 0);
    for (size_t e = 0; e < shares.size(); ++e) {
      const ExpertRows& share = shares[e];
      if (share.rows.empty()) continue;
      const auto begin = static_cast<int64_t>(rows.size());
      experts.push_back({e, begin, static_cast<int64_t>(share.rows.size())});
      for (const int32_t row : share.rows) {
        const auto r = static_cast<size_t>(row);
        places[r * static_cast<size_t>(top_k) + static_cast<size_t>(n_places[r]++)] =
            static_cast<int32_t>(rows.size());
        rows.push_back(row);
      }
      factors.insert(factors.end(), share.factors.begin(), share.factors.end());
    }
  }
  int64_t size() const { return static_cast<int64_t>(rows.size()); }
};

/// silu(gate x) * (up x) of every expert's rows. Those with many rows do both in one, the others
/// one after the other.
Rows CpuBackend::gate_experts(const Rows& in, const MoeWeights& moe, const ExpertBatch& batch) {
  const int64_t inter = moe.down.front().weight->k;
  const Rows out = gated_.rows(in.rows, 2 * inter);
  std::vector<CpuLinearProduct> gated, plain;
  std::vector<int64_t> gated_begins;
  for (const auto& [index, begin, count] : batch.experts) {
    const auto& weight = static_cast<const CpuLinear&>(*moe.gate_up[index].weight);
    const CpuLinearProduct product{
        &weight, product_of(in.slice_rows(begin, count), out.slice_rows(begin, count))};
    if (can_run_gated(weight, count)) {
      gated.push_back(product);
      gated_begins.push_back(begin);
    } else {
      plain.push_back(product);
    }
  }
  const auto bad = run_cpu_gated(gated, ops_.silu_mul, context_);
  if (bad)
    note_fault(batch.rows[static_cast<size_t>(gated_begins[bad->product] + bad->row)],
               kGatedActivation);
  run_cpu_linears(plain, context_);
  BadRow bad_plain;
  const int64_t n_plain = std::accumulate(plain.begin(), plain.end(), int64_t{0},
                                          [](int64_t n, const auto& p) { return n + p.call.m; });
  const auto n_experts = static_cast<int64_t>(plain.size());
  for_rows(
      n_experts, n_plain * inter / std::max<int64_t>(n_experts, 1),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const CpuLinearCall& call = plain[static_cast<size_t>(i)].call;
          for (int64_t r = 0; r < call.m; ++r) {
            float* row = call.y + r * call.ldy;
            if (!ops_.silu_mul(row, row + inter, inter))
              bad_plain.note(batch.rows[static_cast<size_t>((row - row_of(out, 0)) / out.stride)]);
          }
        }
      });
  note_fault(bad_plain.row(), kGatedActivation);
  return out.slice_cols(0, inter);
}

/// y[row] = sum of factor * expert(h[row]) over the row's experts.
void CpuBackend::sum_experts(const Rows& h, const MoeWeights& moe,
                             const std::vector<ExpertRows>& shares, const Rows& y) {
  const ExpertBatch batch(shares, h.rows, moe.top_k);
  const Rows in = expert_in_.rows(batch.size(), h.cols),
             out = expert_out_.rows(batch.size(), y.cols);
  gather(h, batch.rows, in);
  const Rows middle = gate_experts(in, moe, batch);
  std::vector<CpuLinearProduct> products;
  for (const auto& [index, begin, count] : batch.experts) {
    products.push_back({static_cast<const CpuLinear*>(moe.down[index].weight.get()),
                        product_of(middle.slice_rows(begin, count), out.slice_rows(begin, count))});
  }
  run_cpu_linears(products, context_);
  for_rows(y.rows, y.cols * moe.top_k, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t i = r * moe.top_k; i < (r + 1) * moe.top_k; ++i) {
        const int32_t place = batch.places[static_cast<size_t>(i)];
        ops_.add_scaled(row_of(out, place), batch.factors[static_cast<size_t>(place)], row_of(y, r),
                        y.cols);
      }
    }
  });
}

void CpuBackend::add_shared_expert(const Rows& h, const MoeWeights& moe, const Rows& y) {
  const Rows gate = router_scores_.rows(h.rows, 1);
  linear(h, moe.shared_gate, gate);
  ExpertRows all;
  for (int64_t r = 0; r < h.rows; ++r) {
    // sigmoid(g) = 1 / (1 + exp(-g)), by the same exp as everywhere.
    float e = -*row_of(gate, r);
    ops_.exp(&e, 1, &e);
    all.rows.push_back(static_cast<int32_t>(r));
    all.factors.push_back(1.0F / (1.0F + e));
  }
  add_expert(h, moe.shared_gate_up, moe.shared_down, all, y);
}

void CpuBackend::moe_ffn(const Rows& h, const MoeWeights& moe, const Rows& y,
                         float* router_logits) {
  const int64_t n_experts = moe.router.weight->n;
  QW_CHECK(moe.top_k > 0 && moe.top_k <= n_experts, "top {} of {} experts", moe.top_k, n_experts);
  QW_CHECK(static_cast<int64_t>(moe.gate_up.size()) == n_experts &&
               moe.down.size() == moe.gate_up.size(),
           "{} experts, {} gates, {} downs", n_experts, moe.gate_up.size(), moe.down.size());
  const Rows scores = router_scores_.rows(h.rows, n_experts);
  linear(h, moe.router, scores);
  if (router_logits != nullptr) download(scores, router_logits);
  const std::vector<ExpertRows> shares = route(moe, scores);
  for_rows(y.rows, y.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      std::fill_n(row_of(y, r), y.cols, 0.0F);
  });
  const auto adapted = [&](const Linear& layer) { return !layer.deltas.empty(); };
  if (!adapter_of_row_.empty() &&
      (std::ranges::any_of(moe.gate_up, adapted) || std::ranges::any_of(moe.down, adapted))) {
    for (size_t e = 0; e < shares.size(); ++e)
      add_expert(h, moe.gate_up[e], moe.down[e], shares[e], y);
  } else {
    sum_experts(h, moe, shares, y);
  }
  if (moe.shared_gate_up.weight != nullptr) add_shared_expert(h, moe, y);
}

}  // namespace qw
