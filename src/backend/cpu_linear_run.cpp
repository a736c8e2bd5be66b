// Running a packed linear layer: round the activations once per form, then hand panels to threads.
//
// Level 4 (backend). Few rows go through gemv, many through expand and tile; for one output element
// both add the same numbers in the same order, so the split is invisible in the result.
#include <algorithm>
#include <cstring>

#include "backend/bad_row.h"
#include "backend/cpu_linear.h"
#include "backend/cpu_linear_packed.h"
#include "base/error.h"
#include "base/half.h"

namespace qw {

using kernels::ActBlock;
using kernels::ActivationForm;
using kernels::ActRows;
using kernels::ExpandedChunk;
using kernels::kBlock;
using kernels::kChunk;
using kernels::kLanes;
using kernels::kTileRows;

namespace {

/// Rows of x that a tile job takes: enough that expanding the weights is a small part of the work,
/// few enough that their activations stay in L2.
constexpr int64_t kTileJobRows = 264;
/// Rows of x up to which gemv is faster than expanding the weights for tiles: it keeps the codes of
/// a block in registers for eight rows, floats for four. Measured on Zen 5, November 2026: equal at
/// about 50 rows (int8) and 12 (floats).
constexpr int64_t few_rows(ActivationForm form) {
  return form == ActivationForm::kInt8 ? 40 : 8;
}
/// Panels that a gemv job takes at least; 16 rows of 1,024 columns at 4 bits are 9 KiB. Small, so
/// that threads end together; Zen 5, November 2026: 64 KiB decode 4 % slower, 8 KiB no faster.
constexpr int64_t kGemvJobBytes = 32 << 10;
constexpr int64_t kGemvJobPanels = 64;
/// Panels that a gemv of many rows takes at a time: those that L1 keeps from pass to pass.
constexpr int64_t kGemvPassBytes = 32 << 10;
/// Rows that a gemv takes in one pass (kernels/cpu/linear_int8.h, linear_float.h).
constexpr int64_t kGemvPassRows = 4;
/// Rows of x whose results a tile job writes at a time.
constexpr int64_t kStoreRows = 4 * kTileRows;
/// Work below this many activations is not worth waking the team for.
constexpr int64_t kSerialElems = 8192;

/// Scratch that grows and is kept.
struct Growing {
  AlignedBytes bytes;
  uint8_t* at_least(int64_t size) {
    if (bytes.size() < size) bytes = AlignedBytes(grown(size), "activations");
    return bytes.data();
  }
  static int64_t grown(int64_t size) { return size + size / 4; }
};

}  // namespace

struct LinearScratch {
  struct PerThread {
    std::unique_ptr<ExpandedChunk> chunk = std::make_unique<ExpandedChunk>();
    Growing sums, rows;
  };
  Growing gathered, rounded;
  std::vector<PerThread> threads;
};

CpuContext::CpuContext(const BackendOptions& options)
    : pool(options.n_threads > 0 ? options.n_threads : physical_cores()),
      isa(kernels::choose_isa(options.isa)),
      activations(options.activations),
      linear_scratch(std::make_unique<LinearScratch>()) {
  linear_scratch->threads.resize(static_cast<size_t>(pool.size()));
}

CpuContext::~CpuContext() = default;

namespace {

/// What a part wants its input to be; parts that want the same share it.
struct InputForm {
  ActivationForm form;
  bool round_to_bf16;
  const std::vector<int32_t>* columns;
  kernels::QuantizeFn quantize;
  bool operator==(const InputForm&) const = default;
};

InputForm form_of(const PackedPart& part) {
  return {part.kernel->form, part.round_to_bf16, part.columns.get(), part.kernel->quantize};
}

class Run {
 public:
  /// silu_mul null: plain products.
  Run(const PackedLinear& weight, const CpuLinearCall& call, SiluMulFn silu_mul,
      CpuContext& context)
      : weight_(weight),
        call_(call),
        silu_mul_(silu_mul),
        context_(context),
        scratch_(*context.linear_scratch) {}

  /// Returns the first row with a result that is not finite, or -1.
  int64_t gated() {
    x_ = prepare(form_of(weight_.parts[0]), false);
    gated_tiles();
    return bad_.row();
  }

  void all() {
    for (size_t begin = 0; begin < weight_.parts.size();) {
      const InputForm form = form_of(weight_.parts[begin]);
      size_t end = begin + 1;
      while (end < weight_.parts.size() && form_of(weight_.parts[end]) == form)
        ++end;
      const std::span<const PackedPart> parts(weight_.parts.data() + begin, end - begin);
      const bool has_gemv = std::all_of(parts.begin(), parts.end(), [](const PackedPart& part) {
        return part.kernel->gemv != nullptr;
      });
      const bool few = call_.m <= few_rows(form.form) && has_gemv;
      x_ = prepare(form, few);
      if (few) {
        gemv(parts);
      } else {
        for (const PackedPart& part : parts)
          tiles(part);
      }
      begin = end;
    }
  }

 private:
  /// Calls body(row) for every row of x, on the team if there is enough to do.
  template <class Body>
  void for_rows(const Body& body) {
    const auto chunk = [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r)
        body(r);
    };
    if (call_.m * weight_.k < kSerialElems || call_.m == 1) return chunk(0, call_.m, 0);
    context_.pool.parallel_for(call_.m, std::max<int64_t>(1, kSerialElems / weight_.k), chunk);
  }

  ActRows prepare(const InputForm& form, bool few) {
    const int64_t k = weight_.k, m = call_.m;
    const float* x = call_.x;
    int64_t stride = call_.ldx;
    if (form.columns != nullptr || form.round_to_bf16) {
      auto* gathered = reinterpret_cast<float*>(scratch_.gathered.at_least(m * k * 4));
      for_rows([&](int64_t r) { gather(form, call_.x + r * call_.ldx, gathered + r * k); });
      x = gathered;
      stride = k;
    }
    if (form.form == ActivationForm::kF32) return {x, stride, m};
    if (form.form == ActivationForm::kBf16) {
      const int64_t pairs = (k + 1) / 2;
      auto* out = reinterpret_cast<uint16_t*>(scratch_.rounded.at_least(m * pairs * 4));
      for_rows([&](int64_t r) {
        for (int64_t i = 0; i < k; ++i)
          out[r * 2 * pairs + i] = f32_to_bf16(x[r * stride + i]);
        if (k % 2 != 0) out[r * 2 * pairs + k] = 0;
      });
      return {out, pairs, m};
    }
    const int64_t n_blocks = (k + kBlock - 1) / kBlock;
    const int64_t rows = few ? m : round_up<int64_t>(m, kTileRows);
    auto* out = reinterpret_cast<ActBlock*>(
        scratch_.rounded.at_least(rows * n_blocks * int64_t{sizeof(ActBlock)}));
    if (few) {
      for_rows([&](int64_t r) { form.quantize({x + r * stride, k, 0, out + r * n_blocks, 1}); });
      return {out, n_blocks, m};
    }
    for_rows([&](int64_t r) {
      ActBlock* first = out + r / kTileRows * kTileRows * n_blocks + r % kTileRows;
      form.quantize({x + r * stride, k, 128, first, kTileRows});
    });
    return {out, kTileRows * n_blocks, m};
  }

  void gather(const InputForm& form, const float* from, float* to) const {
    for (int64_t i = 0; i < weight_.k; ++i) {
      const float value =
          from[form.columns != nullptr ? (*form.columns)[static_cast<size_t>(i)] : i];
      to[i] = form.round_to_bf16 ? bf16_to_f32(f32_to_bf16(value)) : value;
    }
  }

  /// y = sums + bias (+ y) for `n` outputs from row `row` of the weight, `rows` rows of x.
  void store(const float* sums, int64_t stride, int64_t first_x, int64_t rows, int64_t row,
             int64_t n) const {
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = sums + r * stride;
      float* y = call_.y + (first_x + r) * call_.ldy + row;
      const float* bias = call_.bias != nullptr ? call_.bias + row : nullptr;
      for (int64_t i = 0; i < n; ++i) {
        float value = from[i];
        if (bias != nullptr) value += bias[i];
        y[i] = call_.accumulate ? y[i] + value : value;
      }
    }
  }

  /// All parts in one loop over panels, so that the team is woken once.
  void gemv(std::span<const PackedPart> parts) {
    int64_t n_panels = 0, n_bytes = 0;
    for (const PackedPart& part : parts) {
      n_panels += part.matrix.n_panels;
      n_bytes += part.matrix.n_panels * part.matrix.panel_bytes;
    }
    const int64_t per_panel = std::max<int64_t>(1, n_bytes / n_panels);
    const int64_t grain = std::clamp<int64_t>(kGemvJobBytes / per_panel, 1, kGemvJobPanels);
    const int64_t span = call_.m <= kGemvPassRows
                             ? grain
                             : std::clamp<int64_t>(kGemvPassBytes / per_panel, 1, grain);
    context_.pool.parallel_for(n_panels, grain, [&](int64_t begin, int64_t end, int thread) {
      auto* out = reinterpret_cast<float*>(
          scratch_.threads[static_cast<size_t>(thread)].sums.at_least(call_.m * span * kLanes * 4));
      for (const PackedPart& part : parts) {
        const int64_t last = std::min(end, part.matrix.n_panels);
        for (int64_t first = std::max<int64_t>(begin, 0); first < last; first += span) {
          const int64_t count = std::min(span, last - first), row = first * kLanes;
          part.kernel->gemv({part.matrix, first, count, x_, out, span * kLanes});
          store(out, span * kLanes, 0, call_.m, part.first_row + row,
                std::min((first + count) * kLanes, part.n) - row);
        }
        begin -= part.matrix.n_panels;
        end -= part.matrix.n_panels;
      }
    });
  }

  /// Panels of one matrix that a tile job multiplies, and where in the expanded chunk they stand.
  struct Slice {
    const PackedPart* part;
    int64_t panel, n_panels, slot;
  };

  void tiles(const PackedPart& part) {
    const int64_t panels = part.kernel->tile_panels;
    tile_jobs(ceil_div(part.matrix.n_panels, panels), [&](int64_t group, const TileRows& rows) {
      const int64_t panel = group * panels, n = std::min(panels, part.matrix.n_panels - panel);
      const Slice slice{&part, panel, n, 0};
      const int64_t row = panel * kLanes, outputs = std::min((panel + n) * kLanes, part.n) - row;
      tile({&slice, 1}, rows, part.first_row + row, outputs);
    });
  }

  /// Half the panels of a tile are of the gate, half the same ones of the other matrix.
  void gated_tiles() {
    const PackedPart &gate = weight_.parts[0], &up = weight_.parts[1];
    const int64_t panels = gate.kernel->tile_panels / 2;
    tile_jobs(ceil_div(gate.matrix.n_panels, panels), [&](int64_t group, const TileRows& rows) {
      const int64_t panel = group * panels, n = std::min(panels, gate.matrix.n_panels - panel);
      const Slice slices[] = {{&gate, panel, n, 0}, {&up, panel, n, panels}};
      const int64_t row = panel * kLanes;
      tile(slices, rows, row, std::min((panel + n) * kLanes, gate.n) - row);
    });
  }

  /// Some rows of x, and the thread that multiplies them.
  struct TileRows {
    int64_t first, count;
    LinearScratch::PerThread& scratch;
  };

  /// body(group, rows) for every group of panels and every cut of the rows.
  template <class Body>
  void tile_jobs(int64_t n_groups, const Body& body) {
    // On many cores, cut the rows finer, so that everybody has work.
    int64_t n_cuts = ceil_div(call_.m, kTileJobRows);
    const int64_t wanted = 4 * context_.pool.size();
    if (n_groups * n_cuts < wanted)
      n_cuts = std::min(ceil_div(wanted, n_groups), ceil_div<int64_t>(call_.m, 24));
    const int64_t rows = round_up(ceil_div(call_.m, n_cuts), int64_t{kTileRows});
    n_cuts = ceil_div(call_.m, rows);
    context_.pool.parallel_for(n_groups * n_cuts, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t job = begin; job < end; ++job) {
        const int64_t first = job / n_groups * rows;
        body(job % n_groups, TileRows{first, std::min(rows, call_.m - first),
                                      scratch_.threads[static_cast<size_t>(thread)]});
      }
    });
  }

  /// Outputs [first_out, first_out + n_out) of some rows.
  void tile(std::span<const Slice> slices, const TileRows& rows, int64_t first_out, int64_t n_out) {
    const kernels::LinearKernel& kernel = *slices.front().part->kernel;
    const int64_t stride = kernel.tile_panels * kLanes;
    auto* sums = reinterpret_cast<float*>(rows.scratch.sums.at_least(rows.count * stride * 4));
    std::memset(sums, 0, static_cast<size_t>(rows.count * stride * 4));
    const bool grouped = kernel.form == ActivationForm::kInt8;
    ActRows x = rows_from(x_, rows.first, grouped);
    x.m = rows.count;
    const int64_t last = (weight_.k - 1) / kChunk * kChunk;
    for (int64_t column = 0; column < last; column += kChunk) {
      expand(slices, column, rows.scratch);
      kernel.tile({rows.scratch.chunk.get(), column, kChunk, x, sums});
    }
    // The last chunk goes some rows at a time, so that the place of their results is fetched while
    // they are computed, and their sums are still in L1 when they are written there.
    expand(slices, last, rows.scratch);
    fetch_results(rows.first, std::min(kStoreRows, rows.count), first_out, n_out);
    for (int64_t r = 0; r < rows.count; r += kStoreRows) {
      const int64_t count = std::min(kStoreRows, rows.count - r);
      fetch_results(rows.first + r + count, std::min(kStoreRows, rows.count - r - count), first_out,
                    n_out);
      ActRows some = rows_from(x, r, grouped);
      some.m = count;
      kernel.tile({rows.scratch.chunk.get(), last, weight_.k - last, some, sums + r * stride});
      if (silu_mul_ != nullptr) gate(sums + r * stride, stride, rows.first + r, count, n_out);
      store(sums + r * stride, stride, rows.first + r, count, first_out, n_out);
    }
  }

  /// The first half of each row of sums = silu(first half) * second half.
  void gate(float* sums, int64_t stride, int64_t first_x, int64_t rows, int64_t n) {
    for (int64_t r = 0; r < rows; ++r) {
      float* row = sums + r * stride;
      if (!silu_mul_(row, row + stride / 2, n)) bad_.note(first_x + r);
    }
  }

  void expand(std::span<const Slice> slices, int64_t column, LinearScratch::PerThread& scratch) {
    const int64_t n_columns = std::min<int64_t>(kChunk, weight_.k - column);
    for (const Slice& slice : slices) {
      if (slice.part->kernel->expand == nullptr) {
        expand_rows(*slice.part, slice.panel, column, n_columns, scratch);
        continue;
      }
      slice.part->kernel->expand({slice.part->matrix, slice.panel, slice.n_panels, column / kBlock,
                                  ceil_div<int64_t>(n_columns, kBlock), slice.slot,
                                  scratch.chunk.get()});
      fetch_next(*slice.part, slice.panel, slice.n_panels, column + n_columns);
    }
  }

  /// x without its first `r` rows; r is a multiple of kTileRows, so that it begins a group where
  /// activations lie in groups.
  static ActRows rows_from(const ActRows& x, int64_t r, bool grouped) {
    const int64_t bytes = grouped ? r / kTileRows * x.stride * int64_t{sizeof(ActBlock)}
                                  : r * x.stride * int64_t{sizeof(float)};
    return {static_cast<const uint8_t*>(x.rows) + bytes, x.stride, x.m - r};
  }

  /// Asks for the weights that will be expanded next: those behind `column`, or the beginning of
  /// the next panels. Hardware does not foresee them: the tile between takes too long.
  static void fetch_next(const PackedPart& part, int64_t panel, int64_t n_panels, int64_t column) {
    const kernels::PanelMatrix& w = part.matrix;
    const bool same = column / kBlock < w.n_blocks;
    const int64_t unit = same ? column / kBlock / w.unit_blocks : 0;
    const int64_t bytes =
        std::min(ceil_div<int64_t>(kernels::kChunkBlocks, w.unit_blocks) * w.unit_bytes,
                 w.panel_bytes - unit * w.unit_bytes);
    const int64_t first = same ? panel : panel + n_panels,
                  end = std::min(first + n_panels, w.n_panels);
    for (int64_t p = first; p < end; ++p) {
      const uint8_t* from = w.data + p * w.panel_bytes + unit * w.unit_bytes;
      for (int64_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(from + i, 0, 2);
    }
  }

  /// Asks for the cache lines of y that `n` outputs of `rows` rows will be written to.
  void fetch_results(int64_t first_x, int64_t rows, int64_t first_row, int64_t n) const {
    for (int64_t r = 0; r < rows; ++r) {
      const float* y = call_.y + (first_x + r) * call_.ldy + first_row;
      for (int64_t i = 0; i < n; i += kLanes)
        __builtin_prefetch(y + i, 1, 2);
    }
  }

  /// Published rows to the f32 chunk. Formats in blocks are decoded a chunk at a time; a
  /// GroupAffine gives whole rows only, which are decoded at the first chunk and kept.
  void expand_rows(const PackedPart& part, int64_t panel, int64_t column, int64_t n_columns,
                   LinearScratch::PerThread& scratch) const {
    const int64_t panels = part.kernel->tile_panels, k = weight_.k;
    const int64_t first = panel * kLanes, n_rows = std::min(panels * kLanes, part.n - first);
    const bool whole = std::holds_alternative<std::shared_ptr<const GroupAffine>>(part.source.data);
    const int64_t stride = whole ? k : n_columns;
    auto* rows = reinterpret_cast<float*>(scratch.rows.at_least(n_rows * stride * 4));
    if (!whole) {
      decode_columns(part.source, first, n_rows, column, n_columns, rows);
    } else if (column == 0) {
      part.source.decode_rows(first, n_rows, rows);
    }
    const float* from = whole ? rows + column : rows;
    auto* values = reinterpret_cast<float*>(scratch.chunk->values);
    for (int64_t c = 0; c < n_columns; ++c) {
      float* to = values + c * panels * kLanes;
      for (int64_t r = 0; r < n_rows; ++r)
        to[r] = from[r * stride + c];
      std::fill(to + n_rows, to + panels * kLanes, 0.0F);
    }
  }

  const PackedLinear& weight_;
  const CpuLinearCall& call_;
  const SiluMulFn silu_mul_;
  BadRow bad_;
  CpuContext& context_;
  LinearScratch& scratch_;
  ActRows x_{};
};

}  // namespace

void run_cpu_linear(const CpuLinear& weight, const CpuLinearCall& call, CpuContext& context) {
  if (call.m == 0) return;
  Run(static_cast<const PackedLinear&>(weight), call, nullptr, context).all();
}

int64_t linear_working_bytes(int64_t m, int64_t k, int n_threads) {
  const int64_t rows = round_up<int64_t>(m, kTileRows), n_blocks = ceil_div<int64_t>(k, kBlock);
  // Blocks of 8-bit activations take at least what bf16 pairs take.
  const int64_t gathered = m * k * int64_t{sizeof(float)},
                rounded = rows * n_blocks * int64_t{sizeof(ActBlock)};
  const int64_t lanes = int64_t{kernels::kMaxTilePanels} * kLanes * int64_t{sizeof(float)};
  const int64_t per_thread = int64_t{sizeof(ExpandedChunk)} +
                             Growing::grown(std::min(kTileJobRows, rows) * lanes) +
                             Growing::grown(k * lanes);
  return Growing::grown(gathered) + Growing::grown(rounded) + n_threads * per_thread;
}

bool can_run_gated(const CpuLinear& weight, int64_t m) {
  const std::vector<PackedPart>& parts = static_cast<const PackedLinear&>(weight).parts;
  if (parts.size() != 2 || parts[0].n != parts[1].n) return false;
  const kernels::LinearKernel& kernel = *parts[0].kernel;
  return parts[1].kernel == &kernel && form_of(parts[0]) == form_of(parts[1]) &&
         kernel.expand != nullptr && kernel.tile_panels % 2 == 0 && m > few_rows(kernel.form);
}

int64_t run_cpu_gated(const CpuLinear& weight, const CpuLinearCall& call, SiluMulFn silu_mul,
                      CpuContext& context) {
  QW_CHECK(can_run_gated(weight, call.m) && call.bias == nullptr && !call.accumulate,
           "gated product of {} rows", call.m);
  return Run(static_cast<const PackedLinear&>(weight), call, silu_mul, context).gated();
}

}  // namespace qw
