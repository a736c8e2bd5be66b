// The canonical, lossless view of a published weight matrix W [n, k]: what every codec gives
// and every packer reads, so that formats and kernels meet in one place (N + M, never N x M).
//
// Level 2 (quant). y[M, n] = x[M, k] * W^T. A view keeps its file mapping alive; nothing is
// widened or copied until rows are asked for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "tensor/dtype.h"
#include "tensor/raw_tensor.h"

namespace qw {

/// Plain floats (f32, f16, bf16, f64), row-major [n, k].
struct DenseRows {
  DType dtype = DType::kF32;
  const std::byte* data = nullptr;  // unaligned
  int64_t row_bytes = 0;
};

/// GGML blocks along k, row-major; `dtype` is any block type.
struct BlockRows {
  DType dtype = DType::kQ4_0;
  const std::byte* data = nullptr;  // unaligned
  int64_t row_bytes = 0;
};

/// Groups of columns that share a scale and a zero point per output row (GPTQ, AWQ):
///   W[o, i] = scale[o, g(i)] * (q[o, i] - zero[o, g(i)])          kZeroPoint, exact in f32
///   W[o, i] = round(scale[o, g(i)] * q[o, i]) + offset[o, g(i)]   kOffset (AWQ GEMV_FAST), two
///   roundings
/// The concrete classes read one published layout each. All methods are const and thread safe.
class GroupAffine {
 public:
  enum class Form { kZeroPoint, kOffset };
  virtual ~GroupAffine() = default;

  int64_t n = 0, k = 0;
  int bits = 0;            // 2, 3, 4, 8: q in [0, 2^bits)
  int64_t group_size = 0;  // columns per group in group order; k for "per channel"
  int64_t n_groups = 0;
  Form form = Form::kZeroPoint;
  /// Group of column i is group_of[i]; empty: i / group_size. (act-order, g_idx)
  std::vector<int32_t> group_of;
  /// The published tensors that all this is read from; empty: not told.
  std::vector<std::span<const std::byte>> published;

  /// q of rows [row, row + n_rows), column order of the file: out[r * k + i].
  virtual void codes(int64_t row, int64_t n_rows, uint8_t* out) const = 0;
  /// scale as f32 (exact widening of the stored f16, bf16 or f32): out[r * n_groups + g].
  virtual void scales(int64_t row, int64_t n_rows, float* out) const = 0;
  /// zero (an integer 0..2^bits, exact) or offset, by `form`: out[r * n_groups + g].
  virtual void zeros(int64_t row, int64_t n_rows, float* out) const = 0;
};

/// Codes of four bits for sixteen levels, with a scale for each block of the flattened matrix, so
/// that a block may end within a row (bitsandbytes' nf4 and fp4):
///   W[o, i] = round(levels[q[o, i]] * scale[(o * k + i) / block_size])
/// to value_type, one rounding of an f32 product. Methods are const and thread safe.
class CodebookBlocks {
 public:
  virtual ~CodebookBlocks() = default;

  int64_t n = 0, k = 0;
  int64_t block_size = 0;
  std::array<float, 16> levels{};  // finite
  DType value_type = DType::kF32;  // f32, f16 or bf16
  std::string name;                // "nf4", "nf4 double": for messages
  /// The published tensors that all this is read from, sizes and levels too; empty: not told.
  std::vector<std::span<const std::byte>> published;

  int64_t n_blocks() const noexcept { return (n * k + block_size - 1) / block_size; }
  /// q of rows [row, row + n_rows): out[r * k + i].
  virtual void codes(int64_t row, int64_t n_rows, uint8_t* out) const = 0;
  /// Scales of blocks [first, first + count).
  virtual void scales(int64_t first, int64_t count, float* out) const = 0;
};

/// The nearest value that `type`, which is f32, f16 or bf16, holds.
float rounded_to(DType type, float value) noexcept;

/// One matrix W [n, k] in whatever form it was published.
struct LinearSource {
  std::string name;  // as in the file, for messages
  int64_t n = 0, k = 0;
  std::variant<DenseRows, BlockRows, std::shared_ptr<const GroupAffine>,
               std::shared_ptr<const CodebookBlocks>>
      data;
  std::shared_ptr<const void> owner;
  /// Rows of a GroupAffine or of CodebookBlocks start here (slices); 0 otherwise.
  int64_t row_begin = 0;

  /// "bf16", "q4_k", "int4 g128 (zero point)": for logs and inspect.
  std::string format_name() const;
  /// Bytes these rows occupy in the published form.
  int64_t published_bytes() const;

  /// The reference decoder: out[r * k + i] = W[row + r, i] in f32, bit for bit what the
  /// published format's own reference gives. Thread safe.
  void decode_rows(int64_t row, int64_t n_rows, float* out) const;

  /// Rows [begin, end) of the same matrix; no bytes are copied.
  LinearSource slice_rows(int64_t begin, int64_t end) const;

  /// A source over a dense or block tensor of shape [n, k] ([n] is taken as [n, 1] only by
  /// of_matrix's caller). Errors: corrupt (rank, bytes), unsupported (integer types).
  static LinearSource of_matrix(const RawTensor& tensor);
  /// A vector of k values (any rank) as the one row [1, k]. Errors: as of_matrix.
  static LinearSource of_vector(const RawTensor& tensor);
  /// Expert `index` of a stacked tensor [n_experts, n, k].
  static LinearSource of_expert(const RawTensor& tensor, int64_t index);
  /// n * k floats in memory, row-major; the source keeps them alive.
  static LinearSource of_floats(std::string name, int64_t n, int64_t k,
                                std::shared_ptr<const std::vector<float>> values);
};

}  // namespace qw
