// Properties of the block codecs that goldens do not show; golden values:
// tests/golden_quant_test.cpp.
#include "quant/ggml_blocks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "base/error.h"
#include "quant/ggml_blocks_layout.h"
#include "quant/ggml_grids.h"

namespace qw {
namespace {

template <typename Visit>
void for_each_type(Visit visit) {
  for (int i = 0; i <= static_cast<int>(DType::kQ2_0); ++i)
    visit(static_cast<DType>(i));
}

std::vector<float> normal_row(int64_t n) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(n));
  for (float& value : out)
    value = normal(random);
  return out;
}

TEST(GgmlBlocks, EveryFloatAndBlockTypeDecodesAndIntegersAreRefused) {
  for_each_type([](DType dtype) {
    const std::vector<std::byte> bytes(4096);
    std::vector<float> out(256, 1.0F);
    if (is_float(dtype) || is_block(dtype)) {
      decode_row(dtype, bytes.data(), 256, out.data());
      // All-zero bytes are a zero scale, but for E8M0, whose smallest scale is 2^-128.
      for (const float value : out)
        EXPECT_EQ(value, 0.0F) << name_of(dtype);
    } else {
      EXPECT_THROW(decode_row(dtype, bytes.data(), 256, out.data()), Error) << name_of(dtype);
      EXPECT_FALSE(can_encode(dtype)) << name_of(dtype);
    }
  });
}

TEST(GgmlBlocks, RowsMayLieAnywhere) {
  const std::vector<float> row = normal_row(512);
  for_each_type([&](DType dtype) {
    if (!can_encode(dtype)) return;
    const auto n_bytes = static_cast<size_t>(row_bytes(dtype, 512, "test"));
    std::vector<std::byte> bytes(n_bytes + 1);
    std::vector<float> aligned(512), shifted(512);
    encode_row(dtype, row.data(), 512, bytes.data());
    decode_row(dtype, bytes.data(), 512, aligned.data());
    std::memmove(bytes.data() + 1, bytes.data(), n_bytes);
    decode_row(dtype, bytes.data() + 1, 512, shifted.data());
    EXPECT_EQ(aligned, shifted) << name_of(dtype);
  });
}

TEST(GgmlBlocks, EncodingErrorShrinksWithBits) {
  const std::vector<float> row = normal_row(2048);
  const auto error_of = [&](DType dtype) {
    std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(dtype, 2048, "test")));
    std::vector<float> decoded(2048);
    encode_row(dtype, row.data(), 2048, bytes.data());
    decode_row(dtype, bytes.data(), 2048, decoded.data());
    double sum = 0;
    for (size_t i = 0; i < 2048; ++i)
      sum += std::pow(double{decoded[i]} - row[i], 2);
    return std::sqrt(sum / 2048);
  };
  using enum DType;
  const std::vector<DType> finer = {kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K, kQ8_0, kF16, kF32};
  for (size_t i = 1; i < finer.size(); ++i) {
    EXPECT_LT(error_of(finer[i]), error_of(finer[i - 1])) << name_of(finer[i]);
  }
}

TEST(GgmlBlocks, EncodeRefusesWhatCannotBeStored) {
  std::vector<float> row(256, 1.0F);
  std::vector<std::byte> bytes(1024);
  EXPECT_FALSE(can_encode(DType::kI32));
  EXPECT_THROW(encode_row(DType::kI32, row.data(), 256, bytes.data()), Error);
  row[17] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(encode_row(DType::kQ4_K, row.data(), 256, bytes.data()), Error);
  row[17] = 1e30F;  // its scale is beyond f16
  EXPECT_THROW(encode_row(DType::kQ4_0, row.data(), 256, bytes.data()), Error);
  row[17] = 1e5F;  // this one is not
  EXPECT_NO_THROW(encode_row(DType::kQ4_0, row.data(), 256, bytes.data()));
  EXPECT_THROW(encode_row(DType::kF16, row.data(), 256, bytes.data()), Error);
  row[17] = 65519.0F;  // rounds to the largest f16
  EXPECT_NO_THROW(encode_row(DType::kF16, row.data(), 256, bytes.data()));
  row[17] = -std::numeric_limits<float>::infinity();  // as asked
  EXPECT_NO_THROW(encode_row(DType::kF16, row.data(), 256, bytes.data()));
}

TEST(GgmlBlocks, PackedScalesReadBack) {
  K4Scales k4;
  std::array<int8_t, 16> q3;
  for (size_t s = 0; s < 8; ++s) {
    k4.scale[s] = static_cast<uint8_t>(9 * s);
    k4.min[s] = static_cast<uint8_t>(63 - 7 * s);
  }
  for (size_t s = 0; s < 16; ++s)
    q3[s] = static_cast<int8_t>(4 * static_cast<int>(s) - 31);
  EXPECT_EQ(unpack_k4_scales(pack_k4_scales(k4)).scale, k4.scale);
  EXPECT_EQ(unpack_k4_scales(pack_k4_scales(k4)).min, k4.min);
  EXPECT_EQ(unpack_q3_k_scales(pack_q3_k_scales(q3)), q3);
}

TEST(GgmlBlocks, SmallFloatScales) {
  EXPECT_EQ(e8m0_half(0), 0x1p-128F);
  EXPECT_EQ(e8m0_half(1), 0x1p-127F);
  EXPECT_EQ(e8m0_half(128), 1.0F);
  EXPECT_EQ(ue4m3_half(0x01), 0x1p-10F);
  EXPECT_EQ(ue4m3_half(0x38), 0.5F);
  EXPECT_EQ(ue4m3_half(0x7E), 224.0F);
  EXPECT_EQ(ue4m3_half(0x7F), 0.0F);
}

TEST(GgmlBlocks, ScalesOfRandomBlocksAreSetWithoutTouchingCodes) {
  using enum DType;
  for (DType dtype : {kIQ1_S, kIQ1_M, kIQ2_XXS, kIQ2_XS, kIQ2_S, kIQ3_XXS, kIQ3_S}) {
    std::vector<std::byte> bytes(static_cast<size_t>(info(dtype).block_bytes));
    for (size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = static_cast<std::byte>(i * 89 + 7);
    std::vector<float> one(256), other(256);
    set_block_scale(dtype, 0x3C00, bytes.data());  // 1
    decode_row(dtype, bytes.data(), 256, one.data());
    set_block_scale(dtype, 0xB555, bytes.data());  // all digits: -0x1.554p-2
    decode_row(dtype, bytes.data(), 256, other.data());
    for (size_t i = 0; i < 256; ++i)
      ASSERT_EQ(other[i], one[i] * -0x1.554p-2F) << name_of(dtype) << " " << i;
  }
}

constexpr std::array kGridTypes = {DType::kIQ1_S, DType::kIQ1_M,   DType::kIQ2_XXS, DType::kIQ2_XS,
                                   DType::kIQ2_S, DType::kIQ3_XXS, DType::kIQ3_S};

std::vector<float> encoded_and_decoded(DType dtype, const std::vector<float>& row,
                                       const std::vector<float>& importance) {
  const auto n = static_cast<int64_t>(row.size());
  std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(dtype, n, "test")), std::byte{0xA5});
  std::vector<float> out(row.size());
  importance.empty() ? encode_row(dtype, row.data(), n, bytes.data())
                     : encode_row(dtype, row.data(), importance.data(), n, bytes.data());
  decode_row(dtype, bytes.data(), n, out.data());
  return out;
}

double error_of(const std::vector<float>& row, const std::vector<float>& decoded,
                const std::vector<float>& importance) {
  double sum = 0;
  for (size_t i = 0; i < row.size(); ++i)
    sum += importance[i] * std::pow(double{decoded[i]} - row[i], 2);
  return sum;
}

/// What a type can hold exactly comes back exactly, where no group needs a sign that is not stored.
TEST(GgmlBlocks, GridTypesFindTheirOwnPoints) {
  for (DType dtype : kGridTypes) {
    std::vector<std::byte> bytes(static_cast<size_t>(info(dtype).block_bytes));
    std::mt19937 random(9);
    int n_exact = 0;
    for (int trial = 0; trial < 20; ++trial) {
      for (std::byte& byte : bytes)
        byte = static_cast<std::byte>(random());
      set_block_scale(dtype, 0x3C00, bytes.data());
      std::vector<float> row(256);
      decode_row(dtype, bytes.data(), 256, row.data());
      const std::vector<float> ones(256, 1.0F), zeros(256);
      const std::vector<float> decoded = encoded_and_decoded(dtype, row, {});
      // Scales are found by trying some, so that not every sub-block comes back bit for bit.
      if (error_of(row, decoded, ones) < 0.02 * error_of(row, zeros, ones)) ++n_exact;
    }
    EXPECT_GE(n_exact, 18) << name_of(dtype);
  }
}

TEST(GgmlBlocks, GridTypesMindImportances) {
  const std::vector<float> row = normal_row(1024), ones(1024, 1.0F);
  std::vector<float> importance(1024);
  for (size_t i = 0; i < 1024; ++i)
    importance[i] = i % 5 == 0 ? 30.0F : 0.5F;
  std::vector<float> large = importance, none(1024, 0.0F);
  for (float& weight : large)
    weight *= 0x1p100F;
  for (DType dtype : kGridTypes) {
    const std::vector<float> plain = encoded_and_decoded(dtype, row, {});
    const std::vector<float> weighted = encoded_and_decoded(dtype, row, importance);
    EXPECT_LT(error_of(row, weighted, importance), 0.9 * error_of(row, plain, importance))
        << name_of(dtype);
    EXPECT_EQ(encoded_and_decoded(dtype, row, large), weighted) << name_of(dtype);
    EXPECT_EQ(encoded_and_decoded(dtype, row, ones), plain) << name_of(dtype);
    EXPECT_EQ(encoded_and_decoded(dtype, row, none), plain) << name_of(dtype);
  }
}

TEST(GgmlBlocks, GridTypesTakeRowsOfAnySize) {
  std::vector<float> row = normal_row(512);
  std::fill_n(row.begin(), 40, 0.0F);
  const std::vector<float> ones(512, 1.0F);
  for (DType dtype : kGridTypes) {
    EXPECT_EQ(encoded_and_decoded(dtype, std::vector<float>(512), {}), std::vector<float>(512));
    const std::vector<float> usual = encoded_and_decoded(dtype, row, {});
    for (const float size : {0x1p-8F, 0x1p8F}) {  // powers of two change no other bit
      std::vector<float> sized = row, expected = usual;
      for (size_t i = 0; i < 512; ++i)
        sized[i] *= size, expected[i] *= size;
      const double limit = 1.02 * error_of(sized, expected, ones);
      EXPECT_LE(error_of(sized, encoded_and_decoded(dtype, sized, {}), ones), limit)
          << name_of(dtype) << size;
    }
    std::vector<float> odd = row;
    odd[300] = 1e-40F;
    EXPECT_LE(error_of(odd, encoded_and_decoded(dtype, odd, {}), ones),
              1.02 * error_of(row, usual, ones));
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::infinity(), 1e30F, -3e38F}) {
      odd[300] = bad;
      EXPECT_THROW(encoded_and_decoded(dtype, odd, {}), Error) << name_of(dtype) << bad;
      EXPECT_THROW(encoded_and_decoded(dtype, odd, ones), Error) << name_of(dtype) << bad;
    }
  }
}

/// One weight that is larger than all others is as large afterwards, as far as the type goes; or
/// the row is refused. But NVFP4 is clamped by its definition, which goldens of its bytes follow.
TEST(GgmlBlocks, LargeWeightsAreHeldOrRefused) {
  for_each_type([](DType dtype) {
    if (!is_block(dtype) || dtype == DType::kNVFP4) return;
    std::vector<float> row = normal_row(512);
    const std::vector<float> ones(512, 1.0F);
    for (const std::vector<float>& importance : {std::vector<float>(), ones}) {
      const auto decoded_spike = [&](float spike) {
        row[300] = spike;
        return encoded_and_decoded(dtype, row, importance)[300];
      };
      const float share = decoded_spike(1024) / 1024;
      ASSERT_GT(share, 0) << name_of(dtype);
      // Types with minimums hold other sizes of either sign.
      for (const float sign : {1.0F, -1.0F}) {
        bool is_refused = false;
        for (float value = 2048 * sign; std::isfinite(value); value *= 2) {
          try {
            const float held = decoded_spike(value);
            EXPECT_GT(held / value, 0.4 * share) << name_of(dtype) << " " << value;
            EXPECT_LT(held / value, 2.0) << name_of(dtype) << " " << value;
            EXPECT_FALSE(is_refused) << name_of(dtype) << " " << value;
          } catch (const Error& error) {
            EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
            is_refused = true;
          }
        }
        EXPECT_EQ(is_refused, dtype != DType::kQ8_K && dtype != DType::kMXFP4) << name_of(dtype);
      }
    }
  });
}

TEST(GgmlBlocks, SignIndicesGiveAnEvenNumberOfSigns) {
  for (unsigned index = 0; index < 128; ++index) {
    EXPECT_EQ(iq_signs(index) & 127u, index);
    EXPECT_EQ(std::popcount(iq_signs(index)) % 2, 0);
  }
}

TEST(GgmlBlocks, DoublesNarrowWithoutSurprises) {
  const std::vector<double> values = {1.0 / 3.0, 1e300, -1e300, 0x1.fffffep127, 1e-320};
  std::vector<float> out(values.size());
  decode_row(DType::kF64, reinterpret_cast<const std::byte*>(values.data()), 5, out.data());
  EXPECT_EQ(out[0], 1.0F / 3.0F);
  EXPECT_EQ(out[1], std::numeric_limits<float>::infinity());
  EXPECT_EQ(out[2], -std::numeric_limits<float>::infinity());
  EXPECT_EQ(out[3], std::numeric_limits<float>::max());
  EXPECT_EQ(out[4], 0.0F);
}

}  // namespace
}  // namespace qw
