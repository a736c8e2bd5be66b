// Linear layers of the CPU backend: choose a kernel per matrix, pack it, run it on all threads.
//
// Level 4 (backend). Between backend/cpu_backend.cpp (operations) and kernels/registry.h (rows of
// pure functions). Packing is a permutation of the published codes: nothing is requantised.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu_linear_memory.h"
#include "backend/packed_store.h"
#include "base/thread_pool.h"
#include "kernels/isa.h"
#include "quant/linear_source.h"

namespace qw {

struct LinearScratch;  // of run_cpu_linear

/// What every CPU operation needs; one per backend, no globals.
struct CpuContext {
  explicit CpuContext(const BackendOptions& options);
  ~CpuContext();
  ThreadPool pool;
  kernels::Isa isa;                               // the cap in force: features that kernels may use
  ActivationMode activations;                     // as asked
  std::unique_ptr<LinearScratch> linear_scratch;  // one linear layer at a time
  std::unique_ptr<PackedStore> store;  // null: weights are packed whenever they are opened
  WeightMemory weights;
};

/// Several matrices stacked along n, each with its own kernel, sharing their input.
class CpuLinear : public LinearWeight {
 public:
  ~CpuLinear() override = default;
  /// f32 values of rows [row, row + n_rows) as the kernel sees the weight: for embeddings that
  /// share a tied matrix, and for tests (equal to the codec's reference bit for bit).
  virtual void decode_rows(int64_t row, int64_t n_rows, float* out) const = 0;
};

/// Errors: unsupported, corrupt (scales that are not finite, naming the tensor), out_of_memory.
std::unique_ptr<CpuLinear> pack_cpu_linear(std::span<const LinearSource> parts,
                                           CpuContext& context);

struct CpuLinearCall {
  const float* x = nullptr;  // [m, k], rows ldx apart
  int64_t ldx = 0, m = 0;
  float* y = nullptr;  // [m, n], rows ldy apart
  int64_t ldy = 0;
  const float* bias = nullptr;  // [n] or null
  bool accumulate = false;      // y += instead of y =
};

/// y = x W^T (+ bias) (+ y). Rounds x once per distinct activation form that the parts need.
/// Accumulation order depends on (layout, kernel, k) only.
void run_cpu_linear(const CpuLinear& weight, const CpuLinearCall& call, CpuContext& context);

struct CpuLinearProduct {
  const CpuLinear* weight;
  CpuLinearCall call;
};

/// Several products at once (a grouped GEMM: the experts of a layer): their inputs are rounded in
/// one loop over the threads, and computed in another. The same bits as one after the other. All
/// weights have one k; no product reads what another writes.
void run_cpu_linears(std::span<const CpuLinearProduct> products, CpuContext& context);

/// Scratch that linear layers of up to m rows and k columns grow to, at most: the input reordered
/// and rounded, and per thread an expanded chunk of weights and its sums.
int64_t linear_working_bytes(int64_t m, int64_t k, int n_threads);

/// gate[i] = silu(gate[i]) * up[i]; false if a result is not finite. kernels/elementwise.h.
using SiluMulFn = bool (*)(float* gate, const float* up, int64_t n);

/// True if run_cpu_gated can take m rows: two matrices of one layout, and rows enough for tiles.
bool can_run_gated(const CpuLinear& weight, int64_t m);

struct BadProductRow {
  size_t product;
  int64_t row;  // of its x
};

/// y [m, n / 2] = silu(x W_gate^T) * (x W_up^T) for the two matrices of each weight, the same bits
/// as run_cpu_linear and silu_mul one after the other, without the n columns in between. The calls
/// have neither bias nor accumulate. Returns the first product and row with a result that is not
/// finite.
std::optional<BadProductRow> run_cpu_gated(std::span<const CpuLinearProduct> products,
                                           SiluMulFn silu_mul, CpuContext& context);

}  // namespace qw
