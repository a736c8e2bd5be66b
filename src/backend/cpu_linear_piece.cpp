#include "backend/cpu_linear_piece.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/half.h"

namespace qw {

using kernels::ActBlock;
using kernels::ActivationForm;
using kernels::ActRows;
using kernels::kBlock;
using kernels::kChunk;
using kernels::kLanes;
using kernels::kTileRows;

namespace {

/// Rows of x that a tile job takes: enough that expanding the weights is a small part of the work,
/// few enough that their activations stay in L2.
constexpr int64_t kTileJobRows = 264;
/// Rows that a tile job takes at least, however many threads wait.
constexpr int64_t kLeastTileJobRows = 24;
/// Panels that a gemv job takes at least; 16 rows of 1,024 columns at 4 bits are 9 KiB. Small, so
/// that threads end together; Zen 5, November 2026: 64 KiB decode 4 % slower, 8 KiB no faster.
constexpr int64_t kGemvJobBytes = 32 << 10;
constexpr int64_t kGemvJobPanels = 64;
/// Panels that a gemv of many rows takes at a time: those that L1 keeps from pass to pass.
constexpr int64_t kGemvPassBytes = 32 << 10;
/// Rows of x that a tile takes at a time.
constexpr int64_t kStepRows = int64_t{4} * kTileRows;

/// x without its first `r` rows; r is a multiple of kTileRows, so that it begins a group where
/// activations lie in groups.
ActRows rows_from(const ActRows& x, int64_t r, bool grouped) {
  const int64_t bytes = grouped ? r / kTileRows * x.stride * int64_t{sizeof(ActBlock)}
                                : r * x.stride * int64_t{sizeof(float)};
  return {static_cast<const uint8_t*>(x.rows) + bytes, x.stride, x.m - r};
}

}  // namespace

int64_t TileScratch::working_bytes(int64_t m, int64_t k) {
  const int64_t rows = round_up<int64_t>(m, kTileRows);
  const int64_t lanes = int64_t{kernels::kMaxTilePanels} * kLanes * int64_t{sizeof(float)};
  return int64_t{sizeof(kernels::ExpandedChunk)} +
         Growing::grown(std::min(kTileJobRows, rows) * lanes) + Growing::grown(k * lanes);
}

LinearPiece::InputForm LinearPiece::form_of(const PackedPart& part) {
  return {part.kernel->form, part.round_to_bf16, part.columns.get(), part.kernel->quantize};
}

LinearPiece::LinearPiece(const PackedLinear& weight, std::span<const PackedPart> parts,
                         const CpuLinearCall& call, LinearGate gate)
    : parts_(parts),
      call_(call),
      gate_(gate),
      form_(form_of(parts.front())),
      k_(weight.k),
      few_(!is_gated() && std::all_of(parts.begin(), parts.end(), [&](const PackedPart& part) {
        return part.kernel->gemv != nullptr && call.m <= part.kernel->few_rows;
      })) {
  x_ = {call.x, call.ldx, call.m};
}

// ---- input ------------------------------------------------------------------------------------

int64_t LinearPiece::n_blocks() const noexcept {
  return ceil_div<int64_t>(k_, kBlock);
}

int64_t LinearPiece::gathered_bytes() const noexcept {
  return gathers() ? call_.m * k_ * int64_t{sizeof(float)} : 0;
}

int64_t LinearPiece::rounded_bytes() const noexcept {
  switch (form_.form) {
    case ActivationForm::kF32:
      return 0;
    case ActivationForm::kBf16:
      return call_.m * ceil_div<int64_t>(k_, 2) * 4;
    case ActivationForm::kInt8:
      return (few_ ? call_.m : round_up<int64_t>(call_.m, kTileRows)) * n_blocks() *
             int64_t{sizeof(ActBlock)};
  }
  return 0;
}

void LinearPiece::place_input(uint8_t* gathered, uint8_t* rounded) {
  gathered_ = reinterpret_cast<float*>(gathered);
  rounded_ = rounded;
  if (gathers()) x_ = {gathered, k_, call_.m};
  if (form_.form == ActivationForm::kBf16) x_ = {rounded, ceil_div<int64_t>(k_, 2), call_.m};
  if (form_.form == ActivationForm::kInt8)
    x_ = {rounded, few_ ? n_blocks() : kTileRows * n_blocks(), call_.m};
}

void LinearPiece::prepare_row(int64_t r) const {
  const float* x = call_.x + r * call_.ldx;
  if (gathers()) {
    float* to = gathered_ + r * k_;
    for (int64_t i = 0; i < k_; ++i) {
      const float value =
          x[form_.columns != nullptr ? (*form_.columns)[static_cast<size_t>(i)] : i];
      to[i] = form_.round_to_bf16 ? bf16_to_f32(f32_to_bf16(value)) : value;
    }
    x = to;
  }
  if (form_.form == ActivationForm::kBf16) {
    auto* to = reinterpret_cast<uint16_t*>(rounded_) + r * 2 * x_.stride;
    for (int64_t i = 0; i < k_; ++i)
      to[i] = f32_to_bf16(x[i]);
    if (k_ % 2 != 0) to[k_] = 0;
  } else if (form_.form == ActivationForm::kInt8) {
    auto* out = reinterpret_cast<ActBlock*>(rounded_);
    if (few_) {
      form_.quantize({x, k_, false, out + r * x_.stride, 1});
    } else {
      form_.quantize({x, k_, true, out + r / kTileRows * x_.stride + r % kTileRows, kTileRows});
    }
  }
}

// ---- jobs -------------------------------------------------------------------------------------

int64_t LinearPiece::panels_of_group(const PackedPart& part) const noexcept {
  return part.kernel->tile_panels / (is_gated() ? 2 : 1);
}

int64_t LinearPiece::groups_of(const PackedPart& part) const noexcept {
  return ceil_div(part.matrix.n_panels, panels_of_group(part));
}

void LinearPiece::plan_jobs(int64_t wanted_jobs) {
  if (few_) {
    int64_t n_panels = 0, n_bytes = 0, pass_rows = call_.m;
    for (const PackedPart& part : parts_) {
      pass_rows = std::min<int64_t>(pass_rows, part.kernel->gemv_rows);
      n_panels += part.matrix.n_panels;
      n_bytes += part.matrix.n_panels * part.matrix.panel_bytes;
    }
    const int64_t per_panel = std::max<int64_t>(1, n_bytes / std::max<int64_t>(1, n_panels));
    grain_ = std::clamp<int64_t>(kGemvJobBytes / per_panel, 1, kGemvJobPanels);
    span_ =
        call_.m == pass_rows ? grain_ : std::clamp<int64_t>(kGemvPassBytes / per_panel, 1, grain_);
    n_jobs_ = ceil_div(n_panels, grain_);
    return;
  }
  n_groups_ = 0;
  for (const PackedPart& part : parts_) {
    n_groups_ += groups_of(part);
    if (is_gated()) break;  // the other part goes along
  }
  // On many cores, cut the rows finer, so that everybody has work.
  int64_t n_cuts = ceil_div(call_.m, kTileJobRows);
  if (n_groups_ > 0 && n_groups_ * n_cuts < wanted_jobs)
    n_cuts = std::min(ceil_div(wanted_jobs, n_groups_), ceil_div(call_.m, kLeastTileJobRows));
  job_rows_ = round_up(ceil_div(call_.m, n_cuts), int64_t{kTileRows});
  n_jobs_ = n_groups_ * ceil_div(call_.m, job_rows_);
}

void LinearPiece::run_job(int64_t job, TileScratch& scratch) const {
  if (few_) {
    gemv_job(job, scratch);
  } else {
    tile_job(job, scratch);
  }
}

/// Panels of all parts in one row, grain_ of them. Plain products go straight to where they belong.
void LinearPiece::gemv_job(int64_t job, TileScratch& scratch) const {
  const bool plain = call_.bias == nullptr && !call_.accumulate;
  int64_t begin = job * grain_, end = begin + grain_;
  auto* out = reinterpret_cast<float*>(scratch.sums.at_least(call_.m * span_ * kLanes * 4));
  for (const PackedPart& part : parts_) {
    const int64_t last = std::min(end, part.matrix.n_panels);
    for (int64_t first = std::max<int64_t>(begin, 0); first < last; first += span_) {
      const int64_t count = std::min(span_, last - first), row = first * kLanes;
      const int64_t n = std::min((first + count) * kLanes, part.n) - row;
      if (plain && n == count * kLanes) {
        float* y = call_.y + part.first_row + row;
        part.kernel->gemv({part.matrix, first, count, x_, y, call_.ldy});
        continue;
      }
      part.kernel->gemv({part.matrix, first, count, x_, out, span_ * kLanes});
      store(*part.kernel, out, span_ * kLanes, {0, call_.m}, part.first_row + row, n);
    }
    begin -= part.matrix.n_panels;
    end -= part.matrix.n_panels;
  }
}

/// A group of panels by a range of rows. Gated: half the panels of a tile are of the gate, half the
/// same ones of the other matrix.
void LinearPiece::tile_job(int64_t job, TileScratch& scratch) const {
  int64_t group = job % n_groups_;
  const int64_t first = job / n_groups_ * job_rows_;
  const RowRange rows{first, std::min(job_rows_, call_.m - first)};
  const PackedPart* part = parts_.data();
  for (; group >= groups_of(*part); ++part)
    group -= groups_of(*part);
  const int64_t panels = panels_of_group(*part);
  const int64_t panel = group * panels, n = std::min(panels, part->matrix.n_panels - panel);
  const int64_t row = panel * kLanes, outputs = std::min((panel + n) * kLanes, part->n) - row;
  const Slice slices[] = {{part, panel, n, 0}, {part + 1, panel, n, panels}};
  if (is_gated()) {
    tile(slices, rows, row, outputs, scratch);
  } else {
    tile({slices, 1}, rows, part->first_row + row, outputs, scratch);
  }
}

/// Outputs [first_out, first_out + n_out) of some rows.
void LinearPiece::tile(std::span<const Slice> slices, const RowRange& rows, int64_t first_out,
                       int64_t n_out, TileScratch& scratch) const {
  const kernels::LinearKernel& kernel = *slices.front().part->kernel;
  const int64_t stride = int64_t{kernel.tile_panels} * kLanes;
  auto* sums = reinterpret_cast<float*>(scratch.sums.at_least(rows.count * stride * 4));
  const bool grouped = kernel.form == ActivationForm::kInt8;
  // Some rows at a time, so that what is needed next is fetched while they are computed: weights,
  // and behind the last columns the place of their results, whose sums are then still in L1.
  const int64_t n_steps = ceil_div(rows.count, kStepRows);
  const auto step_rows = [&](int64_t step) {
    const int64_t r = step * kStepRows;
    return RowRange{rows.first + r, std::clamp<int64_t>(rows.count - r, 0, kStepRows)};
  };
  for (int64_t column = 0; column < k_; column += kChunk) {
    const int64_t n_columns = std::min<int64_t>(kChunk, k_ - column);
    const bool last = column + kChunk >= k_;
    expand(slices, column, scratch);
    if (last) fetch_results(step_rows(0), first_out, n_out);
    for (int64_t step = 0; step < n_steps; ++step) {
      for (const Slice& slice : slices)
        fetch_weights(slice, column + n_columns, step, n_steps);
      if (last) fetch_results(step_rows(step + 1), first_out, n_out);
      const RowRange some = step_rows(step);
      float* to = sums + step * kStepRows * stride;
      ActRows x = rows_from(x_, some.first, grouped);
      x.m = some.count;
      kernel.tile({scratch.chunk.get(), column == 0, column, n_columns, x, to});
      if (!last) continue;
      if (is_gated()) gate_rows(to, stride, some, n_out);
      store(kernel, to, stride, some, first_out, n_out);
    }
  }
}

/// The first half of each row of sums = silu(first half) * second half.
void LinearPiece::gate_rows(float* sums, int64_t stride, const RowRange& rows, int64_t n) const {
  for (int64_t r = 0; r < rows.count; ++r) {
    float* row = sums + r * stride;
    if (!gate_.silu_mul(row, row + stride / 2, n)) gate_.bad->note(rows.first + r);
  }
}

/// y = sums + bias (+ y) for `n` outputs from row `row` of the weight.
void LinearPiece::store(const kernels::LinearKernel& kernel, const float* sums, int64_t stride,
                        const RowRange& rows, int64_t row, int64_t n) const {
  const float* bias = call_.bias != nullptr ? call_.bias + row : nullptr;
  float* y = call_.y + rows.first * call_.ldy + row;
  kernel.store({sums, stride, rows.count, n, bias, call_.accumulate, y, call_.ldy});
}

void LinearPiece::expand(std::span<const Slice> slices, int64_t column,
                         TileScratch& scratch) const {
  const int64_t n_columns = std::min<int64_t>(kChunk, k_ - column);
  for (const Slice& slice : slices) {
    if (slice.part->kernel->expand == nullptr) {
      expand_rows(*slice.part, slice.panel, column, n_columns, scratch);
      continue;
    }
    slice.part->kernel->expand({slice.part->matrix, slice.panel, slice.n_panels, column / kBlock,
                                ceil_div<int64_t>(n_columns, kBlock), slice.slot,
                                scratch.chunk.get()});
  }
}

/// Published rows to the f32 chunk. Formats in blocks are decoded a chunk at a time; a GroupAffine
/// and CodebookBlocks give whole rows only, which are decoded at the first chunk and kept.
void LinearPiece::expand_rows(const PackedPart& part, int64_t panel, int64_t column,
                              int64_t n_columns, TileScratch& scratch) const {
  const int64_t panels = part.kernel->tile_panels;
  const int64_t first = panel * kLanes, n_rows = std::min(panels * kLanes, part.n - first);
  const bool whole = !std::holds_alternative<DenseRows>(part.source.data) &&
                     !std::holds_alternative<BlockRows>(part.source.data);
  const int64_t stride = whole ? k_ : n_columns;
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

/// Asks for one of n_parts of the weights that will be expanded next: those behind `column`, or the
/// beginning of the next panels. Hardware does not foresee them: the tile between takes too long.
/// All at once they would be more than a core can wait for.
void LinearPiece::fetch_weights(const Slice& slice, int64_t column, int64_t part,
                                int64_t n_parts) const {
  const kernels::PanelMatrix& w = slice.part->matrix;
  if (slice.part->kernel->expand == nullptr) return;
  constexpr int64_t kLine = 64;
  const bool same = column < w.k;
  const int64_t unit = same ? column / kBlock / w.unit_blocks : 0;
  const int64_t bytes =
      std::min(ceil_div<int64_t>(kernels::kChunkBlocks, w.unit_blocks) * w.unit_bytes,
               w.panel_bytes - unit * w.unit_bytes);
  const int64_t lines = ceil_div(bytes, kLine);
  const int64_t begin = lines * part / n_parts * kLine, end = lines * (part + 1) / n_parts * kLine;
  const int64_t first = same ? slice.panel : slice.panel + slice.n_panels,
                last = std::min(first + slice.n_panels, w.n_panels);
  for (int64_t p = first; p < last; ++p) {
    const uint8_t* from = w.data + p * w.panel_bytes + unit * w.unit_bytes;
    for (int64_t i = begin; i < end; i += kLine)
      __builtin_prefetch(from + i);  // the last of them are used so soon that L1 keeps them
  }
}

/// Asks for the cache lines of y that `n` outputs of some rows will be written to.
void LinearPiece::fetch_results(const RowRange& rows, int64_t first_row, int64_t n) const {
  for (int64_t r = 0; r < rows.count; ++r) {
    const float* y = call_.y + (rows.first + r) * call_.ldy + first_row;
    for (int64_t i = 0; i < n; i += kLanes)
      __builtin_prefetch(y + i, 1, 2);
  }
}

}  // namespace qw
