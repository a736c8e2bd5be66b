#include "quantize/gptq_solver.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/checked.h"
#include "quantize/grid_search.h"

namespace qw::quantize {

namespace {

constexpr int64_t kRows = kernels::kGridRows;

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

/// Up to 64 rows of W on their way through the blocks, transposed: a column of the panel is one
/// column of all rows, in the order of quantising.
class Panel {
 public:
  Panel(const LinearSource& w, const GptqFactor& factor, const kernels::MatrixOps& ops, int64_t row,
        AffineMatrix& out)
      : name_(w.name),
        factor_(factor),
        options_(factor.options()),
        ops_(ops),
        row_(row),
        n_rows_(std::min(kRows, w.n - row)),
        out_(out),
        kind_{options_.bits, options_.sym, options_.zero_from_0 ? 0.0F : 1.0F},
        columns_(at((factor.k() + ops.tile_rows) * kRows)),
        errors_(at(GptqFactor::kBlock * kRows)),
        codes_(errors_.size()),
        grids_(factor.groups().size()) {
    load(w);
  }

  /// Quantises all rows; the sum of the losses.
  double run() {
    const bool reference = options_.mode == GptqOptions::Mode::kReference;
    // AutoGPTQ finds a per-channel grid while the dead columns still have their weights.
    const bool before = reference && options_.group_size == -1;
    if (before) find_static_grids(reference);
    if (reference) drop_dead();
    if (factor_.is_static() && !before) find_static_grids(reference);
    double loss = 0;
    for (const GptqFactor::Block& block : factor_.blocks()) {
      if (!factor_.is_static()) find_grids(block, reference);
      loss += quantise(block);
      feed_rest(block);
    }
    store_grids();
    return loss / 2;
  }

 private:
  float* column(int64_t place) { return columns_.data() + place * kRows; }

  void load(const LinearSource& w) {
    const int64_t k = factor_.k();
    std::vector<float> rows(at(n_rows_ * k));
    w.decode_rows(row_, n_rows_, rows.data());
    for (int64_t i = 0; i < n_rows_ * k; ++i) {
      if (!std::isfinite(rows[at(i)])) {
        fail(ErrorKind::kInvalidArgument, "gptq",
             "{}: expected finite weights, got {} (row {}, column {})", printable(name_),
             rows[at(i)], row_ + i / k, i % k);
      }
    }
    for (int64_t place = 0; place < k; ++place) {
      const float* from = rows.data() + factor_.order()[at(place)];
      for (int64_t r = 0; r < n_rows_; ++r)
        column(place)[r] = from[r * k];
    }
  }

  void drop_dead() {
    for (int64_t place = 0; factor_.n_dead() > 0 && place < factor_.k(); ++place) {
      if (factor_.is_dead(factor_.order()[at(place)])) std::fill_n(column(place), kRows, 0.0F);
    }
  }

  void find_grid(const GptqFactor::Group& group, std::span<const GridChunk> chunks, Grid& out) {
    if (chunks.empty()) {
      std::vector<const float*> columns;
      for (const int32_t place : group.places)
        columns.push_back(column(place));
      reference_grid(kind_, columns, out);
    } else if (!search_grid(kind_, ops_, chunks, errors_.data(), out)) {
      fail(ErrorKind::kInvalidArgument, "gptq",
           "{}: expected weights whose scales f16 holds, got larger ones (rows {} to {})",
           printable(name_), row_, row_ + n_rows_ - 1);
    }
  }

  /// The grids of groups that start in this block: in kBetter that is where the block starts, in
  /// kReference its later columns do not know yet of the errors made since.
  void find_grids(const GptqFactor::Block& block, bool reference) {
    for (size_t g = 0; g < grids_.size(); ++g) {
      const GptqFactor::Group& group = factor_.groups()[g];
      if (group.places.front() < block.begin || group.places.front() >= block.end) continue;
      std::vector<GridChunk> chunks;
      for (const GptqFactor::Block& chunk : group.chunks)
        chunks.push_back({chunk.size(), column(chunk.begin), chunk.feedback});
      find_grid(group, reference ? std::span<const GridChunk>() : chunks, grids_[g]);
    }
  }

  void find_static_grids(bool reference) {
    std::vector<float> gathered;
    for (size_t g = 0; g < grids_.size(); ++g) {
      const GptqFactor::Group& group = factor_.groups()[g];
      std::vector<GridChunk> chunks;
      if (!reference) {
        gathered.resize(group.places.size() * kRows);
        for (size_t i = 0; i < group.places.size(); ++i)
          std::copy_n(column(group.places[i]), kRows, gathered.data() + i * kRows);
        for (const GptqFactor::Block& chunk : group.chunks)
          chunks.push_back({chunk.size(), gathered.data() + chunk.begin * kRows, chunk.feedback});
      }
      find_grid(group, chunks, grids_[g]);
    }
  }

  double quantise(const GptqFactor::Block& block) {
    const int64_t size = block.size();
    scales_.resize(at(size * kRows));
    zeros_.resize(scales_.size());
    for (int64_t i = 0; i < size; ++i) {
      const Grid& grid = grids_[at(group_at(block.begin + i))];
      std::copy_n(grid.scale, kRows, scales_.data() + i * kRows);
      std::copy_n(grid.zero, kRows, zeros_.data() + i * kRows);
    }
    float loss[kRows];
    ops_.quantise_columns({size, column(block.begin), block.feedback, size, scales_.data(),
                           zeros_.data(), kRows, kind_.highest(), codes_.data(), errors_.data(),
                           loss});
    for (int64_t i = 0; i < size; ++i) {
      const int64_t to = factor_.order()[at(block.begin + i)];
      for (int64_t r = 0; r < n_rows_; ++r) {
        out_.code_values[at((row_ + r) * out_.k + to)] =
            static_cast<uint8_t>(codes_[at(i * kRows + r)]);
      }
    }
    return std::accumulate(loss, loss + n_rows_, 0.0);
  }

  /// The group of the column at a place, which groups of places and of columns tell differently.
  int64_t group_at(int64_t place) const {
    const bool of_places = options_.desc_act && !factor_.is_static();
    return (of_places ? place : factor_.order()[at(place)]) / factor_.group_size();
  }

  /// Columns behind the block += errors * U. Half of the errors at a time, so that they stay in L1.
  void feed_rest(const GptqFactor::Block& block) {
    const int64_t step = std::max<int64_t>(32, ops_.tile_cols), size = block.size();
    for (int64_t half = 0; half < kRows; half += step) {
      const float* tile = block.rest;
      for (int64_t place = block.end; place < factor_.k(); place += ops_.tile_rows) {
        for (int64_t r = half; r < half + step; r += ops_.tile_cols) {
          ops_.multiply_tile(tile, errors_.data() + r, kRows, size, 1.0F, column(place) + r, kRows);
        }
        tile += ops_.tile_rows * size;
      }
    }
  }

  void store_grids() {
    for (int64_t r = 0; r < n_rows_; ++r) {
      for (size_t g = 0; g < grids_.size(); ++g) {
        const size_t to = at((row_ + r) * out_.n_groups) + g;
        out_.scale_values[to] = grids_[g].scale[r];
        out_.zero_values[to] = grids_[g].zero[r];
      }
    }
  }

  const std::string& name_;
  const GptqFactor& factor_;
  const GptqOptions& options_;
  const kernels::MatrixOps& ops_;
  int64_t row_, n_rows_;
  AffineMatrix& out_;
  GridKind kind_;
  std::vector<float> columns_;  // [k + padding][kRows]
  std::vector<float> errors_, codes_, scales_, zeros_;
  std::vector<Grid> grids_;
};

}  // namespace

GptqResult gptq_quantise(const LinearSource& w, const GptqFactor& factor, const MatrixTeam& team) {
  const int64_t k = factor.k(), n = w.n;
  if (w.k != k) {
    fail(ErrorKind::kInvalidArgument, "gptq", "{}: expected {} input features, got {}",
         printable(w.name), k, w.k);
  }
  auto matrix = std::make_shared<AffineMatrix>();
  matrix->n = n;
  matrix->k = k;
  matrix->bits = factor.options().bits;
  matrix->group_size = factor.group_size();
  matrix->n_groups = static_cast<int64_t>(factor.groups().size());
  if (factor.options().desc_act && !factor.is_static()) {
    matrix->group_of.resize(at(k));
    for (int64_t place = 0; place < k; ++place) {
      matrix->group_of[at(factor.order()[at(place)])] =
          static_cast<int32_t>(place / factor.group_size());
    }
  }
  matrix->code_values.resize(at(n * k));
  matrix->scale_values.resize(at(n * matrix->n_groups));
  matrix->zero_values.resize(matrix->scale_values.size());
  std::vector<double> losses(at(ceil_div(n, kRows)));
  team.for_each(static_cast<int64_t>(losses.size()), [&](int64_t index) {
    losses[at(index)] = Panel(w, factor, *team.ops, index * kRows, *matrix).run();
  });
  GptqResult out;
  out.loss = std::accumulate(losses.begin(), losses.end(), 0.0);
  out.matrix = matrix;
  out.source = source_of(w.name, std::move(matrix));
  return out;
}

}  // namespace qw::quantize
