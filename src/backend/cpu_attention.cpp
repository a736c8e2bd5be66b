#include "backend/cpu_attention.h"

#include <algorithm>
#include <limits>

#include "base/checked.h"
#include "base/error.h"

namespace qw {

using kernels::PageMatrix;
using kernels::SoftmaxRows;

namespace {

constexpr int kPage = kernels::kKvPageTokens;
/// Pages whose online softmax is one chain: 512 tokens, long enough to pay for the joining, short
/// enough for a context of 16,384 to feed 32 threads from one head. Part of the numeric contract.
constexpr int kSpanPages = 8;
/// Rows of a tile: a multiple of the register tile's 6; scores, queries and sums of a tile of
/// head_dim 128 stay in 128 KiB of L2.
constexpr int kTileRows = 96;
/// From this many rows on, widening a page once costs less than widening it in every register tile.
constexpr int kWidenRows = 12;
/// At most this much for partial sums; otherwise spans of a tile are done one after the other.
constexpr int64_t kMaxPartialFloats = int64_t{16} << 20;
/// The same for each thread: decoding one sequence of 32,768 tokens with 64 heads of 128 takes
/// about four megabytes, whatever is larger has tiles enough without a cut.
constexpr int64_t kMaxPartialFloatsPerThread = int64_t{512} << 10;

int64_t most_partial_floats(int n_threads) {
  return std::min(kMaxPartialFloats, n_threads * kMaxPartialFloatsPerThread);
}

constexpr float kNone = -std::numeric_limits<float>::infinity();

int group_of(const AttentionSpec& spec) {
  return spec.n_heads / spec.n_kv_heads;
}

/// State of `rows` rows in `memory`: o, m, l. A multiple of a cache line each.
SoftmaxRows state_at(float* memory, int64_t rows, int64_t ld_o) {
  float* m = memory + rows * ld_o;
  return {m, m + round_up<int64_t>(rows, 16), memory, ld_o};
}
int64_t state_floats(int64_t rows, int64_t ld_o) {
  return rows * ld_o + 2 * round_up<int64_t>(rows, 16);
}

void clear(const SoftmaxRows& state, int64_t rows) {
  std::fill_n(state.m, rows, kNone);
  std::fill_n(state.l, rows, 0.0F);
  std::fill_n(state.o, rows * state.ld_o, 0.0F);
}

SoftmaxRows rows_from(const SoftmaxRows& state, int64_t row) {
  return {state.m + row, state.l + row, state.o + row * state.ld_o, state.ld_o};
}

/// First cached position that a query at `position` sees.
int64_t first_visible(const AttentionSpec& spec, int64_t position) {
  return spec.window > 0 ? std::max<int64_t>(0, position - spec.window + 1) : 0;
}

}  // namespace

/// Consecutive tokens of one sequence, with all query heads of a KV head: n_tokens * group rows.
struct CpuAttention::Tile {
  int32_t seq, row_begin, n_tokens;
  int32_t first_page, last_page;  // of the sequence's table: those that some row sees

  int first_span() const { return first_page / kSpanPages; }
  int n_spans() const { return last_page / kSpanPages - first_span() + 1; }
};

struct CpuAttention::Scratch {
  AlignedFloats q, scores, correction, k, v, part, total;
  std::vector<int> begin, end;

  void reserve(int64_t rows, const kernels::KvLayout& layout) {
    constexpr std::string_view kWhat = "attention scratch";
    q.reserve(rows * layout.head_dim, kWhat);
    scores.reserve(rows * kPage, kWhat);
    correction.reserve(rows, kWhat);
    k.reserve(int64_t{layout.head_dim} * kPage, kWhat);
    v.reserve(int64_t{layout.v_stride} * kPage, kWhat);
    part.reserve(state_floats(rows, layout.v_stride), kWhat);
    total.reserve(state_floats(rows, layout.v_stride), kWhat);
    begin.resize(std::max(begin.size(), static_cast<size_t>(rows)));
    end.resize(begin.size());
  }
};

CpuAttention::CpuAttention(const kernels::Isa& isa, ThreadPool& pool)
    : ops_(kernels::attention_ops(isa)),
      kv_ops_(kernels::kv_ops(isa)),
      elementwise_(kernels::elementwise_ops(isa)),
      pool_(pool),
      scratch_(static_cast<size_t>(pool.size())) {}

CpuAttention::~CpuAttention() = default;

void CpuAttention::rope_store(const CpuAttentionCall& call, CpuKv& kv, const float* cos,
                              const float* sin) {
  const AttentionSpec& spec = call.spec;
  const int64_t hd = spec.head_dim, half = hd / 2, group = group_of(spec);
  const std::vector<int32_t>& slots = call.plan.slots;
  // A run: adjacent rows whose slots are adjacent in one page. No two tasks share a page's head.
  std::vector<int32_t> run_begin;
  for (size_t t = 0; t < slots.size(); ++t) {
    if (t == 0 || slots[t] != slots[t - 1] + 1 || slots[t] % kPage == 0)
      run_begin.push_back(static_cast<int32_t>(t));
  }
  const auto n_runs = static_cast<int64_t>(run_begin.size());
  run_begin.push_back(static_cast<int32_t>(slots.size()));

  pool_.parallel_for(n_runs * spec.n_kv_heads, 1, [&](int64_t item, int64_t item_end, int) {
    for (; item < item_end; ++item) {
      const auto run = static_cast<size_t>(item / spec.n_kv_heads);
      const int64_t kv_head = item % spec.n_kv_heads;
      const int32_t begin = run_begin[run], end = run_begin[run + 1];
      const int64_t k_column = (spec.n_heads + kv_head) * hd;
      for (int64_t t = begin; t < end; ++t) {
        float* row = row_of(call.qkv, t);
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
          elementwise_.rope(row + head * hd, cos + t * half, sin + t * half, half);
        }
        elementwise_.rope(row + k_column, cos + t * half, sin + t * half, half);
      }
      const int32_t slot = slots[static_cast<size_t>(begin)];
      std::byte* page = kv.page(call.layer, slot / kPage, static_cast<int>(kv_head));
      const float* k = row_of(call.qkv, begin) + k_column;
      const float* v = k + int64_t{spec.n_kv_heads} * hd;
      kv_ops_.store_k(kv.layout(), page, slot % kPage, end - begin, k, call.qkv.stride);
      kv_ops_.store_v(kv.layout(), page, slot % kPage, end - begin, v, call.qkv.stride);
    }
  });
}

void CpuAttention::make_tiles(const CpuAttentionCall& call) {
  const BatchPlan& plan = call.plan;
  const int32_t tile_tokens = std::max(1, kTileRows / group_of(call.spec));
  tiles_.clear();
  for (size_t s = 0; s < plan.seq_context.size(); ++s) {
    for (int32_t begin = plan.seq_begin[s]; begin < plan.seq_begin[s + 1]; begin += tile_tokens) {
      const int32_t n_tokens = std::min(tile_tokens, plan.seq_begin[s + 1] - begin);
      const int32_t first = plan.positions[static_cast<size_t>(begin)];
      const int32_t last = plan.positions[static_cast<size_t>(begin + n_tokens - 1)];
      tiles_.push_back({static_cast<int32_t>(s), begin, n_tokens,
                        static_cast<int32_t>(first_visible(call.spec, first) / kPage),
                        last / kPage});
    }
  }
  // Long work first, so that no thread is left with it at the end.
  const auto work = [](const Tile& tile) {
    return int64_t{tile.last_page - tile.first_page + 1} * tile.n_tokens;
  };
  std::stable_sort(tiles_.begin(), tiles_.end(),
                   [&](const Tile& a, const Tile& b) { return work(a) > work(b); });
}

/// The rows of a tile that see a page, and the tokens that at least one of them sees. Fills begin
/// and end: what each row sees.
struct CpuAttention::Sight {
  int first_row, n_rows, first_token, end_token;

  Sight(const CpuAttentionCall& call, const Tile& tile, int page, Scratch& scratch) {
    const int group = group_of(call.spec), rows = tile.n_tokens * group;
    const int64_t page_first = int64_t{page} * kPage;
    int end_row = 0;
    first_row = rows;
    first_token = kPage;
    end_token = 0;
    for (int r = 0; r < rows; ++r) {
      const int64_t position = call.plan.positions[static_cast<size_t>(tile.row_begin + r / group)];
      const auto clamped = [&](int64_t p) {
        return static_cast<int>(std::clamp<int64_t>(p - page_first, 0, kPage));
      };
      const int begin = clamped(first_visible(call.spec, position)), end = clamped(position + 1);
      scratch.begin[static_cast<size_t>(r)] = begin;
      scratch.end[static_cast<size_t>(r)] = end;
      if (begin >= end) continue;
      first_row = std::min(first_row, r);
      end_row = r + 1;
      first_token = std::min(first_token, begin);
      end_token = std::max(end_token, end);
    }
    n_rows = std::max(0, end_row - first_row);
  }
};

void CpuAttention::attend_page(const CpuAttentionCall& call, const Tile& tile, int kv_head,
                               int page, Scratch& scratch, const SoftmaxRows& part) {
  const Sight sight(call, tile, page, scratch);
  if (sight.n_rows == 0) return;
  const kernels::KvLayout& layout = call.kv.layout();
  const int32_t* table =
      call.plan.pages.data() + call.plan.page_begin[static_cast<size_t>(tile.seq)];
  const std::byte* bytes = call.kv.page(call.layer, table[page], kv_head);
  const std::byte* next =
      page < tile.last_page ? call.kv.page(call.layer, table[page + 1], kv_head) : bytes;
  PageMatrix k{bytes, layout.type, kPage, next - bytes};
  PageMatrix v{bytes + layout.v_codes, layout.type, layout.v_stride, next - bytes};
  if (layout.type == kernels::KvType::kQ4_0 ||
      (layout.type != kernels::KvType::kF32 && sight.n_rows >= kWidenRows)) {
    kv_ops_.widen_k(layout, bytes, sight.end_token, k.ahead, scratch.k.data());
    kv_ops_.widen_v(layout, bytes, sight.first_token, sight.end_token, v.ahead, scratch.v.data());
    k = {scratch.k.data(), kernels::KvType::kF32, kPage};
    v = {scratch.v.data(), kernels::KvType::kF32, layout.v_stride};
  } else if (layout.n_blocks != 0) {
    kv_ops_.widen_scales(layout, bytes, k.ahead, scratch.k.data(), scratch.v.data());
    k.scales = scratch.k.data();
    v.scales = scratch.v.data();
    k.n_blocks = v.n_blocks = layout.n_blocks;
  }
  const int hd = layout.head_dim, n_tokens = round_up(sight.end_token, 16);
  const SoftmaxRows state = rows_from(part, sight.first_row);
  const float* q = scratch.q.data() + int64_t{sight.first_row} * hd;
  float* scores = scratch.scores.data();
  ops_.scores(q, hd, sight.n_rows, hd, k, n_tokens, scores);
  const int bad =
      ops_.softmax(scores, sight.n_rows, n_tokens, scratch.begin.data() + sight.first_row,
                   scratch.end.data() + sight.first_row, state, scratch.correction.data());
  if (bad >= 0) bad_row_.note(tile.row_begin + (sight.first_row + bad) / group_of(call.spec));
  ops_.values(scores, sight.n_rows, sight.first_token, sight.end_token, v,
              scratch.correction.data(), state);
}

void CpuAttention::attend_span(const CpuAttentionCall& call, const Tile& tile, int kv_head,
                               int span, Scratch& scratch, const SoftmaxRows& part) {
  clear(part, int64_t{tile.n_tokens} * group_of(call.spec));
  const int begin = std::max(tile.first_page, span * kSpanPages);
  const int end = std::min(tile.last_page + 1, (span + 1) * kSpanPages);
  for (int page = begin; page < end; ++page)
    attend_page(call, tile, kv_head, page, scratch, part);
}

namespace {

/// q of the tile's rows, times the scale: out[r * head_dim + d].
void gather_queries(const CpuAttentionCall& call, int32_t row_begin, int n_tokens, int kv_head,
                    float* out) {
  const int group = group_of(call.spec), hd = call.spec.head_dim;
  for (int t = 0; t < n_tokens; ++t) {
    const float* q = row_of(call.qkv, row_begin + t) + int64_t{kv_head} * group * hd;
    for (int i = 0; i < group * hd; ++i)
      *out++ = q[i] * call.spec.scale;
  }
}

}  // namespace

void CpuAttention::write_out(const CpuAttentionCall& call, const Tile& tile, int kv_head,
                             const SoftmaxRows& total, const Rows& o) {
  const int group = group_of(call.spec), hd = call.spec.head_dim;
  for (int r = 0; r < tile.n_tokens * group; ++r) {
    const int64_t row = tile.row_begin + r / group;
    float* out = row_of(o, row) + (int64_t{kv_head} * group + r % group) * hd;
    if (!ops_.finish(total.o + r * total.ld_o, total.l[r], hd, out)) bad_row_.note(row);
  }
}

/// A task is a tile of one KV head, all its spans.
void CpuAttention::run_whole(const CpuAttentionCall& call, const Rows& o) {
  const int64_t n_heads = call.spec.n_kv_heads;
  pool_.parallel_for(
      static_cast<int64_t>(tiles_.size()) * n_heads, 1, [&](int64_t item, int64_t end, int thread) {
        Scratch& scratch = scratch_[static_cast<size_t>(thread)];
        for (; item < end; ++item) {
          const Tile& tile = tiles_[static_cast<size_t>(item / n_heads)];
          const auto kv_head = static_cast<int>(item % n_heads);
          const int rows = tile.n_tokens * group_of(call.spec), ld_o = call.kv.layout().v_stride;
          const SoftmaxRows part = state_at(scratch.part.data(), rows, ld_o);
          const SoftmaxRows total = state_at(scratch.total.data(), rows, ld_o);
          clear(total, rows);
          gather_queries(call, tile.row_begin, tile.n_tokens, kv_head, scratch.q.data());
          for (int span = 0; span < tile.n_spans(); ++span) {
            attend_span(call, tile, kv_head, tile.first_span() + span, scratch, part);
            ops_.merge(rows, part, total);
          }
          write_out(call, tile, kv_head, total, o);
        }
      });
}

/// A task is one span; then the partial sums are joined in the order that run_whole uses.
void CpuAttention::run_split(const CpuAttentionCall& call, const Rows& o) {
  struct Task {
    const Tile* tile;
    int kv_head, span;
    int64_t offset;  // of its state in partials_
  };
  const int ld_o = call.kv.layout().v_stride, group = group_of(call.spec);
  std::vector<Task> tasks;
  std::vector<size_t> first_task;  // of each (tile, head)
  int64_t offset = 0;
  for (const Tile& tile : tiles_) {
    for (int head = 0; head < call.spec.n_kv_heads; ++head) {
      first_task.push_back(tasks.size());
      for (int span = 0; span < tile.n_spans(); ++span) {
        tasks.push_back({&tile, head, span, offset});
        offset += state_floats(int64_t{tile.n_tokens} * group, ld_o);
      }
    }
  }
  partials_.reserve(offset, "partial sums of attention");

  pool_.parallel_for(
      static_cast<int64_t>(tasks.size()), 1, [&](int64_t item, int64_t end, int thread) {
        Scratch& scratch = scratch_[static_cast<size_t>(thread)];
        for (; item < end; ++item) {
          const Task& task = tasks[static_cast<size_t>(item)];
          const Tile& tile = *task.tile;
          gather_queries(call, tile.row_begin, tile.n_tokens, task.kv_head, scratch.q.data());
          attend_span(
              call, tile, task.kv_head, tile.first_span() + task.span, scratch,
              state_at(partials_.data() + task.offset, int64_t{tile.n_tokens} * group, ld_o));
        }
      });
  pool_.parallel_for(
      static_cast<int64_t>(first_task.size()), 1, [&](int64_t item, int64_t end, int thread) {
        Scratch& scratch = scratch_[static_cast<size_t>(thread)];
        for (; item < end; ++item) {
          const Task* task = &tasks[first_task[static_cast<size_t>(item)]];
          const Tile& tile = *task->tile;
          const int rows = tile.n_tokens * group;
          const SoftmaxRows total = state_at(scratch.total.data(), rows, ld_o);
          clear(total, rows);
          for (int span = 0; span < tile.n_spans(); ++span) {
            ops_.merge(rows, state_at(partials_.data() + task[span].offset, rows, ld_o), total);
          }
          write_out(call, tile, task->kv_head, total, o);
        }
      });
}

int64_t CpuAttention::partial_floats(const CpuAttentionCall& call) const {
  int64_t out = 0;
  for (const Tile& tile : tiles_) {
    out += tile.n_spans() *
           state_floats(int64_t{tile.n_tokens} * group_of(call.spec), call.kv.layout().v_stride);
  }
  return out * call.spec.n_kv_heads;
}

int64_t CpuAttention::working_bytes(const StepSizes& step) const {
  if (pool_.size() == 1) return 0;
  // run() splits fewer than eight tiles per thread, and no step has more rows than this.
  const int64_t rows = std::min(step.rows * step.n_heads, int64_t{8} * pool_.size() * kTileRows);
  const int64_t n_spans = ceil_div(step.ctx, int64_t{kSpanPages} * kPage);
  return std::min(most_partial_floats(pool_.size()), n_spans * state_floats(rows, step.head_dim)) *
         int64_t{sizeof(float)};
}

int64_t CpuAttention::run(const CpuAttentionCall& call, const Rows& o) {
  make_tiles(call);
  if (tiles_.empty()) return -1;
  const int64_t group = group_of(call.spec),
                max_rows = std::max<int64_t>(1, kTileRows / group) * group;
  for (Scratch& scratch : scratch_)
    scratch.reserve(max_rows, call.kv.layout());
  bad_row_.clear();
  // Few tiles (decoding) would leave threads idle, or busy for unequal times.
  const int64_t n_items = static_cast<int64_t>(tiles_.size()) * call.spec.n_kv_heads;
  const bool split = pool_.size() > 1 && n_items < int64_t{8} * pool_.size() &&
                     partial_floats(call) <= most_partial_floats(pool_.size());
  split ? run_split(call, o) : run_whole(call, o);
  return bad_row_.row();
}

}  // namespace qw
