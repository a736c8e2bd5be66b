// Attention of the CPU backend: which page meets which query rows, on which thread.
//
// Level 4 (backend), private to the CPU backend. The arithmetic is kernels/attention.h. Rows of a
// tile are (token, query head) pairs that share a KV head, so keys and values are read once for
// all of them. Pages are reduced in fixed spans whose partial sums are joined in ascending order;
// a span may go to any thread. Neither tile nor thread changes a bit of a row.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/bad_row.h"
#include "backend/cpu_memory.h"
#include "base/thread_pool.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"

namespace qw {

struct CpuAttentionCall {
  const Rows& qkv;
  const CpuKv& kv;
  int layer;
  const AttentionSpec& spec;
  const BatchPlan& plan;
};

class CpuAttention {
 public:
  CpuAttention(const kernels::Isa& isa, ThreadPool& pool);
  ~CpuAttention();

  /// Rotates q and k of qkv in place, and writes k and v at the plan's slots.
  /// cos, sin: [T, head_dim / 2].
  void rope_store(const CpuAttentionCall& call, CpuKv& kv, const float* cos, const float* sin);

  /// o = softmax(scale * q k^T) v. Memory: O(threads * tile) and, where a step has too few tiles to
  /// fill the threads, a bounded buffer of partial sums. Returns the first row with a score or a
  /// result that is not finite, -1 if there is none.
  int64_t run(const CpuAttentionCall& call, const Rows& o);

  /// Partial sums that a step keeps at most where its sequences are cut into spans.
  int64_t working_bytes(const StepSizes& step) const;

  const char* kernel_name() const noexcept { return ops_.name; }

 private:
  struct Tile;
  struct Scratch;
  struct Sight;

  void make_tiles(const CpuAttentionCall& call);
  int64_t partial_floats(const CpuAttentionCall& call) const;
  void attend_span(const CpuAttentionCall& call, const Tile& tile, int kv_head, int span,
                   Scratch& scratch, const kernels::SoftmaxRows& part);
  void attend_page(const CpuAttentionCall& call, const Tile& tile, int kv_head, int page,
                   Scratch& scratch, const kernels::SoftmaxRows& part);
  void write_out(const CpuAttentionCall& call, const Tile& tile, int kv_head,
                 const kernels::SoftmaxRows& total, const Rows& o);
  void run_whole(const CpuAttentionCall& call, const Rows& o);
  void run_split(const CpuAttentionCall& call, const Rows& o);

  const kernels::AttentionOps& ops_;
  const kernels::KvOps& kv_ops_;
  const kernels::ElementwiseOps& elementwise_;
  ThreadPool& pool_;
  std::vector<Tile> tiles_;       // of the call in progress, longest first
  std::vector<Scratch> scratch_;  // one per thread
  AlignedFloats partials_;
  BadRow bad_row_;
};

}  // namespace qw
