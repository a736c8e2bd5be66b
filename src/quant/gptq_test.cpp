// GPTQ against a packer that writes one bit at a time, over sizes, groups and storages.
#include "quant/gptq.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>

#include "base/error.h"
#include "base/half.h"

namespace qw {
namespace {

/// A matrix in published form, with the codes, zeros and scales that went in.
struct Packed {
  GptqConfig config;
  int64_t n, k, n_groups;
  std::vector<int> codes;     // [n, k]
  std::vector<int> zeros;     // [n, n_groups]
  std::vector<float> scales;  // [n, n_groups]
  std::vector<int32_t> groups;
  std::vector<uint32_t> qweight, qzeros;
  std::vector<uint16_t> scale_bits;
  RawTensor qweight_tensor, qzeros_tensor, scales_tensor, g_idx_tensor;

  GptqTensors tensors() const {
    return {"layers.3.q_proj", &qweight_tensor, &qzeros_tensor, &scales_tensor, &g_idx_tensor};
  }
};

/// Bits [position, position + bits) of the little-endian stream of words at word(0), word(1), ...
void put_bits(const std::function<uint32_t&(int64_t)>& word, int64_t position, int bits,
              int value) {
  for (int b = 0; b < bits; ++b) {
    if ((value >> b & 1) != 0) word((position + b) / 32) |= 1u << ((position + b) % 32);
  }
}

template <typename T>
RawTensor as_tensor(DType dtype, Shape shape, const std::vector<T>& values) {
  RawTensor out;
  out.dtype = dtype;
  out.shape = std::move(shape);
  out.bytes = std::as_bytes(std::span(values));
  out.file = "model.safetensors";
  return out;
}

struct Case {
  int bits;
  int64_t n, k, group_size;
  bool v2 = false;
  bool act_order = false;
};

Packed pack(const Case& c) {
  std::mt19937 random(7);
  Packed out;
  out.config = {.bits = c.bits,
                .group_size = c.group_size,
                .desc_act = c.act_order,
                .sym = false,
                .v2_zeros = c.v2};
  out.n = c.n;
  out.k = c.k;
  const int64_t size = c.group_size == -1 ? c.k : c.group_size;
  out.n_groups = (c.k + size - 1) / size;
  const int levels = 1 << c.bits;
  for (int64_t i = 0; i < c.k; ++i)
    out.groups.push_back(static_cast<int32_t>(i / size));
  if (c.act_order) std::shuffle(out.groups.begin(), out.groups.end(), random);
  for (int64_t i = 0; i < c.n * c.k; ++i)
    out.codes.push_back(static_cast<int>(random() % levels));
  const int64_t zero_words = (c.n * c.bits + 31) / 32;
  out.qweight.resize(static_cast<size_t>(c.k * c.bits / 32 * c.n));
  out.qzeros.resize(static_cast<size_t>(out.n_groups * zero_words));
  out.scale_bits.resize(static_cast<size_t>(out.n_groups * c.n));
  for (int64_t o = 0; o < c.n; ++o) {
    for (int64_t i = 0; i < c.k; ++i) {
      put_bits(
          [&](int64_t w) -> uint32_t& { return out.qweight[static_cast<size_t>(w * c.n + o)]; },
          i* c.bits, c.bits, out.codes[static_cast<size_t>(o * c.k + i)]);
    }
    for (int64_t g = 0; g < out.n_groups; ++g) {
      // v1 cannot store 0 without a borrow: that case has its own test.
      const int zero = static_cast<int>(random() % (levels - 1)) + 1;
      out.zeros.push_back(zero);
      put_bits(
          [&](int64_t w) -> uint32_t& {
            return out.qzeros[static_cast<size_t>(g * zero_words + w)];
          },
          o* c.bits, c.bits, c.v2 ? zero : zero - 1);
      const auto bits = static_cast<uint16_t>(0x2000 + random() % 0x1000);
      out.scale_bits[static_cast<size_t>(g * c.n + o)] = bits;
      out.scales.push_back(f16_to_f32(bits));
    }
  }
  out.qweight_tensor = as_tensor(DType::kI32, {c.k * c.bits / 32, c.n}, out.qweight);
  out.qzeros_tensor = as_tensor(DType::kI32, {out.n_groups, zero_words}, out.qzeros);
  out.scales_tensor = as_tensor(DType::kF16, {out.n_groups, c.n}, out.scale_bits);
  out.g_idx_tensor = as_tensor(DType::kI32, {c.k}, out.groups);
  return out;
}

void expect_reads_back(const Case& c) {
  SCOPED_TRACE(testing::Message() << c.bits << " bits, n " << c.n << ", k " << c.k << ", group "
                                  << c.group_size << (c.v2 ? ", v2" : "")
                                  << (c.act_order ? ", act-order" : ""));
  const Packed packed = pack(c);
  const auto source = open_gptq(packed.config, packed.tensors());
  ASSERT_EQ(source->n, c.n);
  ASSERT_EQ(source->k, c.k);
  ASSERT_EQ(source->n_groups, packed.n_groups);
  EXPECT_EQ(source->group_of, c.act_order ? packed.groups : std::vector<int32_t>());
  for (const int64_t step : {int64_t{1}, int64_t{5}, c.n}) {
    for (int64_t row = 0; row < c.n; row += step) {
      const int64_t n_rows = std::min(step, c.n - row);
      std::vector<uint8_t> codes(static_cast<size_t>(n_rows * c.k));
      std::vector<float> zeros(static_cast<size_t>(n_rows * packed.n_groups)), scales(zeros.size());
      source->codes(row, n_rows, codes.data());
      source->zeros(row, n_rows, zeros.data());
      source->scales(row, n_rows, scales.data());
      ASSERT_TRUE(std::equal(codes.begin(), codes.end(), packed.codes.begin() + row * c.k))
          << "row " << row;
      ASSERT_TRUE(
          std::equal(zeros.begin(), zeros.end(), packed.zeros.begin() + row * packed.n_groups));
      ASSERT_TRUE(
          std::equal(scales.begin(), scales.end(), packed.scales.begin() + row * packed.n_groups));
    }
  }
}

TEST(Gptq, ReadsWhatABitwisePackerWrote) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const bool v2 : {false, true}) {
      expect_reads_back({bits, 32, 128, 128, v2});
      expect_reads_back({bits, 64, 96, 32, v2, true});
      expect_reads_back({bits, 32, 160, -1, v2});
      expect_reads_back({bits, 20, 96, 36, v2});  // neither n nor the group divides anything
      expect_reads_back({bits, 7, 224, 64, v2, true});
    }
  }
  expect_reads_back({2, 8, 16, 16});  // one word per row
  expect_reads_back({4, 8, 40, 16});  // k is not a multiple of 32
  expect_reads_back({8, 4, 36, 12});
}

TEST(Gptq, ZeroOfZeroBorrowsFromItsNeighbours) {
  // Zeros 8 0 8 8 8 8 8 1: as GPTQModel stores them, all fields less one at once.
  const uint32_t zeros = 0x18888808u;
  for (const bool v2 : {true, false}) {
    Packed packed = pack({4, 8, 32, 32, v2});
    packed.qzeros[0] = v2 ? zeros : zeros - 0x11111111u;
    std::string warning;
    const auto source = open_gptq(packed.config, packed.tensors(), &warning);
    std::vector<float> read(8);
    source->zeros(0, 8, read.data());
    EXPECT_THAT(read, testing::ElementsAre(8, 0, 8, 8, 8, 8, 8, 1));
    EXPECT_EQ(warning, "");
  }
}

TEST(Gptq, WarnsOfOverwrittenZeros) {
  for (const int bits : {2, 3, 4, 8}) {
    Packed packed = pack({bits, 32, 32, 32});
    const int ones = (1 << bits) - 1;
    std::fill(packed.qzeros.begin(), packed.qzeros.end(), 0);
    std::string warning;
    open_gptq(packed.config, packed.tensors(), &warning);
    EXPECT_EQ(warning, "") << bits;
    // AutoGPTQ: 32 ones from the field of row 1 up; the fields above it in the word are lost.
    packed.qzeros[0] = 0xFFFFFFFFu << bits;
    open_gptq(packed.config, packed.tensors(), &warning);
    EXPECT_THAT(warning, testing::HasSubstr("layers.3.q_proj.qzeros")) << bits;
    EXPECT_THAT(warning, testing::HasSubstr("these rows may be wrong: 2")) << bits;
    // A borrow anywhere shows a writer that loses nothing.
    warning.clear();
    packed.qzeros.back() = static_cast<uint32_t>(ones) << (bits == 3 ? 2 : 0);
    open_gptq(packed.config, packed.tensors(), &warning);
    EXPECT_EQ(warning, "") << bits;
  }
}

ErrorKind kind_of(const std::function<void()>& call, std::string* message = nullptr) {
  try {
    call();
  } catch (const Error& error) {
    if (message != nullptr) *message = error.message();
    return error.kind();
  }
  ADD_FAILURE() << "nothing was thrown";
  return ErrorKind::kInternal;
}

TEST(Gptq, RefusesWhatDoesNotFit) {
  const Packed good = pack({4, 32, 128, 64});
  std::string message;
  const auto refused = [&](const std::function<void(Packed&)>& spoil) {
    Packed bad = pack({4, 32, 128, 64});
    spoil(bad);
    return kind_of([&] { open_gptq(bad.config, bad.tensors()); }, &message);
  };
  EXPECT_EQ(refused([](Packed& p) { p.config.bits = 5; }), ErrorKind::kUnsupported);
  EXPECT_EQ(refused([](Packed& p) { p.config.group_size = 0; }), ErrorKind::kCorrupt);
  EXPECT_EQ(refused([](Packed& p) { p.config.group_size = 32; }), ErrorKind::kCorrupt);
  EXPECT_THAT(message, testing::HasSubstr(
                           "layers.3.q_proj.scales: expected size 4 on axis 0, got shape [2, 32]"));
  EXPECT_EQ(refused([](Packed& p) { p.qweight_tensor.dtype = DType::kF32; }), ErrorKind::kCorrupt);
  EXPECT_THAT(message, testing::HasSubstr("expected i32, got f32 (model.safetensors)"));
  EXPECT_EQ(refused([](Packed& p) { p.qweight_tensor.bytes = p.qweight_tensor.bytes.subspan(4); }),
            ErrorKind::kCorrupt);
  EXPECT_EQ(refused([](Packed& p) { p.qzeros_tensor.shape = {4, 2}; }), ErrorKind::kCorrupt);
  EXPECT_EQ(refused([](Packed& p) { p.scales_tensor.shape = {64}; }), ErrorKind::kCorrupt);
  EXPECT_EQ(refused([](Packed& p) { p.config.bits = 3; }), ErrorKind::kCorrupt);
  EXPECT_EQ(refused([](Packed& p) { p.groups[5] = 2; }), ErrorKind::kCorrupt);
  EXPECT_THAT(message, testing::HasSubstr("g_idx: expected groups 0 to 1, got 2 at 5"));
  EXPECT_EQ(refused([](Packed& p) { p.groups[5] = -1; }), ErrorKind::kCorrupt);
  GptqTensors tensors = good.tensors();
  tensors.scales = nullptr;
  EXPECT_EQ(kind_of([&] { open_gptq(good.config, tensors); }), ErrorKind::kCorrupt);
}

TEST(Gptq, GroupIndexMayBeAbsentUnlessItPermutes) {
  const Packed packed = pack({4, 32, 128, 64});
  GptqTensors tensors = packed.tensors();
  tensors.g_idx = nullptr;
  EXPECT_TRUE(open_gptq(packed.config, tensors)->group_of.empty());
  GptqConfig permuted = packed.config;
  permuted.desc_act = true;
  EXPECT_EQ(kind_of([&] { open_gptq(permuted, tensors); }), ErrorKind::kCorrupt);
}

}  // namespace
}  // namespace qw
