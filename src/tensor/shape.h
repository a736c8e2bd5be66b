// Shapes: up to four sizes, outermost first (row-major), as Hugging Face files order them.
//
// Level 1 (tensor). GGUF's reversed order is turned round when a file is read.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qw {

class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes)
      : Shape(std::span(sizes.begin(), sizes.size()), "shape") {}
  /// Errors: corrupt, when there are more than four sizes, one is negative, or the product
  /// overflows; names `what` (the tensor) and `where` (the file).
  Shape(std::span<const int64_t> sizes, std::string_view what, std::string_view where = {});

  int rank() const noexcept { return rank_; }
  int64_t operator[](int axis) const noexcept { return sizes_[static_cast<size_t>(axis)]; }
  int64_t n_elems() const noexcept { return n_elems_; }
  /// The last size (elements of a row), 1 for a scalar; and the product of the others.
  int64_t cols() const noexcept { return rank_ == 0 ? 1 : sizes_[static_cast<size_t>(rank_ - 1)]; }
  int64_t rows() const noexcept;
  std::span<const int64_t> sizes() const noexcept {
    return {sizes_.data(), static_cast<size_t>(rank_)};
  }
  std::string str() const;  // "[2, 3]"
  bool operator==(const Shape& other) const noexcept;

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
  int64_t n_elems_ = 1;
};

/// Binds names to sizes on first use and checks them on every later one.
///   ShapeCheck dims("layer 3");
///   dims.match("q_proj.weight", shape, {"q", "hidden"});   // binds q and hidden
///   dims.match("q_proj.bias", bias, {"q"});                // must agree
/// After TensorMatcher of mini-sglang.
class ShapeCheck {
 public:
  explicit ShapeCheck(std::string where) : where_(std::move(where)) {}
  void set(std::string_view name, int64_t size);
  int64_t get(std::string_view name) const;
  /// Errors: corrupt, naming tensor, dimension, expected and found.
  void match(std::string_view tensor, const Shape& shape,
             std::initializer_list<std::string_view> names);

 private:
  std::string where_;
  std::vector<std::pair<std::string, int64_t>> bound_;
};

}  // namespace qw
