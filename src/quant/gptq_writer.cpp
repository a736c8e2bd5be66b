// The other direction of gptq.cpp: codes, scales and zero points into published tensors.
//
// Level 2 (quant).
#include <algorithm>
#include <cmath>

#include "base/checked.h"
#include "base/half.h"
#include "quant/gptq.h"

namespace qw {

namespace {

/// 32 fields of `bits` bits at `codes`, lowest first, as `bits` words that lie `stride` apart.
void pack_32(const uint8_t* codes, int bits, uint32_t* words, int64_t stride) {
  uint64_t buffer = 0;
  int filled = 0;
  for (int i = 0; i < 32; ++i) {
    buffer |= static_cast<uint64_t>(codes[i]) << filled;
    filled += bits;
    if (filled >= 32) {
      *words = static_cast<uint32_t>(buffer);
      words += stride;
      buffer >>= 32;
      filled -= 32;
    }
  }
}

void pack_codes(const GroupAffine& matrix, std::string_view module,
                std::vector<uint32_t>& qweight) {
  const int64_t n = matrix.n, k = matrix.k, bits = matrix.bits;
  constexpr int64_t kRows = 16;  // their words share cache lines
  std::vector<uint8_t> rows(static_cast<size_t>(kRows * k));
  uint8_t tail[32];
  std::vector<uint32_t> words(8);
  for (int64_t row = 0; row < n; row += kRows) {
    const int64_t n_rows = std::min(kRows, n - row);
    matrix.codes(row, n_rows, rows.data());
    const auto size = static_cast<size_t>(n_rows * k);
    if (std::any_of(rows.begin(), rows.begin() + static_cast<int64_t>(size),
                    [&](uint8_t code) { return code >> bits != 0; })) {
      fail(ErrorKind::kInternal, "gptq", "{}: expected codes below {}, got more (rows {} to {})",
           printable(module), 1 << bits, row, row + n_rows - 1);
    }
    for (int64_t i = 0; i < k; i += 32) {
      const int64_t first_word = i * bits / 32;
      for (int64_t r = 0; r < n_rows; ++r) {
        const uint8_t* codes = rows.data() + r * k + i;
        uint32_t* to = qweight.data() + first_word * n + row + r;
        if (i + 32 <= k) {
          pack_32(codes, matrix.bits, to, n);
          continue;
        }
        std::fill(std::copy(codes, codes + (k - i), tail), tail + 32, uint8_t{0});
        pack_32(tail, matrix.bits, words.data(), 1);
        for (int64_t w = 0; w < (k - i) * bits / 32; ++w)
          to[w * n] = words[static_cast<size_t>(w)];
      }
    }
  }
}

/// Zero points and scales of every group, a row of the file each.
void pack_groups(const GroupAffine& matrix, bool v2_zeros, std::string_view module, GptqFile& out) {
  const int64_t n = matrix.n, n_groups = matrix.n_groups, bits = matrix.bits;
  const int64_t words = out.qzeros_shape[1];
  std::vector<float> scales(static_cast<size_t>(n * n_groups)), zeros(scales.size());
  matrix.scales(0, n, scales.data());
  matrix.zeros(0, n, zeros.data());
  std::vector<uint8_t> fields(static_cast<size_t>(round_up<int64_t>(n, 32)));
  std::vector<uint32_t> row(fields.size() / 32 * static_cast<size_t>(bits));
  const float lowest = v2_zeros ? 0.0F : 1.0F, highest = static_cast<float>((1 << bits) - 1);
  for (int64_t g = 0; g < n_groups; ++g) {
    for (int64_t o = 0; o < n; ++o) {
      const auto at = static_cast<size_t>(o * n_groups + g);
      const uint16_t half = f32_to_f16(scales[at]);
      if (!std::isfinite(scales[at]) || f16_to_f32(half) != scales[at]) {
        fail(ErrorKind::kUnsupported, "gptq",
             "{}.scales: expected values that f16 holds, got {} (group {}, output row {})",
             printable(module), scales[at], g, o);
      }
      if (!(zeros[at] >= lowest && zeros[at] <= highest) || zeros[at] != std::floor(zeros[at])) {
        fail(ErrorKind::kUnsupported, "gptq",
             "{}.qzeros: expected zero points {} to {} in {}, got {} (group {}, output row {})",
             printable(module), lowest, highest, v2_zeros ? "gptq_v2" : "gptq (v1)", zeros[at], g,
             o);
      }
      out.scales[static_cast<size_t>(g * n + o)] = half;
      fields[static_cast<size_t>(o)] = static_cast<uint8_t>(zeros[at] - lowest);
    }
    for (int64_t o = 0; o < n; o += 32)
      pack_32(fields.data() + o, matrix.bits, row.data() + o / 32 * bits, 1);
    std::copy_n(row.begin(), words, out.qzeros.begin() + g * words);
  }
}

void check_codes(const GroupAffine& matrix, std::string_view module) {
  const int64_t k = matrix.k, bits = matrix.bits;
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
    fail(ErrorKind::kUnsupported, "gptq", "{}: expected 2, 3, 4 or 8 bits, got {}",
         printable(module), bits);
  }
  if (k * bits % 32 != 0) {
    fail(ErrorKind::kUnsupported, "gptq",
         "{}: expected a number of input features whose {}-bit codes fill whole words, got {}",
         printable(module), bits, k);
  }
}

template <typename T>
RawTensor view_of(std::string name, DType dtype, const Shape& shape, const std::vector<T>& values) {
  RawTensor out;
  out.name = std::move(name);
  out.dtype = dtype;
  out.shape = shape;
  out.bytes = std::as_bytes(std::span(values));
  return out;
}

}  // namespace

GptqTensors GptqFile::Views::tensors(std::string module) const {
  return {std::move(module), &qweight, &qzeros, &scales, &g_idx};
}

GptqFile::Views GptqFile::views(const std::string& module) const {
  return {view_of(module + ".qweight", DType::kI32, qweight_shape, qweight),
          view_of(module + ".qzeros", DType::kI32, qzeros_shape, qzeros),
          view_of(module + ".scales", DType::kF16, scales_shape, scales),
          view_of(module + ".g_idx", DType::kI32, g_idx_shape, g_idx)};
}

GptqFile publish_gptq(const GroupAffine& matrix, bool v2_zeros, std::string_view module) {
  const int64_t n = matrix.n, k = matrix.k, bits = matrix.bits;
  check_codes(matrix, module);
  if (matrix.form != GroupAffine::Form::kZeroPoint) {
    fail(ErrorKind::kUnsupported, "gptq", "{}: expected zero points, got offsets",
         printable(module));
  }
  GptqFile out;
  out.qweight_shape = {k * bits / 32, n};
  out.qzeros_shape = {matrix.n_groups, ceil_div<int64_t>(n * bits, 32)};
  out.scales_shape = {matrix.n_groups, n};
  out.g_idx_shape = {k};
  out.qweight.resize(static_cast<size_t>(out.qweight_shape.n_elems()));
  out.qzeros.resize(static_cast<size_t>(out.qzeros_shape.n_elems()));
  out.scales.resize(static_cast<size_t>(out.scales_shape.n_elems()));
  pack_codes(matrix, module, out.qweight);
  pack_groups(matrix, v2_zeros, module, out);
  out.g_idx = matrix.group_of;
  for (int64_t i = 0; matrix.group_of.empty() && i < k; ++i)
    out.g_idx.push_back(static_cast<int32_t>(i / matrix.group_size));
  return out;
}

std::vector<uint32_t> publish_gptq_codes(const GroupAffine& matrix, std::string_view module) {
  check_codes(matrix, module);
  std::vector<uint32_t> out(static_cast<size_t>(matrix.k * matrix.bits / 32 * matrix.n));
  pack_codes(matrix, module, out);
  return out;
}

}  // namespace qw
