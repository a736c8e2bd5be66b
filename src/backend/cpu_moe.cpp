// Mixture of experts on the CPU backend: rows are grouped by expert, experts run one after the
// other with all threads.
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
  for (size_t e = 0; e < shares.size(); ++e)
    add_expert(h, moe.gate_up[e], moe.down[e], shares[e], y);
  if (moe.shared_gate_up.weight != nullptr) add_shared_expert(h, moe, y);
}

}  // namespace qw
