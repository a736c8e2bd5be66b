#include "quantize/gptq_solver.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "base/checked.h"
#include "quant/code_grid.h"
#include "quantize/grid_search.h"

namespace qw::quantize {

namespace {

constexpr int64_t kRows = kernels::kGridRows;

constexpr size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

/// Up to 64 rows of W on their way through the blocks, transposed: a column of the panel is one
/// column of all rows, in the order of quantising.
class Panel {
 protected:
  Panel(const LinearSource& w, const GptqFactor& factor, const kernels::MatrixOps& ops, int64_t row)
      : name_(w.name),
        factor_(factor),
        ops_(ops),
        row_(row),
        n_rows_(std::min(kRows, w.n - row)),
        columns_(at((factor.k() + ops.tile_rows) * kRows)),
        errors_(at(GptqFactor::kBlock * kRows)) {
    load(w);
  }

  float* column(int64_t place) { return columns_.data() + place * kRows; }

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

  const std::string& name_;
  const GptqFactor& factor_;
  const kernels::MatrixOps& ops_;
  int64_t row_, n_rows_;
  std::vector<float> columns_;  // [k + padding][kRows]
  std::vector<float> errors_;

 private:
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
};

/// Rows that get grids of their own.
class QuantisedPanel : Panel {
 public:
  QuantisedPanel(const LinearSource& w, const GptqFactor& factor, const kernels::MatrixOps& ops,
                 int64_t row, AffineMatrix& out)
      : Panel(w, factor, ops, row),
        options_(factor.options()),
        out_(out),
        kind_{options_.bits, options_.sym, options_.zero_from_0 ? 0.0F : 1.0F},
        codes_(errors_.size()),
        grids_(factor.groups().size()) {}

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

  void store_grids() {
    for (int64_t r = 0; r < n_rows_; ++r) {
      for (size_t g = 0; g < grids_.size(); ++g) {
        const size_t to = at((row_ + r) * out_.n_groups) + g;
        out_.scale_values[to] = grids_[g].scale[r];
        out_.zero_values[to] = grids_[g].zero[r];
      }
    }
  }

  const GptqOptions& options_;
  AffineMatrix& out_;
  GridKind kind_;
  std::vector<float> codes_, scales_, zeros_;
  std::vector<Grid> grids_;
};

/// Rows whose grids are there.
class RecodedPanel : Panel {
 public:
  RecodedPanel(const LinearSource& w, const LinearSource& on, const GridLevels& levels,
               const GptqFactor& factor, const kernels::MatrixOps& ops, int64_t row)
      : Panel(w, factor, ops, row),
        levels_(levels),
        steps_(at(factor.k() * kRows), 1.0F),
        bases_(steps_.size()),
        zeros_(at(GptqFactor::kBlock * kRows)),
        code_floats_(zeros_.size()),
        kept_(steps_.size()),
        plain_(steps_.size()),
        found_(steps_.size()) {
    load_grid(on);
    find_plain();
  }

  struct Figures {
    double loss = 0, kept_loss = 0, nearest_loss = 0;
    int64_t n_changed = 0, n_beyond = 0;
  };

  /// codes[r * k + i] of the panel's first row on.
  Figures run(uint8_t* codes) {
    const std::vector<float> weights = columns_;
    const auto start = [&] { columns_ = weights; };
    const Losses kept = losses_of(kept_);
    start();
    const Losses plain = losses_of(plain_);
    start();
    const Losses found = find_codes();
    Figures out;
    out.n_beyond = n_beyond_;
    for (int64_t r = 0; r < n_rows_; ++r) {
      const double least = std::min({kept[at(r)], plain[at(r)], found[at(r)]});
      // In this order, so that where nothing is gained nothing changes.
      const std::vector<uint8_t>& best = kept[at(r)] == least    ? kept_
                                         : plain[at(r)] == least ? plain_
                                                                 : found_;
      out.kept_loss += kept[at(r)] / 2;
      out.nearest_loss += plain[at(r)] / 2;
      out.loss += least / 2;
      for (int64_t place = 0; place < factor_.k(); ++place) {
        const uint8_t code = best[at(place * kRows + r)];
        codes[(row_ + r) * factor_.k() + factor_.order()[at(place)]] = code;
        out.n_changed += code != kept_[at(place * kRows + r)] ? 1 : 0;
      }
    }
    return out;
  }

 private:
  using Losses = std::array<double, at(kRows)>;

  void load_grid(const LinearSource& on) {
    const int64_t k = factor_.k();
    GridRows rows;
    read_grid(on, row_, n_rows_, rows);
    for (int64_t place = 0; place < k; ++place) {
      const int64_t from = factor_.order()[at(place)];
      for (int64_t r = 0; r < n_rows_; ++r) {
        const size_t to = at(place * kRows + r), in = at(r * k + from);
        kept_[to] = rows.codes[in];
        steps_[to] = rows.steps[in];
        bases_[to] = rows.bases[in];
        columns_[to] -= rows.bases[in];  // what is left is codes * steps
      }
    }
  }

  float value_of(size_t index, uint8_t code) const {
    if (levels_.is_affine) return steps_[index] * static_cast<float>(code);
    return rounded_to(levels_.value_type, steps_[index] * levels_.values[code]);
  }
  /// All codes of a step of 0 are the same: the one that is there.
  uint8_t nearest(size_t index, float value) const {
    if (steps_[index] == 0) return kept_[index];
    const float x = value / steps_[index];
    if (levels_.is_affine) {
      return static_cast<uint8_t>(
          std::clamp(std::nearbyint(x), 0.0F, static_cast<float>(levels_.n - 1)));
    }
    uint8_t best = kept_[index];  // of E2M1's two zeros the one that is there
    float least = std::fabs(x - levels_.values[best]);
    for (int code = 0; code < levels_.n; ++code) {
      const float off = std::fabs(x - levels_.values[at(code)]);
      if (off >= least) continue;
      least = off;
      best = static_cast<uint8_t>(code);
    }
    return best;
  }

  void find_plain() {
    const auto [low, high] = std::minmax_element(levels_.values.begin(), levels_.values.end());
    const float lowest = levels_.is_affine ? 0.0F : *low;
    const float highest = levels_.is_affine ? static_cast<float>(levels_.n - 1) : *high;
    const float half = levels_.is_affine ? 0.5F : (highest - lowest) / 30;
    for (int64_t place = 0; place < factor_.k(); ++place) {
      for (int64_t r = 0; r < n_rows_; ++r) {
        const size_t index = at(place * kRows + r);
        plain_[index] = nearest(index, columns_[index]);
        if (steps_[index] == 0) continue;
        const float x = columns_[index] / steps_[index];
        n_beyond_ += x < lowest - half || x > highest + half ? 1 : 0;
      }
    }
  }

  /// As MatrixOps::quantise_columns, with the codes that choose(index, fed back value) gives.
  template <typename Choose>
  void code_columns(const GptqFactor::Block& block, const Choose& choose, Losses& loss) {
    const int64_t size = block.size();
    std::array<float, at(kRows)> v;
    for (int64_t i = 0; i < size; ++i) {
      const float* u = block.feedback + i * size;
      std::copy_n(column(block.begin + i), kRows, v.begin());
      for (int64_t j = 0; j < i; ++j) {
        const float by = u[j];
        const float* errors = errors_.data() + j * kRows;
        for (size_t r = 0; r < v.size(); ++r)
          v[r] += errors[r] * by;
      }
      float* errors = errors_.data() + i * kRows;
      for (size_t r = 0; r < v.size(); ++r) {
        const size_t index = at((block.begin + i) * kRows) + r;
        errors[r] = (value_of(index, choose(index, v[r])) - v[r]) / u[i];
        loss[r] += static_cast<double>(errors[r]) * static_cast<double>(errors[r]);
      }
    }
  }

  Losses losses_of(const std::vector<uint8_t>& codes) {
    Losses loss{};
    for (const GptqFactor::Block& block : factor_.blocks()) {
      code_columns(
          block, [&](size_t index, float) { return codes[index]; }, loss);
      feed_rest(block);
    }
    return loss;
  }

  Losses find_codes() {
    Losses loss{};
    for (const GptqFactor::Block& block : factor_.blocks()) {
      if (levels_.is_affine) {
        find_affine(block, loss);
      } else {
        const auto choose = [&](size_t index, float v) {
          return found_[index] = nearest(index, v);
        };
        code_columns(block, choose, loss);
      }
      feed_rest(block);
    }
    return loss;
  }

  void find_affine(const GptqFactor::Block& block, Losses& loss) {
    const size_t begin = at(block.begin * kRows), count = at(block.size() * kRows);
    std::array<float, at(kRows)> sums;
    std::vector<float> steps(steps_.begin() + block.begin * kRows,
                             steps_.begin() + block.end * kRows);
    // The kernel divides by them; with this one every code is worth 0, too.
    std::ranges::replace(steps, 0.0F, kLeastStep);
    ops_.quantise_columns({block.size(), column(block.begin), block.feedback, block.size(),
                           steps.data(), zeros_.data(), kRows, static_cast<float>(levels_.n - 1),
                           code_floats_.data(), errors_.data(), sums.data()});
    for (size_t i = 0; i < count; ++i) {
      found_[begin + i] =
          steps_[begin + i] == 0 ? kept_[begin + i] : static_cast<uint8_t>(code_floats_[i]);
    }
    for (size_t r = 0; r < loss.size(); ++r)
      loss[r] += static_cast<double>(sums[r]);
  }

  static constexpr float kLeastStep = 1e-30F;

  const GridLevels& levels_;
  std::vector<float> steps_, bases_;           // [k][kRows]
  std::vector<float> zeros_, code_floats_;     // of a block
  std::vector<uint8_t> kept_, plain_, found_;  // [k][kRows]
  int64_t n_beyond_ = 0;
};

void check_inputs(const LinearSource& w, const GptqFactor& factor) {
  if (w.k == factor.k()) return;
  fail(ErrorKind::kInvalidArgument, "gptq", "{}: expected {} input features, got {}",
       printable(w.name), factor.k(), w.k);
}

}  // namespace

GptqResult gptq_quantise(const LinearSource& w, const GptqFactor& factor, const MatrixTeam& team) {
  const int64_t k = factor.k(), n = w.n;
  check_inputs(w, factor);
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
    losses[at(index)] = QuantisedPanel(w, factor, *team.ops, index * kRows, *matrix).run();
  });
  GptqResult out;
  out.loss = std::accumulate(losses.begin(), losses.end(), 0.0);
  out.matrix = matrix;
  out.source = source_of(w.name, std::move(matrix));
  return out;
}

RecodedMatrix gptq_recode(const LinearSource& w, const LinearSource& on, const GptqFactor& factor,
                          const MatrixTeam& team) {
  check_inputs(w, factor);
  const std::optional<GridLevels> levels = grid_levels(on);
  QW_CHECK(levels && on.n == w.n && on.k == w.k, "{}: no grid for [{}, {}]", on.name, w.n, w.k);
  std::vector<uint8_t> codes(at(w.n * w.k));
  std::vector<RecodedPanel::Figures> figures(at(ceil_div(w.n, kRows)));
  team.for_each(std::ssize(figures), [&](int64_t index) {
    RecodedPanel panel(w, on, *levels, factor, *team.ops, index * kRows);
    figures[at(index)] = panel.run(codes.data());
  });
  RecodedMatrix out;
  for (const RecodedPanel::Figures& one : figures) {
    out.loss += one.loss;
    out.kept_loss += one.kept_loss;
    out.nearest_loss += one.nearest_loss;
    out.n_changed += one.n_changed;
    out.n_beyond += one.n_beyond;
  }
  out.source = with_codes(on, std::move(codes));
  return out;
}

GptqOptions recode_options(double damp) {
  GptqOptions options;
  options.group_size = -1;
  options.desc_act = true;
  options.damp = damp;
  return options;
}

}  // namespace qw::quantize
