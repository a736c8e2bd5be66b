// The three AWQ layouts against packers that place one nibble at a time.
#include "quant/awq.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>

#include "base/error.h"
#include "base/half.h"

namespace qw {
namespace {

/// A matrix in published form, with the codes, zeros and scales that went in.
struct Packed {
  AwqConfig config;
  int64_t n = 0, k = 0, n_groups = 0;
  std::vector<uint8_t> codes;        // [n, k]
  std::vector<float> zeros, scales;  // [n, n_groups]; zeros are offsets for GEMV_FAST
  std::vector<uint32_t> words, zero_words;
  std::vector<uint16_t> half_words, zero_halves, scale_halves;
  RawTensor qweight, qzeros, scale_tensor;

  AwqTensors tensors() const { return {"layers.3.q_proj", &qweight, &qzeros, &scale_tensor}; }
};

template <typename T>
RawTensor as_tensor(DType dtype, Shape shape, const std::vector<T>& values) {
  return {.name = "t",
          .dtype = dtype,
          .shape = std::move(shape),
          .bytes = std::as_bytes(std::span(values)),
          .owner = nullptr,
          .file = "model.safetensors"};
}

void put_nibble(std::vector<uint32_t>& words, int64_t word, int64_t nibble, int value) {
  words[static_cast<size_t>(word)] |= static_cast<uint32_t>(value) << (4 * nibble);
}

void pack_gemm(Packed& p) {
  constexpr std::array<int64_t, 8> kNibbleOfColumn = {0, 4, 1, 5, 2, 6, 3, 7};
  p.words.resize(static_cast<size_t>(p.k * p.n / 8));
  p.zero_words.resize(static_cast<size_t>(p.n_groups * p.n / 8));
  p.scale_halves.resize(static_cast<size_t>(p.n_groups * p.n));
  for (int64_t o = 0; o < p.n; ++o) {
    const int64_t nibble = kNibbleOfColumn[static_cast<size_t>(o % 8)];
    for (int64_t i = 0; i < p.k; ++i) {
      put_nibble(p.words, (i * p.n + o) / 8, nibble, p.codes[static_cast<size_t>(o * p.k + i)]);
    }
    for (int64_t g = 0; g < p.n_groups; ++g) {
      const auto at = static_cast<size_t>(o * p.n_groups + g);
      put_nibble(p.zero_words, (g * p.n + o) / 8, nibble, static_cast<int>(p.zeros[at]));
      p.scale_halves[static_cast<size_t>(g * p.n + o)] = f32_to_f16(p.scales[at]);
    }
  }
  p.qweight = as_tensor(DType::kI32, {p.k, p.n / 8}, p.words);
  p.qzeros = as_tensor(DType::kI32, {p.n_groups, p.n / 8}, p.zero_words);
  p.scale_tensor = as_tensor(DType::kF16, {p.n_groups, p.n}, p.scale_halves);
}

void pack_gemv(Packed& p) {
  const int64_t width = (p.n_groups + 7) / 8 + 1;  // one word of padding
  p.words.resize(static_cast<size_t>(p.n * p.k / 8));
  p.zero_words.resize(static_cast<size_t>(p.n * width));
  p.scale_halves.resize(static_cast<size_t>(p.n * width * 8));
  for (int64_t o = 0; o < p.n; ++o) {
    for (int64_t i = 0; i < p.k; ++i) {
      put_nibble(p.words, (o * p.k + i) / 8, i % 8, p.codes[static_cast<size_t>(o * p.k + i)]);
    }
    for (int64_t g = 0; g < p.n_groups; ++g) {
      const auto at = static_cast<size_t>(o * p.n_groups + g);
      put_nibble(p.zero_words, o * width + g / 8, g % 8, static_cast<int>(p.zeros[at]));
      p.scale_halves[static_cast<size_t>(o * width * 8 + g)] = f32_to_f16(p.scales[at]);
    }
  }
  p.qweight = as_tensor(DType::kI32, {p.n, p.k / 8}, p.words);
  p.qzeros = as_tensor(DType::kI32, {p.n, width}, p.zero_words);
  p.scale_tensor = as_tensor(DType::kF16, {p.n, width * 8}, p.scale_halves);
}

void pack_gemv_fast(Packed& p) {
  constexpr std::array<int64_t, 4> kFirst = {0, 8, 16, 24};
  const int64_t rows = p.n_groups + 3;  // padded
  p.half_words.resize(static_cast<size_t>(p.n / 4 * p.k));
  p.zero_halves.resize(static_cast<size_t>(rows * p.n));
  p.scale_halves.resize(static_cast<size_t>(rows * p.n));
  for (int64_t b = 0; b < p.n / 4; ++b) {
    for (int64_t chunk = 0; chunk < p.k / 64; ++chunk) {
      for (int64_t t = 0; t < 256; ++t) {  // the chunk's codes in stored order
        const int64_t output = 4 * b + t / 64, position = t % 64;
        const int64_t input = 64 * chunk + position / 32 * 32 +
                              kFirst[static_cast<size_t>(position % 4)] + position % 32 / 4;
        p.half_words[static_cast<size_t>(b * p.k + chunk * 64 + t / 4)] |= static_cast<uint16_t>(
            p.codes[static_cast<size_t>(output * p.k + input)] << (4 * (t % 4)));
      }
    }
  }
  for (int64_t o = 0; o < p.n; ++o) {
    for (int64_t g = 0; g < p.n_groups; ++g) {
      const auto from = static_cast<size_t>(o * p.n_groups + g),
                 to = static_cast<size_t>(g * p.n + o);
      p.scale_halves[to] = f32_to_f16(p.scales[from]);
      p.zero_halves[to] = f32_to_f16(-p.scales[from] * p.zeros[from]);
      p.zeros[from] = f16_to_f32(p.zero_halves[to]);
    }
  }
  p.qweight = as_tensor(DType::kI16, {p.n / 4, p.k}, p.half_words);
  p.qzeros = as_tensor(DType::kF16, {rows, p.n}, p.zero_halves);
  p.scale_tensor = as_tensor(DType::kF16, {rows, p.n}, p.scale_halves);
}

Packed pack(AwqVersion version, int64_t n, int64_t k, int64_t group_size) {
  std::mt19937 random(11);
  Packed p;
  p.config = {.group_size = group_size, .version = version};
  p.n = n;
  p.k = k;
  const int64_t size = group_size == -1 ? k : group_size;
  p.n_groups = (k + size - 1) / size;
  for (int64_t i = 0; i < n * k; ++i)
    p.codes.push_back(static_cast<uint8_t>(random() % 16));
  for (int64_t i = 0; i < n * p.n_groups; ++i) {
    p.zeros.push_back(static_cast<float>(random() % 16));
    p.scales.push_back(f16_to_f32(static_cast<uint16_t>(0x2000 + random() % 0x1000)));
  }
  if (version == AwqVersion::kGemm) pack_gemm(p);
  if (version == AwqVersion::kGemv) pack_gemv(p);
  if (version == AwqVersion::kGemvFast) pack_gemv_fast(p);
  return p;
}

void expect_reads_back(AwqVersion version, int64_t n, int64_t k, int64_t group_size) {
  SCOPED_TRACE(testing::Message() << "layout " << static_cast<int>(version) << ", n " << n << ", k "
                                  << k << ", group " << group_size);
  const Packed packed = pack(version, n, k, group_size);
  const auto source = open_awq(packed.config, packed.tensors());
  ASSERT_EQ(source->n, n);
  ASSERT_EQ(source->k, k);
  ASSERT_EQ(source->n_groups, packed.n_groups);
  ASSERT_EQ(source->form == GroupAffine::Form::kOffset, version == AwqVersion::kGemvFast);
  for (const int64_t step : {int64_t{1}, int64_t{5}, n}) {
    for (int64_t row = 0; row < n; row += step) {
      const int64_t n_rows = std::min(step, n - row);
      std::vector<uint8_t> codes(static_cast<size_t>(n_rows * k));
      std::vector<float> zeros(static_cast<size_t>(n_rows * packed.n_groups)), scales(zeros.size());
      source->codes(row, n_rows, codes.data());
      source->zeros(row, n_rows, zeros.data());
      source->scales(row, n_rows, scales.data());
      ASSERT_TRUE(std::equal(codes.begin(), codes.end(), packed.codes.begin() + row * k))
          << "row " << row;
      ASSERT_TRUE(
          std::equal(zeros.begin(), zeros.end(), packed.zeros.begin() + row * packed.n_groups));
      ASSERT_TRUE(
          std::equal(scales.begin(), scales.end(), packed.scales.begin() + row * packed.n_groups));
    }
  }
}

TEST(Awq, ReadsWhatANibblewisePackerWrote) {
  for (const AwqVersion version : {AwqVersion::kGemm, AwqVersion::kGemv, AwqVersion::kGemvFast}) {
    expect_reads_back(version, 32, 128, 128);
    expect_reads_back(version, 40, 192, 64);
    expect_reads_back(version, 8, 640, 64);   // more than eight groups
    expect_reads_back(version, 16, 128, 48);  // the last group is short
    expect_reads_back(version, 16, 192, -1);
  }
  expect_reads_back(AwqVersion::kGemm, 24, 75, 25);  // k need not be a multiple of 8
}

TEST(Awq, RefusesWhatDoesNotFit) {
  const auto refused = [](AwqVersion version, const std::function<void(Packed&)>& spoil) {
    Packed bad = pack(version, 32, 128, 64);
    spoil(bad);
    try {
      open_awq(bad.config, bad.tensors());
    } catch (const Error& error) {
      return error.message();
    }
    return std::string("accepted");
  };
  using enum AwqVersion;
  using testing::HasSubstr;
  EXPECT_THAT(refused(kGemm, [](Packed& p) { p.config.bits = 8; }),
              HasSubstr("expected 4 bits, got 8"));
  EXPECT_THAT(refused(kGemm, [](Packed& p) { p.config.group_size = 32; }),
              HasSubstr("layers.3.q_proj.qzeros: expected size 4 on axis 0, got shape [2, 4]"));
  EXPECT_THAT(refused(kGemm, [](Packed& p) { p.config.version = kGemvFast; }),
              HasSubstr("layers.3.q_proj.qweight: expected i16, got i32"));
  EXPECT_THAT(refused(kGemv,
                      [](Packed& p) {
                        p.scale_tensor.shape = {64, 8};
                      }),
              HasSubstr("scales"));
  EXPECT_THAT(refused(kGemv, [](Packed& p) { p.config.group_size = 2; }), HasSubstr("qzeros"));
  EXPECT_THAT(refused(kGemvFast,
                      [](Packed& p) {
                        p.qweight.shape = {32, 32};
                      }),
              HasSubstr("expected a multiple of 64 columns"));
  EXPECT_THAT(refused(kGemvFast, [](Packed& p) { p.config.group_size = 16; }),
              HasSubstr("expected size 8"));
  EXPECT_THAT(refused(kGemm, [](Packed& p) { p.qweight.bytes = {}; }),
              HasSubstr("expected 2048 bytes"));
}

}  // namespace
}  // namespace qw
