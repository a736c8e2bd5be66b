#include "checkpoint/byte_order.h"

#include <numeric>

#include "checkpoint/test_support.h"

namespace qw {
namespace {

std::vector<std::byte> counted(size_t n_bytes) {
  std::vector<std::byte> bytes(n_bytes);
  for (size_t i = 0; i < n_bytes; ++i)
    bytes[i] = static_cast<std::byte>(i * 37 + i / 256);
  return bytes;
}

// Positions of two blocks whose byte changed.
std::vector<size_t> changed(DType dtype) {
  const std::vector<std::byte> before = counted(static_cast<size_t>(2 * info(dtype).block_bytes));
  std::vector<std::byte> after = before;
  swap_byte_order(dtype, after, "w");
  std::vector<size_t> out;
  for (size_t i = 0; i < before.size(); ++i) {
    if (before[i] != after[i]) out.push_back(i);
  }
  swap_byte_order(dtype, after, "w");
  EXPECT_EQ(after, before) << name_of(dtype) << ": turned round twice";
  return out;
}

TEST(ByteOrder, PlainTypes) {
  std::string text = "0123456789abcdef";
  const auto swap = [&](DType dtype) {
    std::string out = text;
    swap_byte_order(dtype, std::as_writable_bytes(std::span(out)), "w");
    return out;
  };
  EXPECT_EQ(swap(DType::kI8), text);
  EXPECT_EQ(swap(DType::kBF16), "1032547698badcfe");
  EXPECT_EQ(swap(DType::kF32), "32107654ba98fedc");
  EXPECT_EQ(swap(DType::kI64), "76543210fedcba98");
}

TEST(ByteOrder, ScalesOfBlocks) {  // positions by the structs of ggml-common.h
  EXPECT_EQ(changed(DType::kQ4_0), (std::vector<size_t>{0, 1, 18, 19}));
  EXPECT_EQ(changed(DType::kQ4_1), (std::vector<size_t>{0, 1, 2, 3, 20, 21, 22, 23}));
  EXPECT_EQ(changed(DType::kQ8_0), (std::vector<size_t>{0, 1, 34, 35}));
  EXPECT_EQ(changed(DType::kQ4_K), (std::vector<size_t>{0, 1, 2, 3, 144, 145, 146, 147}));
  EXPECT_EQ(changed(DType::kQ6_K), (std::vector<size_t>{208, 209, 418, 419}));
  EXPECT_EQ(changed(DType::kQ2_K), (std::vector<size_t>{80, 81, 82, 83, 164, 165, 166, 167}));
  EXPECT_TRUE(changed(DType::kMXFP4).empty());
  EXPECT_TRUE(changed(DType::kNVFP4).empty());
}

TEST(ByteOrder, EveryTypeIsDefinedOrRefused) {
  for (int id = 0; id <= static_cast<int>(DType::kQ2_0); ++id) {
    const auto dtype = static_cast<DType>(id);
    if (dtype == DType::kIQ2_XXS || dtype == DType::kIQ3_XXS) {
      std::vector<std::byte> bytes(static_cast<size_t>(info(dtype).block_bytes));
      expect_error(ErrorKind::kUnsupported, {"w", std::string(name_of(dtype))},
                   [&] { swap_byte_order(dtype, bytes, "w"); });
    } else {
      const bool bytes_only =
          info(dtype).block_bytes == 1 || dtype == DType::kMXFP4 || dtype == DType::kNVFP4;
      EXPECT_EQ(changed(dtype).empty(), bytes_only) << name_of(dtype);
    }
  }
}

}  // namespace
}  // namespace qw
