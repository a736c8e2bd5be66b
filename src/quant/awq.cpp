#include "quant/awq.h"

#include <algorithm>
#include <array>
#include <limits>

#include "base/checked.h"
#include "quant/packed_codes.h"

namespace qw {

namespace {

using packed::FloatTensor;

constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max() / 64;

/// Nibbles of a GEMM word in column order, one to a byte. Nibble i holds column 0 2 4 6 1 3 5 7 of
/// the word's eight, so the bytes of the two half-words interleave.
uint64_t spread_gemm(uint32_t word) noexcept {
  const auto to_even_bytes = [](uint64_t four) {  // nibble j of 16 bits to byte 2j
    four = (four | four << 24) & 0x000000FF000000FFu;
    return (four | four << 12) & 0x000F000F000F000Fu;
  };
  return to_even_bytes(word & 0xFFFF) | to_even_bytes(word >> 16) << 8;
}

/// Transposes the 8 x 8 matrix whose row i is the eight bytes of x[i], by quadrants.
void transpose_8x8(std::array<uint64_t, 8>& x) noexcept {
  const auto swap = [&](size_t a, size_t b, int shift, uint64_t mask) {
    const uint64_t t = (x[a] >> shift ^ x[b]) & mask;
    x[a] ^= t << shift;
    x[b] ^= t;
  };
  for (size_t i : {0, 1, 2, 3})
    swap(i, i + 4, 32, 0x00000000FFFFFFFFu);
  for (size_t i : {0, 1, 4, 5})
    swap(i, i + 2, 16, 0x0000FFFF0000FFFFu);
  for (size_t i : {0, 2, 4, 6})
    swap(i, i + 1, 8, 0x00FF00FF00FF00FFu);
}

/// What the three layouts have in common.
class AwqSource : public GroupAffine {
 public:
  const std::byte* qweight = nullptr;
  const std::byte* qzeros = nullptr;  // unused by GEMV_FAST
  std::shared_ptr<const void> qweight_owner, qzeros_owner;
  FloatTensor scale_tensor;
};

/// qweight [k, n / 8], qzeros [n_groups, n / 8], scales [n_groups, n].
class GemmSource final : public AwqSource {
 public:
  /// Strips of 64 inputs: the words of all rows asked for share those inputs' cache lines.
  void codes(int64_t row, int64_t n_rows, uint8_t* out) const override {
    constexpr int64_t kStrip = 64;
    for (int64_t first = 0; first < k; first += kStrip) {
      const int64_t last = std::min(first + kStrip, k);
      for (int64_t word = row / 8; word * 8 < row + n_rows; ++word) {
        for (int64_t i = first; i < last; i += 8)
          unpack_8x8(word, i, row, n_rows, out);
      }
    }
  }
  void scales(int64_t row, int64_t n_rows, float* out) const override {
    packed::gather_by_group(scale_tensor, n, n_groups, row, n_rows, out);
  }
  void zeros(int64_t row, int64_t n_rows, float* out) const override {
    for (int64_t g = 0; g < n_groups; ++g) {
      for (int64_t r = 0; r < n_rows; ++r) {
        const int64_t o = row + r;
        const uint64_t nibbles = spread_gemm(packed::load_u32(qzeros, g * (n / 8) + o / 8));
        out[r * n_groups + g] = static_cast<float>(nibbles >> (8 * (o % 8)) & 15);
      }
    }
  }

 private:
  /// The codes of inputs i.. i + 7 in one word column, as far as their outputs were asked for.
  void unpack_8x8(int64_t word, int64_t i, int64_t row, int64_t n_rows, uint8_t* out) const {
    const int64_t width = std::min<int64_t>(8, k - i);
    std::array<uint64_t, 8> tile{};  // byte j of tile[c]: input i + c, output 8 word + j
    for (int64_t c = 0; c < width; ++c) {
      tile[static_cast<size_t>(c)] =
          spread_gemm(packed::load_u32(qweight, (i + c) * (n / 8) + word));
    }
    transpose_8x8(tile);
    const int64_t begin = std::max(row, word * 8), end = std::min(row + n_rows, word * 8 + 8);
    for (int64_t o = begin; o < end; ++o) {
      const uint64_t codes = tile[static_cast<size_t>(o - word * 8)];
      uint8_t* to = out + (o - row) * k + i;
      if (width == 8) {
        packed::store_codes(to, codes);
      } else {
        std::memcpy(to, &codes, static_cast<size_t>(width));
      }
    }
  }
};

/// qweight [n, k / 8], qzeros [n, zeros_width], scales [n, 8 zeros_width], all in plain order.
class GemvSource final : public AwqSource {
 public:
  int64_t zeros_width = 0;

  void codes(int64_t row, int64_t n_rows, uint8_t* out) const override {
    const int64_t n_words = n_rows * (k / 8), first = row * (k / 8);
    for (int64_t i = 0; i < n_words; ++i) {
      packed::store_codes(out + 8 * i, packed::spread<4>(packed::load_u32(qweight, first + i)));
    }
  }
  void scales(int64_t row, int64_t n_rows, float* out) const override {
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int64_t g = 0; g < n_groups; ++g) {
        out[r * n_groups + g] = scale_tensor[(row + r) * 8 * zeros_width + g];
      }
    }
  }
  void zeros(int64_t row, int64_t n_rows, float* out) const override {
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int64_t g = 0; g < n_groups; ++g) {
        const uint32_t word = packed::load_u32(qzeros, (row + r) * zeros_width + g / 8);
        out[r * n_groups + g] = static_cast<float>(word >> (4 * (g % 8)) & 15);
      }
    }
  }
};

/// qweight i16 [n / 4, k]; scales and offsets (-(scale * zero), f16) [n_groups or more, n].
/// Row b holds outputs 4b..4b + 3 in chunks of 64 inputs: 16 half-words for each output in turn, of
/// which half-word 8h + i of an output holds inputs 32h + i + {0, 8, 16, 24} in its nibbles.
class GemvFastSource final : public AwqSource {
 public:
  FloatTensor offset_tensor;

  void codes(int64_t row, int64_t n_rows, uint8_t* out) const override {
    for (int64_t r = 0; r < n_rows; ++r) {
      const int64_t o = row + r;
      for (int64_t i = 0; i < k; i += 32) {
        const int64_t half_word = o / 4 * k + i / 64 * 64 + o % 4 * 16 + i % 64 / 4;
        unpack_32(qweight + half_word * 2, out + r * k + i);
      }
    }
  }
  void scales(int64_t row, int64_t n_rows, float* out) const override {
    packed::gather_by_group(scale_tensor, n, n_groups, row, n_rows, out);
  }
  void zeros(int64_t row, int64_t n_rows, float* out) const override {
    packed::gather_by_group(offset_tensor, n, n_groups, row, n_rows, out);
  }

 private:
  static void unpack_32(const std::byte* half_words, uint8_t* out) noexcept {
    std::array<uint16_t, 8> words;
    std::memcpy(words.data(), half_words, sizeof words);
    for (size_t nibble = 0; nibble < 4; ++nibble) {
      for (size_t i = 0; i < 8; ++i) {
        out[8 * nibble + i] = static_cast<uint8_t>(words[i] >> (4 * nibble) & 15);
      }
    }
  }
};

const RawTensor& require_qweight(const AwqTensors& tensors, DType dtype, int64_t max_rows) {
  const RawTensor& qweight = packed::require(tensors.qweight, tensors.module, "qweight", 2, dtype);
  packed::require_size(qweight, tensors.module, "qweight", 0, 1, max_rows);
  packed::require_size(qweight, tensors.module, "qweight", 1, 1, kMaxSize);
  return qweight;
}

void set_sizes(AwqSource& source, const AwqConfig& config, const AwqTensors& tensors, int64_t n,
               int64_t k) {
  const packed::Grouping grouping = packed::group_columns(k, config.group_size, tensors.module);
  source.n = n;
  source.k = k;
  source.bits = 4;
  source.group_size = grouping.size;
  source.n_groups = grouping.count;
  source.qweight = tensors.qweight->bytes.data();
  source.qweight_owner = tensors.qweight->owner;
  source.scale_tensor = packed::require_floats(tensors.scales, tensors.module, "scales", 2);
  for (const RawTensor* tensor : {tensors.qweight, tensors.qzeros, tensors.scales}) {
    if (tensor != nullptr) source.published.push_back(tensor->bytes);
  }
}

std::shared_ptr<const GroupAffine> open_gemm(const AwqConfig& config, const AwqTensors& tensors) {
  const std::string& module = tensors.module;
  const RawTensor& qweight = require_qweight(tensors, DType::kI32, kMaxSize);
  auto source = std::make_shared<GemmSource>();
  const int64_t n = qweight.shape[1] * 8;
  set_sizes(*source, config, tensors, n, qweight.shape[0]);
  const RawTensor& qzeros = packed::require(tensors.qzeros, module, "qzeros", 2, DType::kI32);
  packed::require_size(qzeros, module, "qzeros", 0, source->n_groups, source->n_groups);
  packed::require_size(qzeros, module, "qzeros", 1, n / 8, n / 8);
  packed::require_size(*tensors.scales, module, "scales", 0, source->n_groups, source->n_groups);
  packed::require_size(*tensors.scales, module, "scales", 1, n, n);
  source->qzeros = qzeros.bytes.data();
  source->qzeros_owner = qzeros.owner;
  return source;
}

std::shared_ptr<const GroupAffine> open_gemv(const AwqConfig& config, const AwqTensors& tensors) {
  const std::string& module = tensors.module;
  const RawTensor& qweight = require_qweight(tensors, DType::kI32, kMaxSize);
  auto source = std::make_shared<GemvSource>();
  const int64_t n = qweight.shape[0];
  set_sizes(*source, config, tensors, n, qweight.shape[1] * 8);
  // Widths are padded for the vector loads of the published kernel, to 8 groups or a multiple.
  const RawTensor& qzeros = packed::require(tensors.qzeros, module, "qzeros", 2, DType::kI32);
  packed::require_size(qzeros, module, "qzeros", 0, n, n);
  packed::require_size(qzeros, module, "qzeros", 1, ceil_div<int64_t>(source->n_groups, 8),
                       kMaxSize);
  source->zeros_width = qzeros.shape[1];
  packed::require_size(*tensors.scales, module, "scales", 0, n, n);
  packed::require_size(*tensors.scales, module, "scales", 1, source->zeros_width * 8,
                       source->zeros_width * 8);
  source->qzeros = qzeros.bytes.data();
  source->qzeros_owner = qzeros.owner;
  return source;
}

std::shared_ptr<const GroupAffine> open_gemv_fast(const AwqConfig& config,
                                                  const AwqTensors& tensors) {
  const std::string& module = tensors.module;
  const RawTensor& qweight = require_qweight(tensors, DType::kI16, kMaxSize / 4);
  if (qweight.shape[1] % 64 != 0) {
    fail(ErrorKind::kCorrupt, "awq", "{}.qweight: expected a multiple of 64 columns, got {} ({})",
         printable(module), qweight.shape.str(), printable(qweight.file));
  }
  auto source = std::make_shared<GemvFastSource>();
  const int64_t n = qweight.shape[0] * 4;
  set_sizes(*source, config, tensors, n, qweight.shape[1]);
  source->form = GroupAffine::Form::kOffset;
  source->offset_tensor = packed::require_floats(tensors.qzeros, module, "qzeros", 2);
  for (const auto& [tensor, suffix] :
       {std::pair(tensors.qzeros, "qzeros"), {tensors.scales, "scales"}}) {
    packed::require_size(*tensor, module, suffix, 0, source->n_groups, kMaxSize);
    packed::require_size(*tensor, module, suffix, 1, n, n);
  }
  return source;
}

}  // namespace

std::shared_ptr<const GroupAffine> open_awq(const AwqConfig& config, const AwqTensors& tensors) {
  if (config.bits != 4) {
    fail(ErrorKind::kUnsupported, "awq", "{}: expected 4 bits, got {}", printable(tensors.module),
         config.bits);
  }
  switch (config.version) {
    case AwqVersion::kGemm:
      return open_gemm(config, tensors);
    case AwqVersion::kGemv:
      return open_gemv(config, tensors);
    case AwqVersion::kGemvFast:
      return open_gemv_fast(config, tensors);
  }
  QW_CHECK(false, "no such AWQ layout");
}

}  // namespace qw
