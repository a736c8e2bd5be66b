// Tests of element types and shapes.
#include <gtest/gtest.h>

#include "base/error.h"
#include "tensor/dtype.h"
#include "tensor/shape.h"

namespace qw {
namespace {

TEST(DType, NamesAndIdsFindTheirWayBack) {
  for (int i = 0; i <= static_cast<int>(DType::kQ2_0); ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(dtype_from_name(name_of(dtype)), dtype);
    if (info(dtype).ggml_id >= 0) {
      EXPECT_EQ(dtype_from_ggml_id(info(dtype).ggml_id), dtype);
    }
  }
  EXPECT_EQ(dtype_from_name("Q4_K"), DType::kQ4_K);
  EXPECT_EQ(dtype_from_name("q4"), std::nullopt);
  for (const int removed : {4, 5, 31, 32, 33, 36, 37, 38, -1, 99})
    EXPECT_EQ(dtype_from_ggml_id(removed), std::nullopt);
}

TEST(DType, RowBytesNeedWholeBlocks) {
  EXPECT_EQ(row_bytes(DType::kQ4_K, 512, "w"), 288);
  EXPECT_EQ(row_bytes(DType::kF16, 3, "w"), 6);
  EXPECT_THROW(row_bytes(DType::kQ4_K, 384, "w"), Error);
  EXPECT_THROW(row_bytes(DType::kF64, int64_t{1} << 61, "w"), Error);
}

TEST(Shape, SizesRowsAndText) {
  const Shape shape{2, 3, 4};
  EXPECT_EQ(shape.n_elems(), 24);
  EXPECT_EQ(shape.rows(), 6);
  EXPECT_EQ(shape.cols(), 4);
  EXPECT_EQ(shape.str(), "[2, 3, 4]");
  EXPECT_EQ(Shape{}.n_elems(), 1);
  EXPECT_FALSE(shape == (Shape{2, 3}));
  const int64_t big = int64_t{1} << 40;
  EXPECT_THROW((Shape{big, big}), Error);
  EXPECT_THROW((Shape{1, 1, 1, 1, 1}), Error);
  EXPECT_THROW((Shape{2, -3}), Error);
  try {
    Shape(std::vector<int64_t>{big, big}, "w", "model.gguf");
    FAIL() << "an overflow passed";
  } catch (const Error& error) {
    EXPECT_NE(error.message().find("w: "), std::string::npos) << error.message();
    EXPECT_TRUE(error.message().ends_with("(model.gguf)")) << error.message();
  }
}

TEST(ShapeCheck, BindsThenDemands) {
  ShapeCheck dims("layer 3");
  dims.set("hidden", 64);
  dims.match("q_proj.weight", Shape{128, 64}, {"q", "hidden"});
  EXPECT_EQ(dims.get("q"), 128);
  EXPECT_NO_THROW(dims.match("q_proj.bias", Shape{128}, {"q"}));
  try {
    dims.match("k_proj.weight", Shape{128, 65}, {"k", "hidden"});
    FAIL() << "a wrong shape passed";
  } catch (const Error& error) {
    EXPECT_EQ(
        error.message(),
        "[tensor] shape of k_proj.weight: expected hidden = 64, got 65 in [128, 65] (layer 3)");
  }
  EXPECT_THROW(dims.match("k_proj.weight", Shape{128}, {"k", "hidden"}), Error);
}

}  // namespace
}  // namespace qw
