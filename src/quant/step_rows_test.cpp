// Codes that go from one format to another: which blocks hold them, and that no weight changes.
#include "quant/step_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/half.h"
#include "quant/affine_matrix.h"
#include "quant/ggml_blocks.h"

namespace qw {
namespace {

/// Codes and scales that a small generator makes; `zero`: the zero point of group g of row o.
template <typename Zero>
std::shared_ptr<AffineMatrix> matrix_of(int bits, int64_t n, int64_t k, int64_t group,
                                        const Zero& zero) {
  auto m = std::make_shared<AffineMatrix>();
  m->n = n;
  m->k = k;
  m->bits = bits;
  m->group_size = group;
  m->n_groups = k / group;
  uint32_t state = 7;
  const auto next = [&] { return (state = state * 1664525 + 1013904223) >> 8; };
  for (int64_t i = 0; i < n * k; ++i)
    m->code_values.push_back(static_cast<uint8_t>(next() & ((1u << bits) - 1)));
  for (int64_t i = 0; i < n * m->n_groups; ++i) {
    const float scale = 0.001F + 1e-6F * static_cast<float>(next() % 4096);
    m->scale_values.push_back(f16_to_f32(f32_to_f16(scale)));
    m->zero_values.push_back(static_cast<float>(zero(i)));
  }
  return m;
}

struct Row {
  std::vector<float> before, after;
  bool fits = false;
  double relative() const {
    double change = 0, size = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      change += std::pow(double{after[i]} - double{before[i]}, 2);
      size += std::pow(double{before[i]}, 2);
    }
    return std::sqrt(change / size);
  }
};

Row transcode(const LinearSource& source, DType dtype, int64_t row = 1,
              const float* importance = nullptr) {
  Row out;
  StepRows steps;
  read_steps(source, row, 2, steps);
  out.before.resize(static_cast<size_t>(source.k));
  source.decode_rows(row + 1, 1, out.before.data());
  std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(dtype, source.k, "row")));
  encode_steps(dtype, steps, 1, out.before.data(), importance, bytes.data());
  out.after.resize(out.before.size());
  decode_row(dtype, bytes.data(), source.k, out.after.data());
  out.fits = steps_fit(dtype, steps, 1, out.before.data());
  return out;
}

TEST(StepRows, SymmetricGroupsFitBlocksWithoutMinimum) {
  const auto middle = [](int bits) { return [bits](int64_t) { return 1 << (bits - 1); }; };
  for (const auto& [bits, dtype] : {std::pair(2, DType::kQ4_0), std::pair(3, DType::kQ4_0),
                                    std::pair(4, DType::kQ4_0), std::pair(8, DType::kQ8_0)}) {
    for (const int64_t group : {32, 64, 128, 256}) {
      const LinearSource source = source_of("w", matrix_of(bits, 4, 256, group, middle(bits)));
      const Row row = transcode(source, dtype);
      EXPECT_EQ(row.before, row.after) << bits << " bits, groups of " << group;
      EXPECT_TRUE(row.fits);
    }
  }
  // Eight bits are not four.
  const LinearSource wide = source_of("w", matrix_of(8, 4, 256, 128, middle(8)));
  EXPECT_FALSE(transcode(wide, DType::kQ4_0).fits);
  EXPECT_GT(transcode(wide, DType::kQ4_0).relative(), 0.03);
}

TEST(StepRows, ZeroPointsGoIntoMinimumsUpToTheirRounding) {
  const LinearSource source =
      source_of("w", matrix_of(4, 4, 256, 128, [](int64_t i) { return 5 + i % 2 * 6; }));
  const Row minimum = transcode(source, DType::kQ4_1);
  EXPECT_FALSE(minimum.fits);
  EXPECT_GT(minimum.relative(), 0);
  EXPECT_LT(minimum.relative(), 0.0004);  // half a unit of f16's last place, 2^-11, of the minimum
  // Fifteen steps on either side of 0 fit in five bits.
  EXPECT_TRUE(transcode(source, DType::kQ5_0).fits);
  EXPECT_EQ(transcode(source, DType::kQ5_0).relative(), 0);
  EXPECT_FALSE(transcode(source, DType::kQ4_0).fits);
  // Seven below 0 and eight above are eight below and seven above of the step negated.
  const LinearSource turned = source_of("w", matrix_of(4, 4, 256, 128, [](int64_t) { return 7; }));
  EXPECT_TRUE(transcode(turned, DType::kQ4_0).fits);
  // Eight steps are a power of two: nothing is rounded.
  const LinearSource middle = source_of("w", matrix_of(4, 4, 256, 128, [](int64_t) { return 8; }));
  EXPECT_TRUE(transcode(middle, DType::kQ4_1).fits);
}

TEST(StepRows, GroupsThatAreNoNeighboursAreRounded) {
  auto matrix = matrix_of(4, 4, 256, 128, [](int64_t) { return 8; });
  matrix->group_of.resize(256);
  for (size_t i = 0; i < 256; ++i)
    matrix->group_of[i] = static_cast<int32_t>(i % 2);
  const Row row = transcode(source_of("w", matrix), DType::kQ4_0);
  EXPECT_FALSE(row.fits);
  EXPECT_GT(row.relative(), 0.005);
  // Blocks of one group among others are kept: here all are.
  for (size_t i = 0; i < 256; ++i)
    matrix->group_of[i] = static_cast<int32_t>(i / 32 % 2);
  EXPECT_TRUE(transcode(source_of("w", matrix), DType::kQ4_0).fits);
}

TEST(StepRows, ScalesMustBeHalves) {
  auto matrix = matrix_of(4, 4, 256, 128, [](int64_t) { return 8; });
  for (float& scale : matrix->scale_values)
    scale = std::nextafter(scale, 1.0F);
  const Row row = transcode(source_of("w", matrix), DType::kQ4_0);
  EXPECT_FALSE(row.fits);
  EXPECT_LT(row.relative(), 1e-3);
}

TEST(StepRows, ImportancesDoNotMoveWhatFits) {
  const LinearSource source = source_of("w", matrix_of(4, 4, 256, 64, [](int64_t) { return 8; }));
  std::vector<float> importance(256);
  std::iota(importance.begin(), importance.end(), 0.0F);  // the first of no importance
  const Row row = transcode(source, DType::kQ4_0, 1, importance.data());
  EXPECT_EQ(row.before, row.after);
}

TEST(StepRows, CodesStayWhereNoInputMatters) {
  // The minimums of Q4_1 are rounded: not exact, but far nearer than what a search over nothing
  // finds.
  const LinearSource source = source_of("w", matrix_of(4, 4, 256, 128, [](int64_t) { return 5; }));
  const std::vector<float> importance(256, 0.0F);
  const Row row = transcode(source, DType::kQ4_1, 1, importance.data());
  EXPECT_GT(row.relative(), 0);
  EXPECT_LT(row.relative(), 0.0004);
}

TEST(StepRows, EncodedRowsKeepCodesWhereTheTypeTakesThem) {
  const LinearSource source = source_of("w", matrix_of(4, 4, 256, 128, [](int64_t) { return 8; }));
  for (const DType dtype : {DType::kQ4_0, DType::kIQ4_NL, DType::kF16}) {
    const int64_t bytes_per_row = row_bytes(dtype, 256, "row");
    std::vector<float> decoded(512), expected(512), got(512);
    std::vector<std::byte> bytes(static_cast<size_t>(2 * bytes_per_row)), rounded(bytes.size());
    encode_rows(source, 1, 2, dtype, nullptr, decoded.data(), bytes.data());
    source.decode_rows(1, 2, expected.data());
    EXPECT_EQ(decoded, expected);
    for (int64_t r = 0; r < 2; ++r) {
      decode_row(dtype, bytes.data() + r * bytes_per_row, 256, got.data() + r * 256);
      encode_row(dtype, expected.data() + r * 256, 256, rounded.data() + r * bytes_per_row);
    }
    // Q4_0 has the codes; encode_row, which searches, does not find them.
    EXPECT_EQ(got == expected, dtype == DType::kQ4_0) << name_of(dtype);
    EXPECT_EQ(bytes == rounded, dtype != DType::kQ4_0) << name_of(dtype);
  }
}

/// Random blocks of a type, as a file has them, in larger ones.
TEST(StepRows, BlocksFitLargerOnes) {
  using enum DType;
  const std::vector<std::pair<DType, DType>> held = {
      {kQ4_0, kQ5_0},   {kQ4_0, kQ8_0},  {kQ5_0, kQ8_0},  {kQ4_1, kQ5_1}, {kQ4_0, kQ4_1},
      {kIQ4_NL, kQ8_0}, {kTQ1_0, kQ4_0}, {kTQ2_0, kQ4_0}, {kQ1_0, kQ4_0}, {kQ2_0, kQ4_0}};
  for (const auto& [from, to] : held) {
    const int64_t k = 512, n = 4;
    std::vector<float> values(static_cast<size_t>(n * k));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = std::sin(static_cast<float>(i * i % 1009)) * 0.1F + 0.02F;
    const int64_t bytes_per_row = row_bytes(from, k, "row");
    std::vector<std::byte> bytes(static_cast<size_t>(n * bytes_per_row));
    for (int64_t r = 0; r < n; ++r)
      encode_row(from, values.data() + r * k, k, bytes.data() + r * bytes_per_row);
    LinearSource source;
    source.name = "w";
    source.n = n;
    source.k = k;
    source.data = BlockRows{from, bytes.data(), bytes_per_row};
    ASSERT_TRUE(has_steps(source));
    const Row row = transcode(source, to);
    EXPECT_EQ(row.before, row.after) << name_of(from) << " in " << name_of(to);
    EXPECT_TRUE(row.fits) << name_of(from) << " in " << name_of(to);
  }
}

TEST(StepRows, FloatsAndScaledScalesHaveNone) {
  LinearSource source;
  source.data = DenseRows{};
  EXPECT_FALSE(has_steps(source));
  source.data = std::shared_ptr<const CodebookBlocks>();
  EXPECT_FALSE(has_steps(source));
  source.data = BlockRows{DType::kQ4_K, nullptr, 0};
  EXPECT_FALSE(has_steps(source));
  EXPECT_FALSE(takes_steps(DType::kQ4_K));
  EXPECT_FALSE(takes_steps(DType::kIQ4_NL));
}

}  // namespace
}  // namespace qw
