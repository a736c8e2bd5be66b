// What GPTQ needs to know of a layer's inputs: in which order columns are quantised, and how the
// error of one is made good by those after it.
//
// Level 6 (quantize). Made once for all matrices that share their inputs (q, k and v; gate and up).
// Source: Frantar et al. 2022, "GPTQ"; AutoGPTQ 0.7.1 for kReference.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "quantize/blocked_matrix.h"
#include "quantize/hessian.h"

namespace qw::quantize {

struct GptqOptions {
  enum class Mode {
    kBetter,     // lower output error at the same format (docs/quantising-gptq.md says by what)
    kReference,  // AutoGPTQ's behaviour, its flaws included
  };
  Mode mode = Mode::kBetter;
  int bits = 4;              // 2, 3, 4, 8
  int64_t group_size = 128;  // -1: one group of all columns; otherwise > 0, of any k
  bool sym = true;
  bool desc_act = false;       // groups are slices of the order of quantising (needs g_idx)
  bool static_groups = false;  // grids are found before any column is quantised
  /// kBetter without desc_act: false finds all grids first and takes the columns in any order; true
  /// takes whole groups in turn and finds a group's grid when its turn comes. Same format.
  bool late_grids = false;
  double damp = 0.01;        // part of the mean diagonal that is added to it
  bool zero_from_0 = false;  // kBetter, not sym: zero points 0.. (gptq_v2) instead of 1..
};

/// Errors: invalid_argument.
void check_damp(double damp);
/// Errors: invalid_argument (bits, group size, damp).
void check_options(const GptqOptions& options);

/// H^-1 = U^T U, U upper triangular, of the damped H in the order of quantising, cut into blocks as
/// the solver walks through it.
///
/// U is found without H^-1: H = R R^T with R upper triangular (a Cholesky factor from the last
/// column to the first) gives U = R^-1. That is 2/3 k^3 operations instead of the usual 4/3 k^3
/// (factor, inverse, factor), and one rounding less.
class GptqFactor {
 public:
  /// Columns [begin, end) of the order, quantised one after the other with feedback among them.
  struct Block {
    int64_t begin = 0, end = 0;
    const float* feedback = nullptr;  // [size, size]: feedback[i * size + j] = U[begin+j, begin+i]
    const float* rest = nullptr;      // U[begin.., end..]^T [k - end, size], tile_rows wide
    int64_t size() const noexcept { return end - begin; }
  };
  /// Columns that share a grid, as places in the order, ascending.
  struct Group {
    std::vector<int32_t> places;
    /// The blocks that the group's places make when it is alone: chunks of at most kBlock, and the
    /// feedback in each. Of dynamic groups in kBetter those of `blocks`; with static groups from
    /// H of these columns alone; none in kReference.
    std::vector<Block> chunks;
  };
  static constexpr int64_t kBlock = 128;

  /// Reads `hessian` only here. Peak memory: 6 k^2 bytes beside it, 2 k^2 afterwards.
  ///
  /// kReference: columns with H_ii = 0 are dead (weight 0, H_ii = 1). kBetter: their weights are
  /// kept and rounded to nearest, for nothing is known against them; a damp that does not factor is
  /// multiplied by 10^(1/2) until it does.
  /// Errors: invalid_argument when H is not positive definite (kReference) or not finite.
  GptqFactor(const Hessian& hessian, const GptqOptions& options, const MatrixTeam& team);

  /// From now on as if input i were divided by scales[i] and its weights multiplied, which is what
  /// gptq_quantise is given then: H^-1 becomes S H^-1 S, so U becomes U S. Order, damp and the loss
  /// of a matrix stay what they are. Rounds each entry of U twice per call.
  void set_input_scales(std::span<const float> scales);

  /// 1 / U_ii of each column, as parts of their mean: how large an input is as far as those after
  /// it in the order do not tell, which is what its rounding error counts with.
  std::vector<float> own_sizes() const;

  /// Of the matrices that are quantised from now on: nothing else here depends on it.
  void set_bits(int bits) noexcept { options_.bits = bits; }

  const GptqOptions& options() const noexcept { return options_; }
  int64_t k() const noexcept { return k_; }
  double damp() const noexcept { return damp_; }  // as used, part of the mean diagonal
  int64_t n_dead() const noexcept { return n_dead_; }
  bool is_dead(int64_t column) const noexcept { return dead_[static_cast<size_t>(column)] != 0; }
  /// order()[place] is a column of W.
  const std::vector<int32_t>& order() const noexcept { return order_; }
  const std::vector<Block>& blocks() const noexcept { return blocks_; }
  /// By their index in the file.
  const std::vector<Group>& groups() const noexcept { return groups_; }
  /// Grids are found before the first column is quantised.
  bool is_static() const noexcept { return static_; }
  int64_t group_size() const noexcept { return group_size_; }

 private:
  void find_dead(const Hessian& hessian);
  void choose_order();
  void make_groups();
  void make_blocks();
  bool factor(const Hessian& hessian, double damp, const MatrixTeam& team);
  bool factor_groups(const Hessian& hessian, double added, const MatrixTeam& team);
  void pack(const std::vector<float>& inverse, const MatrixTeam& team);

  GptqOptions options_;
  int64_t k_ = 0, group_size_ = 0, n_dead_ = 0;
  bool static_ = false;
  int width_ = 0;                 // of the tiles of Block::rest
  double damp_ = 0, unit_ = 1;    // H's scale
  std::vector<uint8_t> dead_;     // by column
  std::vector<double> diagonal_;  // of H, by column
  std::vector<int32_t> order_;
  std::vector<Group> groups_;
  std::vector<Block> blocks_;
  std::vector<float> packed_, group_feedback_;
  std::vector<float> scales_;  // of the inputs; empty: 1
};

}  // namespace qw::quantize
