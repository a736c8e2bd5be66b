// AWQ tensors written and opened again, and what the layouts cannot hold. That the bytes are
// AutoAWQ's is tested on its own files (tests/golden_quant_test.cpp).
#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "base/half.h"
#include "quant/affine_matrix.h"
#include "quant/awq.h"

namespace qw {
namespace {

constexpr AwqVersion kVersions[] = {AwqVersion::kGemm, AwqVersion::kGemv, AwqVersion::kGemvFast};

AffineMatrix make(int64_t n, int64_t k, int64_t group_size) {
  std::mt19937 random(3);
  AffineMatrix out;
  out.n = n;
  out.k = k;
  out.bits = 4;
  out.group_size = group_size;
  out.n_groups = k / group_size;
  for (int64_t i = 0; i < n * k; ++i)
    out.code_values.push_back(static_cast<uint8_t>(random() % 16));
  for (int64_t i = 0; i < n * out.n_groups; ++i) {
    out.scale_values.push_back(f16_to_f32(static_cast<uint16_t>(0x2000 + random() % 0x1000)));
    out.zero_values.push_back(static_cast<float>(random() % 16));
  }
  return out;
}

std::vector<float> decode(const LinearSource& source) {
  std::vector<float> out(static_cast<size_t>(source.n * source.k));
  source.decode_rows(0, source.n, out.data());
  return out;
}

TEST(AwqWriter, WhatIsWrittenIsReadBack) {
  for (const auto& [n, k, group_size] :
       {std::tuple{64, 256, 128}, std::tuple{8, 192, 64}, std::tuple{40, 320, 32},
        std::tuple{16, 1152, 128}, std::tuple{24, 512, 512}}) {
    for (const AwqVersion version : kVersions) {
      SCOPED_TRACE(testing::Message() << name_of(version) << ' ' << n << ' ' << k);
      std::shared_ptr<const AffineMatrix> matrix =
          std::make_shared<AffineMatrix>(make(n, k, group_size));
      if (version == AwqVersion::kGemvFast) matrix = with_f16_offsets(*matrix);
      const AwqFile file = publish_awq(*matrix, version, "layers.0.q_proj");
      const AwqFile::Views views = file.views("layers.0.q_proj");
      EXPECT_EQ(views.qzeros.name, "layers.0.q_proj.qzeros");
      const auto opened = open_awq({4, group_size, version}, views.tensors("layers.0.q_proj"));
      EXPECT_EQ(opened->form, matrix->form);
      EXPECT_EQ(decode(source_of("a", opened)), decode(source_of("b", matrix)));
      std::vector<uint8_t> codes(matrix->code_values.size());
      std::vector<float> zeros(matrix->zero_values.size());
      opened->codes(0, n, codes.data());
      opened->zeros(0, n, zeros.data());
      EXPECT_EQ(codes, matrix->code_values);
      EXPECT_EQ(zeros, matrix->zero_values);
    }
  }
}

TEST(AwqWriter, OffsetsAreAutoAwqs) {
  const AffineMatrix matrix = make(8, 64, 32);
  const auto offsets = with_f16_offsets(matrix);
  for (size_t i = 0; i < matrix.zero_values.size(); ++i) {
    EXPECT_EQ(offsets->zero_values[i],
              f16_to_f32(f32_to_f16(-(matrix.scale_values[i] * matrix.zero_values[i]))));
  }
}

TEST(AwqWriter, WhatTheLayoutsCannotHoldIsRefused) {
  const auto refused = [](const std::string& what, AffineMatrix matrix, AwqVersion version) {
    try {
      publish_awq(matrix, version, "layers.0.q_proj");
      FAIL() << what;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
      EXPECT_NE(error.message().find(what), std::string::npos) << error.message();
      EXPECT_NE(error.message().find("layers.0.q_proj"), std::string::npos) << error.message();
    }
  };
  AffineMatrix matrix = make(8, 64, 32);
  matrix.bits = 3;
  refused("4 bits", matrix, AwqVersion::kGemm);
  matrix = make(8, 64, 32);
  matrix.group_of.resize(64);
  refused("act-order", matrix, AwqVersion::kGemm);
  refused("expected offsets", make(8, 64, 32), AwqVersion::kGemvFast);
  refused("expected zero points", *with_f16_offsets(make(8, 64, 32)), AwqVersion::kGemv);
  refused("multiple of 8", make(12, 64, 32), AwqVersion::kGemm);
  refused("gemm holds any", make(8, 96, 48), AwqVersion::kGemv);
  refused("multiple of 64", *with_f16_offsets(make(8, 96, 32)), AwqVersion::kGemvFast);
  matrix = make(8, 80, 32);
  refused("whole groups", matrix, AwqVersion::kGemm);
  matrix = make(8, 64, 32);
  matrix.zero_values[3] = 16;
  refused("0 to 15", matrix, AwqVersion::kGemm);
  matrix = make(8, 64, 32);
  matrix.scale_values[3] = 0.1F;
  refused("f16 holds", matrix, AwqVersion::kGemv);
  publish_awq(make(8, 96, 48), AwqVersion::kGemm, "any group size");
}

}  // namespace
}  // namespace qw
