#include "quant/linear_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "base/error.h"
#include "quant/ggml_blocks.h"

namespace qw {
namespace {

RawTensor tensor_of(DType dtype, Shape shape, std::span<const std::byte> bytes) {
  return {.name = "w",
          .dtype = dtype,
          .shape = std::move(shape),
          .bytes = bytes,
          .owner = nullptr,
          .file = "f"};
}

std::vector<float> counting(int64_t n) {
  std::vector<float> out(static_cast<size_t>(n));
  std::iota(out.begin(), out.end(), 0.0F);
  return out;
}

std::vector<float> rows_of(const LinearSource& source, int64_t row, int64_t n_rows) {
  std::vector<float> out(static_cast<size_t>(n_rows * source.k));
  source.decode_rows(row, n_rows, out.data());
  return out;
}

TEST(LinearSource, DenseRowsSlicesAndExperts) {
  const std::vector<float> values = counting(24);
  const auto bytes = std::as_bytes(std::span(values));
  const LinearSource source = LinearSource::of_matrix(tensor_of(DType::kF32, {6, 4}, bytes));
  EXPECT_EQ(source.format_name(), "f32");
  EXPECT_EQ(source.published_bytes(), 96);
  EXPECT_THAT(rows_of(source, 1, 1), testing::ElementsAre(4, 5, 6, 7));
  const LinearSource slice = source.slice_rows(2, 5).slice_rows(1, 3);
  EXPECT_EQ(slice.n, 2);
  EXPECT_EQ(slice.published_bytes(), 32);
  EXPECT_THAT(rows_of(slice, 0, 1), testing::ElementsAre(12, 13, 14, 15));
  const LinearSource expert = LinearSource::of_expert(tensor_of(DType::kF32, {2, 3, 4}, bytes), 1);
  EXPECT_EQ(expert.name, "w[1]");
  EXPECT_THAT(rows_of(expert, 0, 1), testing::ElementsAre(12, 13, 14, 15));
}

TEST(LinearSource, BlockRows) {
  const std::vector<float> values = counting(128);
  std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(DType::kQ8_0, 128, "test")));
  encode_row(DType::kQ8_0, values.data(), 128, bytes.data());
  const LinearSource source = LinearSource::of_matrix(tensor_of(DType::kQ8_0, {2, 64}, bytes));
  EXPECT_EQ(source.format_name(), "q8_0");
  EXPECT_EQ(source.published_bytes(), 136);
  EXPECT_EQ(rows_of(source, 0, 2), [&] {
    std::vector<float> out(128);
    decode_row(DType::kQ8_0, bytes.data(), 128, out.data());
    return out;
  }());
  EXPECT_NEAR(rows_of(source.slice_rows(1, 2), 0, 1)[1], 65.0F, 0.5F);
}

/// scale of group g is g + 1, zero (or offset) is 2, code of column i is i.
class FakeGroups final : public GroupAffine {
 public:
  FakeGroups() {
    n = 3;
    k = 6;
    bits = 4;
    group_size = 4;
    n_groups = 2;
  }
  void codes(int64_t row, int64_t n_rows, uint8_t* out) const override {
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int64_t i = 0; i < k; ++i)
        out[r * k + i] = static_cast<uint8_t>(i + row + r);
    }
  }
  void scales(int64_t, int64_t n_rows, float* out) const override {
    for (int64_t i = 0; i < n_rows * 2; ++i)
      out[i] = static_cast<float>(i % 2 + 1);
  }
  void zeros(int64_t, int64_t n_rows, float* out) const override {
    std::fill_n(out, n_rows * 2, 2.0F);
  }
};

TEST(LinearSource, GroupAffineFormsAndPermutation) {
  auto groups = std::make_shared<FakeGroups>();
  LinearSource source;
  source.n = 3;
  source.k = 6;
  source.data = std::shared_ptr<const GroupAffine>(groups);
  EXPECT_EQ(source.format_name(), "int4 g4 (zero point)");
  EXPECT_EQ(source.published_bytes(), 3 * (3 + 5));  // 6 codes, 2 x (16 + 4) bits
  EXPECT_THAT(rows_of(source, 0, 1), testing::ElementsAre(-2, -1, 0, 1, 4, 6));
  EXPECT_THAT(rows_of(source.slice_rows(1, 3), 1, 1), testing::ElementsAre(0, 1, 2, 3, 8, 10));
  groups->form = GroupAffine::Form::kOffset;
  groups->group_of = {1, 0, 0, 0, 0, 1};
  EXPECT_EQ(source.format_name(), "int4 g4 (offset, act-order)");
  EXPECT_THAT(rows_of(source, 0, 1), testing::ElementsAre(2, 3, 4, 5, 6, 12));
}

TEST(LinearSource, Refusals) {
  const std::vector<std::byte> bytes(64);
  EXPECT_THROW(LinearSource::of_matrix(tensor_of(DType::kF32, {16}, bytes)), Error);
  EXPECT_THROW(LinearSource::of_matrix(tensor_of(DType::kF32, {4, 5}, bytes)), Error);
  EXPECT_THROW(LinearSource::of_matrix(tensor_of(DType::kI32, {4, 4}, bytes)), Error);
  EXPECT_THROW(LinearSource::of_matrix(tensor_of(DType::kQ4_0, {1, 48}, bytes)), Error);
  const LinearSource source = LinearSource::of_matrix(tensor_of(DType::kF32, {4, 4}, bytes));
  std::vector<float> out(16);
  EXPECT_THROW(source.decode_rows(3, 2, out.data()), Error);
  EXPECT_THROW(source.slice_rows(2, 5), Error);
}

}  // namespace
}  // namespace qw
