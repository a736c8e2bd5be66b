#include "make_model/random_values.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "base/rng.h"
#include "quant/ggml_blocks.h"

namespace qw::make_model {

namespace {

constexpr int kPoolRows = 61;  // prime, so that neighbouring rows of a tensor differ

void set_scales(DType dtype, int64_t bytes, float scale, std::byte* out) {
  for (int64_t at = 0; at < bytes; at += info(dtype).block_bytes)
    set_block_scale(dtype, f32_to_f16(scale), out + at);
}

/// Types whose encoder searches long: random codes under a scale found by decoding once with d = 1.
void random_blocks(uint64_t seed, uint64_t stream, DType dtype, int64_t cols, double std,
                   std::byte* out, int64_t bytes) {
  for (int64_t i = 0; i < bytes; ++i)
    out[i] = static_cast<std::byte>(random_bits(seed, stream, static_cast<uint64_t>(i)));
  set_scales(dtype, bytes, 1.0f, out);
  std::vector<float> values(static_cast<size_t>(cols));
  decode_row(dtype, out, cols, values.data());
  double squares = 0;
  for (const float value : values)
    squares += static_cast<double>(value) * static_cast<double>(value);
  set_scales(dtype, bytes, static_cast<float>(std / std::sqrt(squares / static_cast<double>(cols))),
             out);
}

}  // namespace

std::span<const std::byte> RowPool::row(DType dtype, int64_t cols, double std, int64_t index) {
  auto& pool = pools_[{dtype, cols, std}];
  const int64_t bytes = row_bytes(dtype, cols, "row");
  if (pool.empty()) fill(pool, dtype, cols, std, bytes);
  const int64_t slot = index % kPoolRows;
  return std::span(pool).subspan(static_cast<size_t>(slot * bytes), static_cast<size_t>(bytes));
}

void RowPool::fill(std::vector<std::byte>& pool, DType dtype, int64_t cols, double std,
                   int64_t bytes) {
  pool.resize(static_cast<size_t>(bytes * kPoolRows));
  std::vector<float> values(static_cast<size_t>(cols));
  for (int64_t r = 0; r < kPoolRows; ++r) {
    ++stream_;
    std::byte* out = pool.data() + r * bytes;
    if (!is_grid_type(dtype)) {
      for (size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<float>(std * random_normal(seed_, stream_, i));
      encode_row(dtype, values.data(), cols, out);
    } else {
      random_blocks(seed_, stream_, dtype, cols, std, out, bytes);
    }
  }
}

WordPool::WordPool(uint64_t seed) : words_(1 << 18) {
  for (size_t i = 0; i < words_.size(); i += 2) {
    const uint64_t bits = random_bits(seed, 0xC0DE, i);
    words_[i] = static_cast<uint32_t>(bits);
    words_[i + 1] = static_cast<uint32_t>(bits >> 32);
  }
}

void WordPool::emit(int64_t n_words, FunctionRef<void(std::span<const std::byte>)> sink) {
  const size_t half = words_.size() / 2;
  while (n_words > 0) {
    const size_t start = (offset_ += 7919) % half;
    const size_t n = std::min(static_cast<size_t>(n_words), half);
    sink(std::as_bytes(std::span(words_).subspan(start, n)));
    n_words -= static_cast<int64_t>(n);
  }
}

std::vector<float> vector_values(const Tensor& tensor, uint64_t seed, uint64_t stream) {
  std::vector<float> values(static_cast<size_t>(tensor.shape.n_elems()));
  const bool norm = tensor.role == Role::kNorm;
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>((norm ? 1.0 : 0.0) + 0.05 * random_normal(seed, stream, i));
  }
  return values;
}

}  // namespace qw::make_model
