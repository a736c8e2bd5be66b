// GPTQ tensors written and opened again, and what the format cannot hold.
#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "base/half.h"
#include "quant/affine_matrix.h"
#include "quant/gptq.h"

namespace qw {
namespace {

AffineMatrix make(int bits, int64_t n, int64_t k, int64_t group_size, bool v2, bool act_order) {
  std::mt19937 random(3);
  AffineMatrix out;
  out.n = n;
  out.k = k;
  out.bits = bits;
  out.group_size = group_size == -1 ? k : group_size;
  out.n_groups = (k + out.group_size - 1) / out.group_size;
  const unsigned levels = 1u << bits;
  for (int64_t i = 0; i < n * k; ++i)
    out.code_values.push_back(static_cast<uint8_t>(random() % levels));
  for (int64_t i = 0; i < n * out.n_groups; ++i) {
    const unsigned sign = random() % 2 << 15;  // a symmetric grid may run downwards
    out.scale_values.push_back(
        f16_to_f32(static_cast<uint16_t>(sign | (0x2000 + random() % 0x1000))));
    out.zero_values.push_back(
        static_cast<float>(v2 ? random() % levels : 1 + random() % (levels - 1)));
  }
  for (int64_t i = 0; act_order && i < k; ++i)
    out.group_of.push_back(static_cast<int32_t>(i / out.group_size));
  std::shuffle(out.group_of.begin(), out.group_of.end(), random);
  return out;
}

TEST(GptqWriter, WhatIsWrittenIsReadBack) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const bool v2 : {false, true}) {
      for (const auto& [n, k, group_size, act] :
           {std::tuple{64, 128, 64, false}, std::tuple{33, 160, -1, false},
            std::tuple{7, 96, 36, true}, std::tuple{1, 64, 32, true}}) {
        SCOPED_TRACE(testing::Message() << bits << ' ' << v2 << ' ' << n << ' ' << k);
        const AffineMatrix matrix = make(bits, n, k, group_size, v2, act);
        const GptqFile file = publish_gptq(matrix, v2, "layers.0.q_proj");
        EXPECT_EQ(file.qweight_shape, (Shape{int64_t{k} * bits / 32, n}));
        EXPECT_EQ(file.scales_shape, (Shape{matrix.n_groups, n}));
        const GptqFile::Views views = file.views("layers.0.q_proj");
        EXPECT_EQ(views.qzeros.name, "layers.0.q_proj.qzeros");
        std::string warning;
        const auto opened = open_gptq({bits, group_size, act, false, v2},
                                      views.tensors("layers.0.q_proj"), &warning);
        std::vector<uint8_t> codes(matrix.code_values.size());
        std::vector<float> scales(matrix.scale_values.size()), zeros(scales.size());
        opened->codes(0, n, codes.data());
        opened->scales(0, n, scales.data());
        opened->zeros(0, n, zeros.data());
        EXPECT_EQ(codes, matrix.code_values);
        EXPECT_EQ(scales, matrix.scale_values);
        EXPECT_EQ(zeros, matrix.zero_values);
        EXPECT_EQ(opened->group_of, matrix.group_of);
        EXPECT_EQ(opened->group_size, matrix.group_size);
      }
    }
  }
}

TEST(GptqWriter, WordsThatDoNotFillUnitsOf32) {
  const AffineMatrix matrix = make(2, 5, 48, -1, false, false);
  const GptqFile file = publish_gptq(matrix, false, "w");
  const GptqFile::Views views = file.views("w");
  const auto opened = open_gptq({2, -1, false, false, false}, views.tensors("w"));
  std::vector<uint8_t> codes(matrix.code_values.size());
  opened->codes(0, 5, codes.data());
  EXPECT_EQ(codes, matrix.code_values);
}

std::string refused(const AffineMatrix& matrix, bool v2) {
  try {
    publish_gptq(matrix, v2, "layers.0.q_proj");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    return error.message();
  }
  return "";
}

TEST(GptqWriter, RefusesWhatTheFormatCannotHold) {
  AffineMatrix matrix = make(4, 8, 64, 32, false, false);
  EXPECT_EQ(refused(matrix, false), "");
  matrix.zero_values[5] = 0;
  EXPECT_EQ(refused(matrix, true), "");
  EXPECT_EQ(
      refused(matrix, false),
      "[gptq] layers.0.q_proj.qzeros: expected zero points 1 to 15 in gptq (v1), got 0 (group "
      "1, output row 2)");
  matrix.zero_values[5] = 16;
  EXPECT_NE(refused(matrix, true), "");
  EXPECT_NE(refused(matrix, false), "");
  matrix.zero_values[5] = 2.5F;
  EXPECT_NE(refused(matrix, true), "");
  matrix.zero_values[5] = 2;
  matrix.scale_values[3] = 0.1F;
  EXPECT_NE(refused(matrix, false).find("values that f16 holds, got 0.1"), std::string::npos);
  EXPECT_NE(refused(make(3, 8, 48, -1, false, false), false), "");
  EXPECT_NE(refused(make(4, 8, 20, -1, false, false), false), "");
}

}  // namespace
}  // namespace qw
