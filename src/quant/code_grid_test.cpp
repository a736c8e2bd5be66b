#include "quant/code_grid.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/rng.h"
#include "quant/affine_matrix.h"
#include "quant/awq.h"
#include "quant/bitsandbytes.h"
#include "quant/ggml_blocks.h"
#include "quant/gptq.h"

namespace qw {
namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

std::vector<float> normals(int64_t n) {
  std::vector<float> out;
  for (int64_t i = 0; i < n; ++i)
    out.push_back(static_cast<float>(random_normal(3, 1, static_cast<uint64_t>(i))));
  return out;
}

std::vector<float> decode(const LinearSource& source) {
  std::vector<float> out(at(source.n * source.k));
  source.decode_rows(0, source.n, out.data());
  return out;
}

GridRows grid_of(const LinearSource& source) {
  GridRows out;
  read_grid(source, 0, source.n, out);
  return out;
}

/// The formula of the grid gives the decoder's numbers, for these codes and for any others.
void expect_grid(const LinearSource& source) {
  const std::optional<GridLevels> levels = grid_levels(source);
  ASSERT_TRUE(levels);
  const GridRows grid = grid_of(source);
  const auto expect_like = [&](const LinearSource& made, const std::vector<uint8_t>& codes) {
    const std::vector<float> values = decode(made);
    for (size_t i = 0; i < values.size(); ++i) {
      const float level =
          levels->is_affine ? static_cast<float>(codes[i]) : levels->values[codes[i]];
      const float value = rounded_to(levels->value_type, grid.bases[i] + grid.steps[i] * level);
      ASSERT_NEAR(values[i], value, 1e-6 + 1e-6 * std::fabs(value)) << "weight " << i;
    }
  };
  EXPECT_EQ(decode(with_codes(source, grid.codes)), decode(source));
  expect_like(source, grid.codes);
  std::vector<uint8_t> others;
  for (size_t i = 0; i < grid.codes.size(); ++i)
    others.push_back(static_cast<uint8_t>((i * 7 + i / 5) % at(levels->n)));
  const LinearSource made = with_codes(source, others);
  expect_like(made, others);
  EXPECT_EQ(grid_of(made).codes, others);
  EXPECT_EQ(grid_of(made).steps, grid.steps);
}

TEST(CodeGrid, BlocksKeepAllButTheirCodes) {
  constexpr int64_t kRows = 3, kCols = 512;
  const std::vector<float> values = normals(kRows * kCols);
  for (const DType dtype :
       {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kQ2_K,
        DType::kQ3_K, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kIQ4_NL, DType::kIQ4_XS,
        DType::kMXFP4, DType::kNVFP4, DType::kTQ2_0, DType::kQ1_0, DType::kQ2_0}) {
    SCOPED_TRACE(name_of(dtype));
    RawTensor tensor;
    tensor.name = "w";
    tensor.dtype = dtype;
    tensor.shape = Shape{kRows, kCols};
    const int64_t bytes_per_row = row_bytes(dtype, kCols, "w");
    std::vector<std::byte> bytes(at(kRows * bytes_per_row));
    for (int64_t r = 0; r < kRows; ++r)
      encode_row(dtype, values.data() + r * kCols, kCols, bytes.data() + r * bytes_per_row);
    tensor.bytes = bytes;
    const LinearSource source = LinearSource::of_matrix(tensor);
    expect_grid(source);
    const LinearSource same = with_codes(source, grid_of(source).codes);
    const auto& rows = std::get<BlockRows>(same.data);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), rows.data));
  }
}

TEST(CodeGrid, GridTypesAndFloatsHaveNone) {
  for (const DType dtype :
       {DType::kIQ2_XS, DType::kIQ3_S, DType::kIQ1_S, DType::kTQ1_0, DType::kF16}) {
    RawTensor tensor;
    tensor.dtype = dtype;
    tensor.shape = Shape{1, 256};
    const std::vector<std::byte> bytes(at(row_bytes(dtype, 256, "w")));
    tensor.bytes = bytes;
    EXPECT_FALSE(grid_levels(LinearSource::of_matrix(tensor))) << name_of(dtype);
  }
}

std::shared_ptr<AffineMatrix> groups(int bits) {
  auto out = std::make_shared<AffineMatrix>();
  out->n = 32;
  out->k = 128;
  out->bits = bits;
  out->group_size = 32;
  out->n_groups = 4;
  for (int64_t i = 0; i < out->n * out->k; ++i)
    out->code_values.push_back(static_cast<uint8_t>((i * 5 + i / 9) % (1 << bits)));
  for (int64_t i = 0; i < out->n * out->n_groups; ++i) {
    out->scale_values.push_back(0.25F + 0.125F * static_cast<float>(i % 7));
    out->zero_values.push_back(static_cast<float>(1 + i % ((1 << bits) - 1)));
  }
  return out;
}

TEST(CodeGrid, GroupsArePublishedAsTheyWere) {
  for (const int bits : {2, 3, 4, 8}) {
    const auto matrix = groups(bits);
    for (int64_t i = 0; i < matrix->k; ++i)  // act-order
      matrix->group_of.push_back(static_cast<int32_t>(i % 4));
    const LinearSource source = source_of("w", matrix);
    expect_grid(source);
    const LinearSource same = with_codes(source, grid_of(source).codes);
    EXPECT_EQ(publish_gptq_codes(*std::get<std::shared_ptr<const GroupAffine>>(same.data), "w"),
              publish_gptq(*matrix, false, "w").qweight);
  }
  for (const AwqVersion version : {AwqVersion::kGemm, AwqVersion::kGemv, AwqVersion::kGemvFast}) {
    std::shared_ptr<const AffineMatrix> matrix = groups(4);
    if (version == AwqVersion::kGemvFast) matrix = with_f16_offsets(*matrix);
    const LinearSource source = source_of("w", matrix);
    expect_grid(source);
    const LinearSource same = with_codes(source, grid_of(source).codes);
    EXPECT_EQ(
        publish_awq_codes(*std::get<std::shared_ptr<const GroupAffine>>(same.data), version, "w"),
        publish_awq(*matrix, version, "w").qweight);
  }
}

TEST(CodeGrid, CodebooksArePublishedAsTheyWere) {
  for (const bool nested : {false, true}) {
    Nf4Options options;
    options.double_quant = nested;
    const int64_t n = 3, k = 96;  // blocks of 64 end within rows
    const Bnb4File file = encode_nf4(
        LinearSource::of_floats("w", n, k, std::make_shared<std::vector<float>>(normals(n * k))),
        options);
    LinearSource source;
    source.n = n;
    source.k = k;
    const Bnb4File::Views views = file.views("w");
    source.data = open_bnb4(file.state, views.tensors("w"));
    expect_grid(source);
    EXPECT_EQ(pack_bnb4_codes(grid_of(source).codes), file.codes);
  }
}

}  // namespace
}  // namespace qw
