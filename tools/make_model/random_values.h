// Random weights as cheap bytes: pools of encoded rows and of packed codes.
//
// A tool. Values are scaled so that activations stay finite through every layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <tuple>
#include <vector>

#include "base/function_ref.h"
#include "make_model/shapes.h"
#include "tensor/dtype.h"

namespace qw::make_model {

/// Encoded rows of N(0, std) values, a pool per (type, columns, std): drawing and encoding every
/// row of a 7B model would take minutes, and neither speed nor loading depends on it.
class RowPool {
 public:
  explicit RowPool(uint64_t seed) : seed_(seed) {}

  /// The encoded row `index` of a matrix: rows repeat with the period of the pool.
  std::span<const std::byte> row(DType dtype, int64_t cols, double std, int64_t index);

 private:
  void fill(std::vector<std::byte>& pool, DType dtype, int64_t cols, double std, int64_t bytes);

  uint64_t seed_, stream_ = 0;
  std::map<std::tuple<DType, int64_t, double>, std::vector<std::byte>> pools_;
};

/// Random 32-bit words for packed codes, from a block that is reused at shifting places.
class WordPool {
 public:
  explicit WordPool(uint64_t seed);
  /// Calls sink(bytes) with chunks of n_words words in all.
  void emit(int64_t n_words, FunctionRef<void(std::span<const std::byte>)> sink);

 private:
  std::vector<uint32_t> words_;
  size_t offset_ = 0;
};

/// Values of a norm (around 1) or a bias (around 0).
std::vector<float> vector_values(const Tensor& tensor, uint64_t seed, uint64_t stream);

}  // namespace qw::make_model
