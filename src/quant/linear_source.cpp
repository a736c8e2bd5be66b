#include "quant/linear_source.h"

#include <algorithm>

#include "base/checked.h"
#include "base/error.h"
#include "base/half.h"
#include "quant/ggml_blocks.h"

namespace qw {

namespace {

/// Rows decoded at a time from a GroupAffine: enough for the column-packed layouts to read whole
/// cache lines, little enough for the scratch to stay in the cache.
constexpr int64_t kRowBlock = 16;

/// One value: one rounding (kZeroPoint: an 11-bit scale times a small integer is exact) or two.
template <GroupAffine::Form kForm>
float value_of(uint8_t code, float scale, float zero) noexcept {
  const auto q = static_cast<float>(code);
  if constexpr (kForm == GroupAffine::Form::kZeroPoint) return scale * (q - zero);
  return scale * q + zero;
}

template <GroupAffine::Form kForm>
void decode_row_of_groups(const GroupAffine& source, const uint8_t* codes, const float* scales,
                          const float* zeros, float* out) {
  if (!source.group_of.empty()) {
    for (int64_t i = 0; i < source.k; ++i) {
      const auto g = static_cast<size_t>(source.group_of[static_cast<size_t>(i)]);
      out[i] = value_of<kForm>(codes[i], scales[g], zeros[g]);
    }
    return;
  }
  for (int64_t g = 0, i = 0; i < source.k; ++g) {
    const int64_t end = std::min(source.k, i + source.group_size);
    for (; i < end; ++i)
      out[i] = value_of<kForm>(codes[i], scales[g], zeros[g]);
  }
}

/// out[r * k + i] of rows [row, row + n_rows) from codes, scales and zeros.
void decode_group_affine(const GroupAffine& source, int64_t row, int64_t n_rows, float* out) {
  using Form = GroupAffine::Form;
  const int64_t k = source.k, n_groups = source.n_groups;
  const int64_t block = std::min(kRowBlock, n_rows);
  std::vector<uint8_t> codes(static_cast<size_t>(block * k));
  std::vector<float> scales(static_cast<size_t>(block * n_groups)), zeros(scales.size());
  const auto decode_one = source.form == Form::kZeroPoint ? decode_row_of_groups<Form::kZeroPoint>
                                                          : decode_row_of_groups<Form::kOffset>;
  for (int64_t done = 0; done < n_rows; done += block) {
    const int64_t count = std::min(block, n_rows - done);
    source.codes(row + done, count, codes.data());
    source.scales(row + done, count, scales.data());
    source.zeros(row + done, count, zeros.data());
    for (int64_t r = 0; r < count; ++r) {
      decode_one(source, codes.data() + r * k, scales.data() + r * n_groups,
                 zeros.data() + r * n_groups, out + (done + r) * k);
    }
  }
}

/// out[r * k + i] of rows [row, row + n_rows).
void decode_codebook_blocks(const CodebookBlocks& source, int64_t row, int64_t n_rows, float* out) {
  if (n_rows == 0 || source.k == 0) return;
  const int64_t k = source.k, size = source.block_size;
  std::vector<uint8_t> codes(static_cast<size_t>(k));
  std::vector<float> scales(static_cast<size_t>(k / size + 2));
  for (int64_t r = row; r < row + n_rows; ++r, out += k) {
    const int64_t first = r * k / size, last = (r * k + k - 1) / size;
    source.codes(r, 1, codes.data());
    source.scales(first, last - first + 1, scales.data());
    for (int64_t i = 0, block = first; block <= last; ++block) {
      const float scale = scales[static_cast<size_t>(block - first)];
      std::array<float, 16> values;
      for (size_t q = 0; q < values.size(); ++q)
        values[q] = rounded_to(source.value_type, source.levels[q] * scale);
      for (const int64_t end = std::min(k, (block + 1) * size - r * k); i < end; ++i)
        out[i] = values[codes[static_cast<size_t>(i)] & 15];
    }
  }
}

/// The share of `n` rows of the published tensors.
int64_t codebook_bytes(const CodebookBlocks& source, int64_t n) {
  int64_t bytes = 0;
  for (const auto& tensor : source.published)
    bytes += std::ssize(tensor);
  return source.n == 0 ? 0 : bytes / source.n * n + bytes % source.n * n / source.n;
}

/// Bytes of n rows of codes, scales (f16) and zeros, as published. Padding and g_idx do not count.
int64_t group_affine_bytes(const GroupAffine& source, int64_t n) {
  const int64_t zero_bits = source.form == GroupAffine::Form::kOffset ? 16 : source.bits;
  return ceil_div<int64_t>(n * (source.k * source.bits + source.n_groups * (16 + zero_bits)), 8);
}

LinearSource of_bytes(const RawTensor& tensor, int64_t n, int64_t k, int64_t first_row) {
  LinearSource out;
  out.name = tensor.name;
  out.n = n;
  out.k = k;
  out.owner = tensor.owner;
  if (!is_float(tensor.dtype) && !is_block(tensor.dtype)) {
    fail(ErrorKind::kUnsupported, "quant", "{}: expected a float or block type, got {} ({})",
         printable(tensor.name), name_of(tensor.dtype), printable(tensor.file));
  }
  const int64_t bytes_per_row = row_bytes(tensor.dtype, k, tensor.name, tensor.file);
  const int64_t expected =
      checked_mul(bytes_per_row, tensor.shape.rows(), tensor.name, tensor.file);
  if (static_cast<uint64_t>(expected) != tensor.bytes.size()) {
    fail(ErrorKind::kCorrupt, "quant", "{}: expected {} bytes for {} {}, got {} ({})",
         printable(tensor.name), expected, tensor.shape.str(), name_of(tensor.dtype),
         tensor.bytes.size(), printable(tensor.file));
  }
  const std::byte* data = tensor.bytes.data() + first_row * bytes_per_row;
  if (is_block(tensor.dtype)) {
    out.data = BlockRows{tensor.dtype, data, bytes_per_row};
  } else {
    out.data = DenseRows{tensor.dtype, data, bytes_per_row};
  }
  return out;
}

}  // namespace

float rounded_to(DType type, float value) noexcept {
  if (type == DType::kBF16) return bf16_to_f32(f32_to_bf16(value));
  return type == DType::kF16 ? f16_to_f32(f32_to_f16(value)) : value;
}

std::string LinearSource::format_name() const {
  if (const auto* dense = std::get_if<DenseRows>(&data)) return std::string(name_of(dense->dtype));
  if (const auto* blocks = std::get_if<BlockRows>(&data))
    return std::string(name_of(blocks->dtype));
  if (const auto* codebook = std::get_if<std::shared_ptr<const CodebookBlocks>>(&data)) {
    return fmt::format("{} b{} ({})", (*codebook)->name, (*codebook)->block_size,
                       name_of((*codebook)->value_type));
  }
  const GroupAffine& affine = *std::get<std::shared_ptr<const GroupAffine>>(data);
  const std::string group =
      affine.n_groups == 1 ? "per channel" : fmt::format("g{}", affine.group_size);
  return fmt::format("int{} {} ({}{})", affine.bits, group,
                     affine.form == GroupAffine::Form::kZeroPoint ? "zero point" : "offset",
                     affine.group_of.empty() ? "" : ", act-order");
}

int64_t LinearSource::published_bytes() const {
  if (const auto* dense = std::get_if<DenseRows>(&data)) return n * dense->row_bytes;
  if (const auto* blocks = std::get_if<BlockRows>(&data)) return n * blocks->row_bytes;
  if (const auto* codebook = std::get_if<std::shared_ptr<const CodebookBlocks>>(&data))
    return codebook_bytes(**codebook, n);
  return group_affine_bytes(*std::get<std::shared_ptr<const GroupAffine>>(data), n);
}

void LinearSource::decode_rows(int64_t row, int64_t n_rows, float* out) const {
  QW_CHECK(row >= 0 && n_rows >= 0 && row <= n - n_rows, "rows {}+{} of {}", row, n_rows, n);
  if (const auto* affine = std::get_if<std::shared_ptr<const GroupAffine>>(&data)) {
    return decode_group_affine(**affine, row_begin + row, n_rows, out);
  }
  if (const auto* codebook = std::get_if<std::shared_ptr<const CodebookBlocks>>(&data))
    return decode_codebook_blocks(**codebook, row_begin + row, n_rows, out);
  const auto decode_all = [&](const auto& rows) {
    for (int64_t r = 0; r < n_rows; ++r) {
      decode_row(rows.dtype, rows.data + (row + r) * rows.row_bytes, k, out + r * k);
    }
  };
  if (const auto* dense = std::get_if<DenseRows>(&data)) return decode_all(*dense);
  decode_all(std::get<BlockRows>(data));
}

LinearSource LinearSource::slice_rows(int64_t begin, int64_t end) const {
  QW_CHECK(begin >= 0 && begin <= end && end <= n, "rows {}..{} of {}", begin, end, n);
  LinearSource out = *this;
  out.n = end - begin;
  if (auto* dense = std::get_if<DenseRows>(&out.data)) {
    dense->data += begin * dense->row_bytes;
  } else if (auto* blocks = std::get_if<BlockRows>(&out.data)) {
    blocks->data += begin * blocks->row_bytes;
  } else {
    out.row_begin += begin;
  }
  return out;
}

LinearSource LinearSource::of_matrix(const RawTensor& tensor) {
  if (tensor.shape.rank() != 2) {
    fail(ErrorKind::kCorrupt, "quant", "{}: expected a matrix [n, k], got shape {} ({})",
         printable(tensor.name), tensor.shape.str(), printable(tensor.file));
  }
  return of_bytes(tensor, tensor.shape[0], tensor.shape[1], 0);
}

LinearSource LinearSource::of_vector(const RawTensor& tensor) {
  RawTensor row = tensor;
  row.shape = Shape{1, tensor.shape.n_elems()};
  return of_matrix(row);
}

LinearSource LinearSource::of_floats(std::string name, int64_t n, int64_t k,
                                     std::shared_ptr<const std::vector<float>> values) {
  QW_CHECK(static_cast<int64_t>(values->size()) == n * k, "{} values for [{}, {}]", values->size(),
           n, k);
  LinearSource out;
  out.name = std::move(name);
  out.n = n;
  out.k = k;
  out.data = DenseRows{DType::kF32, reinterpret_cast<const std::byte*>(values->data()),
                       k * static_cast<int64_t>(sizeof(float))};
  out.owner = std::move(values);
  return out;
}

LinearSource LinearSource::of_expert(const RawTensor& tensor, int64_t index) {
  if (tensor.shape.rank() != 3) {
    fail(ErrorKind::kCorrupt, "quant", "{}: expected [experts, n, k], got shape {} ({})",
         printable(tensor.name), tensor.shape.str(), printable(tensor.file));
  }
  QW_CHECK(index >= 0 && index < tensor.shape[0], "expert {} of {}", index, tensor.shape[0]);
  LinearSource out = of_bytes(tensor, tensor.shape[1], tensor.shape[2], index * tensor.shape[1]);
  out.name = fmt::format("{}[{}]", tensor.name, index);
  return out;
}

}  // namespace qw
