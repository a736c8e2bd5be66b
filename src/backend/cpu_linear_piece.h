// One product with one form of input, cut into jobs that any thread may do.
//
// Level 4 (backend), private to the linear layers of the CPU backend. Few rows go through gemv,
// many through expand and tile; for one output element both add the same numbers in the same order,
// so neither that choice nor the cut is visible in the result.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/bad_row.h"
#include "backend/cpu_linear.h"
#include "backend/cpu_linear_packed.h"

namespace qw {

/// Scratch that grows and is kept.
struct Growing {
  AlignedBytes bytes;
  uint8_t* at_least(int64_t size) {
    if (bytes.size() < size) bytes = AlignedBytes(grown(size), "activations");
    return bytes.data();
  }
  static int64_t grown(int64_t size) { return size + size / 4; }
};

/// Of one thread.
struct TileScratch {
  std::unique_ptr<kernels::ExpandedChunk> chunk = std::make_unique<kernels::ExpandedChunk>();
  Growing sums, rows;
  /// What these grow to for products of up to m rows and k columns.
  static int64_t working_bytes(int64_t m, int64_t k);
};

/// The gated activation of two parts, for which can_run_gated() holds.
struct LinearGate {
  SiluMulFn silu_mul = nullptr;  // null: plain products
  BadRow* bad = nullptr;         // rows with a result that is not finite
};

class LinearPiece {
 public:
  /// What some parts of a weight, which follow each other, want their input to be.
  struct InputForm {
    kernels::ActivationForm form;
    bool round_to_bf16;
    const std::vector<int32_t>* columns;
    kernels::QuantizeFn quantize;
    bool operator==(const InputForm&) const = default;
  };
  static InputForm form_of(const PackedPart& part);

  /// Outputs of `parts`, which all want one form. The weight and what `call` and `gate` point to
  /// must outlive this.
  LinearPiece(const PackedLinear& weight, std::span<const PackedPart> parts,
              const CpuLinearCall& call, LinearGate gate = {});

  int64_t rows() const noexcept { return call_.m; }
  int64_t columns() const noexcept { return k_; }

  /// The input: rows that must be reordered or rounded to bf16 first, then the form of the kernel.
  /// Both may be nothing.
  int64_t gathered_bytes() const noexcept;
  int64_t rounded_bytes() const noexcept;
  void place_input(uint8_t* gathered, uint8_t* rounded);
  /// Row `r` of the input, into its places.
  void prepare_row(int64_t r) const;

  /// Jobs are independent. wanted_jobs: so many at least where the rows allow it.
  void plan_jobs(int64_t wanted_jobs);
  int64_t n_jobs() const noexcept { return n_jobs_; }
  void run_job(int64_t job, TileScratch& scratch) const;

 private:
  /// Panels of one matrix that a tile job multiplies, and where in the expanded chunk they stand.
  struct Slice {
    const PackedPart* part;
    int64_t panel, n_panels, slot;
  };
  /// Rows of x that a job takes.
  struct RowRange {
    int64_t first, count;
  };

  bool is_gated() const noexcept { return gate_.silu_mul != nullptr; }
  bool gathers() const noexcept { return form_.columns != nullptr || form_.round_to_bf16; }
  int64_t n_blocks() const noexcept;
  /// Panels of a part that a tile job takes of each of its matrices, and how many jobs that makes.
  int64_t panels_of_group(const PackedPart& part) const noexcept;
  int64_t groups_of(const PackedPart& part) const noexcept;
  void gemv_job(int64_t job, TileScratch& scratch) const;
  void tile_job(int64_t job, TileScratch& scratch) const;
  void tile(std::span<const Slice> slices, const RowRange& rows, int64_t first_out, int64_t n_out,
            TileScratch& scratch) const;
  void gate_rows(float* sums, int64_t stride, const RowRange& rows, int64_t n) const;
  void store(const kernels::LinearKernel& kernel, const float* sums, int64_t stride,
             const RowRange& rows, int64_t row, int64_t n) const;
  void expand(std::span<const Slice> slices, int64_t column, TileScratch& scratch) const;
  void expand_rows(const PackedPart& part, int64_t panel, int64_t column, int64_t n_columns,
                   TileScratch& scratch) const;
  void fetch_weights(const Slice& slice, int64_t column, int64_t part, int64_t n_parts) const;
  void fetch_results(const RowRange& rows, int64_t first_row, int64_t n) const;

  std::span<const PackedPart> parts_;
  CpuLinearCall call_;
  LinearGate gate_;
  InputForm form_;
  int64_t k_;
  bool few_;
  kernels::ActRows x_{};
  float* gathered_ = nullptr;
  uint8_t* rounded_ = nullptr;
  // gemv: panels of a job and of a pass; tiles: groups of panels, rows of a job.
  int64_t grain_ = 0, span_ = 0, n_groups_ = 0, job_rows_ = 0, n_jobs_ = 0;
};

}  // namespace qw
