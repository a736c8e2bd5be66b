#include "quant/ggml_blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "quant/encode_util.h"
#include "quant/ggml_codecs.h"

namespace qw {

namespace {

template <typename Block>
void decode_blocks(const std::byte* bytes, int64_t n_blocks, int block_elems, float* out) {
  for (int64_t b = 0; b < n_blocks; ++b) {
    ggml::decode(load_block<Block>(bytes), out);
    bytes += sizeof(Block);
    out += block_elems;
  }
}

template <typename Stored, typename Widen>
void widen(const std::byte* bytes, int64_t n_elems, float* out, Widen widen_one) {
  for (int64_t i = 0; i < n_elems; ++i) {
    Stored value;
    std::memcpy(&value, bytes + i * static_cast<int64_t>(sizeof(Stored)), sizeof(Stored));
    out[i] = widen_one(value);
  }
}

/// binary64 to binary32: round to nearest, infinity beyond the range (the plain conversion is
/// undefined there for the language, though not for IEEE).
float narrow(double value) noexcept {
  constexpr double kOverflow = 0x1.ffffffp127;  // the midpoint between the largest float and 2^128
  if (value >= kOverflow) return std::bit_cast<float>(0x7F800000u);
  if (value <= -kOverflow) return std::bit_cast<float>(0xFF800000u);
  return static_cast<float>(value);
}

template <typename Block>
void encode_blocks(const float* in, int64_t n_blocks, int block_elems, std::byte* bytes) {
  for (int64_t b = 0; b < n_blocks; ++b) {
    Block block;
    ggml::encode(in, block);
    std::memcpy(bytes, &block, sizeof(Block));
    bytes += sizeof(Block);
    in += block_elems;
  }
}

template <typename Stored, typename Narrow>
void store(const float* in, int64_t n_elems, std::byte* bytes, Narrow narrow_one) {
  for (int64_t i = 0; i < n_elems; ++i) {
    const Stored value = narrow_one(in[i]);
    std::memcpy(bytes + i * static_cast<int64_t>(sizeof(Stored)), &value, sizeof(Stored));
  }
}

constexpr float kMaxF16 = 65504.0F;

/// Stores f16, which has no room for what a checkpoint in bf16 may hold.
/// Errors: invalid_argument for a number that would become infinite.
void store_f16(const float* in, int64_t n_elems, std::byte* bytes) {
  store<uint16_t>(in, n_elems, bytes, [](float x) {
    const F16Bits bits = f32_to_f16(x);
    if (std::isfinite(x) && !std::isfinite(f16_to_f32(bits))) {
      fail(ErrorKind::kInvalidArgument, "quant", "encode to f16: expected at most {}, got {}",
           kMaxF16, x);
    }
    return bits;
  });
}

/// What no block of the type holds more than. Squares and products of smaller values are far from
/// what a float holds, so that searches for scales find one, which check_scales() then looks at.
float largest_held(DType dtype) {
  switch (dtype) {
    case DType::kQ8_K:
    case DType::kMXFP4:
    case DType::kNVFP4:
      // Scales in f32, and powers of two; one that is clamped, as by whoever defined it (no recipe
      // of ours writes it).
      return std::numeric_limits<float>::max();
    default:
      return kMaxF16 * 128.0F * 32.0F;  // Q6_K reaches furthest: times a part in int8, and a code
  }
}

/// Largest magnitude of a row. Errors: invalid_argument for an infinity or NaN, and what is beyond
/// largest_held().
float max_magnitude(DType dtype, const float* in, int64_t n_elems) {
  const float most = ggml::largest_magnitude({in, static_cast<size_t>(n_elems)});
  if (most <= largest_held(dtype)) return most;
  if (std::isfinite(most)) {
    fail(ErrorKind::kInvalidArgument, "quant",
         "encode {}: expected values that the type's scales can hold, got {}", name_of(dtype),
         most);
  }
  int64_t i = 0;
  while (std::isfinite(in[i]))
    ++i;
  fail(ErrorKind::kInvalidArgument, "quant",
       "encode {}: expected finite values, got {} at element {}", name_of(dtype), in[i], i);
}

/// Block scales are at most the largest magnitude, so that only rows beyond f16 can overflow one.
void check_scales(DType dtype, const std::byte* bytes, int64_t n_elems) {
  std::vector<float> decoded(static_cast<size_t>(n_elems));
  decode_row(dtype, bytes, n_elems, decoded.data());
  for (const float value : decoded) {
    if (!std::isfinite(value)) {
      fail(ErrorKind::kInvalidArgument, "quant",
           "encode {}: expected values that the type's f16 scale can hold, got larger ones",
           name_of(dtype));
    }
  }
}

}  // namespace

void decode_row(DType dtype, const std::byte* bytes, int64_t n_elems, float* out) {
  const DTypeInfo& type = info(dtype);
  QW_CHECK(n_elems >= 0 && n_elems % type.block_elems == 0, "{} elements of {}", n_elems,
           type.name);
  const int64_t n = n_elems / type.block_elems;
  const int elems = type.block_elems;
  switch (dtype) {
    case DType::kF32:
      return widen<float>(bytes, n, out, [](float x) { return x; });
    case DType::kF16:
      return widen<uint16_t>(bytes, n, out, f16_to_f32);
    case DType::kBF16:
      return widen<uint16_t>(bytes, n, out, bf16_to_f32);
    case DType::kF64:
      return widen<double>(bytes, n, out, narrow);
    case DType::kQ4_0:
      return decode_blocks<BlockQ4_0>(bytes, n, elems, out);
    case DType::kQ4_1:
      return decode_blocks<BlockQ4_1>(bytes, n, elems, out);
    case DType::kQ5_0:
      return decode_blocks<BlockQ5_0>(bytes, n, elems, out);
    case DType::kQ5_1:
      return decode_blocks<BlockQ5_1>(bytes, n, elems, out);
    case DType::kQ8_0:
      return decode_blocks<BlockQ8_0>(bytes, n, elems, out);
    case DType::kQ8_1:
      return decode_blocks<BlockQ8_1>(bytes, n, elems, out);
    case DType::kQ2_K:
      return decode_blocks<BlockQ2_K>(bytes, n, elems, out);
    case DType::kQ3_K:
      return decode_blocks<BlockQ3_K>(bytes, n, elems, out);
    case DType::kQ4_K:
      return decode_blocks<BlockQ4_K>(bytes, n, elems, out);
    case DType::kQ5_K:
      return decode_blocks<BlockQ5_K>(bytes, n, elems, out);
    case DType::kQ6_K:
      return decode_blocks<BlockQ6_K>(bytes, n, elems, out);
    case DType::kQ8_K:
      return decode_blocks<BlockQ8_K>(bytes, n, elems, out);
    case DType::kIQ1_S:
      return decode_blocks<BlockIQ1_S>(bytes, n, elems, out);
    case DType::kIQ1_M:
      return decode_blocks<BlockIQ1_M>(bytes, n, elems, out);
    case DType::kIQ2_XXS:
      return decode_blocks<BlockIQ2_XXS>(bytes, n, elems, out);
    case DType::kIQ2_XS:
      return decode_blocks<BlockIQ2_XS>(bytes, n, elems, out);
    case DType::kIQ2_S:
      return decode_blocks<BlockIQ2_S>(bytes, n, elems, out);
    case DType::kIQ3_XXS:
      return decode_blocks<BlockIQ3_XXS>(bytes, n, elems, out);
    case DType::kIQ3_S:
      return decode_blocks<BlockIQ3_S>(bytes, n, elems, out);
    case DType::kIQ4_NL:
      return decode_blocks<BlockIQ4_NL>(bytes, n, elems, out);
    case DType::kIQ4_XS:
      return decode_blocks<BlockIQ4_XS>(bytes, n, elems, out);
    case DType::kTQ1_0:
      return decode_blocks<BlockTQ1_0>(bytes, n, elems, out);
    case DType::kTQ2_0:
      return decode_blocks<BlockTQ2_0>(bytes, n, elems, out);
    case DType::kMXFP4:
      return decode_blocks<BlockMXFP4>(bytes, n, elems, out);
    case DType::kNVFP4:
      return decode_blocks<BlockNVFP4>(bytes, n, elems, out);
    case DType::kQ1_0:
      return decode_blocks<BlockQ1_0>(bytes, n, elems, out);
    case DType::kQ2_0:
      return decode_blocks<BlockQ2_0>(bytes, n, elems, out);
    default:
      break;
  }
  fail(ErrorKind::kUnsupported, "quant", "decode: expected a float or block type, got {}",
       type.name);
}

bool can_encode(DType dtype) noexcept {
  return is_float(dtype) || is_block(dtype);
}

bool is_grid_type(DType dtype) noexcept {
  switch (dtype) {
    case DType::kIQ1_S:
    case DType::kIQ1_M:
    case DType::kIQ2_XXS:
    case DType::kIQ2_XS:
    case DType::kIQ2_S:
    case DType::kIQ3_XXS:
    case DType::kIQ3_S:
      return true;
    default:
      return false;
  }
}

namespace {

/// Blocks whose sub-blocks fill the lanes of a search.
template <typename Block>
constexpr int64_t kRunBlocks = 16;
template <>
constexpr int64_t kRunBlocks<BlockQ2_K> = 1;
template <>
constexpr int64_t kRunBlocks<BlockQ3_K> = 1;
template <>
constexpr int64_t kRunBlocks<BlockQ4_K> = 2;
template <>
constexpr int64_t kRunBlocks<BlockQ5_K> = 2;
template <>
constexpr int64_t kRunBlocks<BlockQ6_K> = 1;

template <typename Block>
void encode_runs(const float* in, const ggml::Importance* importance, int64_t n, int elems,
                 const ScaleSearchOps& ops, std::byte* bytes) {
  std::array<Block, static_cast<size_t>(kRunBlocks<Block>)> blocks;
  for (int64_t b = 0; b < n; b += kRunBlocks<Block>) {
    const auto n_blocks = static_cast<size_t>(std::min(kRunBlocks<Block>, n - b));
    ggml::Importance own;
    if (importance != nullptr) own = {importance->weights + b * elems, importance->row_mean_square};
    ggml::encode(
        ggml::BlockRun{in + b * elems, importance != nullptr ? &own : nullptr, n_blocks, ops},
        blocks.data());
    std::memcpy(bytes + b * static_cast<int64_t>(sizeof(Block)), blocks.data(),
                n_blocks * sizeof(Block));
  }
}

void encode_block_row(DType dtype, const float* in, int64_t n, int elems, const ScaleSearchOps& ops,
                      std::byte* bytes) {
  switch (dtype) {
    case DType::kQ4_0:
      return encode_runs<BlockQ4_0>(in, nullptr, n, elems, ops, bytes);
    case DType::kQ4_1:
      return encode_runs<BlockQ4_1>(in, nullptr, n, elems, ops, bytes);
    case DType::kQ5_0:
      return encode_runs<BlockQ5_0>(in, nullptr, n, elems, ops, bytes);
    case DType::kQ5_1:
      return encode_runs<BlockQ5_1>(in, nullptr, n, elems, ops, bytes);
    case DType::kQ8_0:
      return encode_runs<BlockQ8_0>(in, nullptr, n, elems, ops, bytes);
    case DType::kQ8_1:
      return encode_blocks<BlockQ8_1>(in, n, elems, bytes);
    case DType::kQ2_K:
      return encode_runs<BlockQ2_K>(in, nullptr, n, elems, ops, bytes);
    case DType::kQ3_K:
      return encode_runs<BlockQ3_K>(in, nullptr, n, elems, ops, bytes);
    case DType::kQ4_K:
      return encode_runs<BlockQ4_K>(in, nullptr, n, elems, ops, bytes);
    case DType::kQ5_K:
      return encode_runs<BlockQ5_K>(in, nullptr, n, elems, ops, bytes);
    case DType::kQ6_K:
      return encode_runs<BlockQ6_K>(in, nullptr, n, elems, ops, bytes);
    case DType::kQ8_K:
      return encode_blocks<BlockQ8_K>(in, n, elems, bytes);
    case DType::kIQ1_S:
      return encode_blocks<BlockIQ1_S>(in, n, elems, bytes);
    case DType::kIQ1_M:
      return encode_blocks<BlockIQ1_M>(in, n, elems, bytes);
    case DType::kIQ2_XXS:
      return encode_blocks<BlockIQ2_XXS>(in, n, elems, bytes);
    case DType::kIQ2_XS:
      return encode_blocks<BlockIQ2_XS>(in, n, elems, bytes);
    case DType::kIQ2_S:
      return encode_blocks<BlockIQ2_S>(in, n, elems, bytes);
    case DType::kIQ3_XXS:
      return encode_blocks<BlockIQ3_XXS>(in, n, elems, bytes);
    case DType::kIQ3_S:
      return encode_blocks<BlockIQ3_S>(in, n, elems, bytes);
    case DType::kIQ4_NL:
      return encode_blocks<BlockIQ4_NL>(in, n, elems, bytes);
    case DType::kIQ4_XS:
      return encode_blocks<BlockIQ4_XS>(in, n, elems, bytes);
    case DType::kTQ1_0:
      return encode_blocks<BlockTQ1_0>(in, n, elems, bytes);
    case DType::kTQ2_0:
      return encode_blocks<BlockTQ2_0>(in, n, elems, bytes);
    case DType::kMXFP4:
      return encode_blocks<BlockMXFP4>(in, n, elems, bytes);
    case DType::kNVFP4:
      return encode_blocks<BlockNVFP4>(in, n, elems, bytes);
    case DType::kQ1_0:
      return encode_blocks<BlockQ1_0>(in, n, elems, bytes);
    case DType::kQ2_0:
      return encode_blocks<BlockQ2_0>(in, n, elems, bytes);
    default:
      QW_CHECK(false, "{} has no encoder", name_of(dtype));
  }
}

template <typename Block>
void encode_blocks(const float* in, const ggml::Importance& importance, int64_t n, int elems,
                   std::byte* bytes) {
  for (int64_t b = 0; b < n; ++b) {
    Block block;
    ggml::encode(in + b * elems, {importance.weights + b * elems, importance.row_mean_square},
                 block);
    std::memcpy(bytes + b * static_cast<int64_t>(sizeof block), &block, sizeof block);
  }
}

/// False: the type has no use for importances.
bool encode_block_row(DType dtype, const float* in, const ggml::Importance& importance, int64_t n,
                      int elems, const ScaleSearchOps& ops, std::byte* bytes) {
  switch (dtype) {
    case DType::kQ4_0:
      encode_runs<BlockQ4_0>(in, &importance, n, elems, ops, bytes);
      return true;
    case DType::kQ4_1:
      encode_runs<BlockQ4_1>(in, &importance, n, elems, ops, bytes);
      return true;
    case DType::kQ5_0:
      encode_runs<BlockQ5_0>(in, &importance, n, elems, ops, bytes);
      return true;
    case DType::kQ5_1:
      encode_runs<BlockQ5_1>(in, &importance, n, elems, ops, bytes);
      return true;
    case DType::kQ2_K:
      encode_runs<BlockQ2_K>(in, &importance, n, elems, ops, bytes);
      return true;
    case DType::kQ3_K:
      encode_runs<BlockQ3_K>(in, &importance, n, elems, ops, bytes);
      return true;
    case DType::kQ4_K:
      encode_runs<BlockQ4_K>(in, &importance, n, elems, ops, bytes);
      return true;
    case DType::kQ5_K:
      encode_runs<BlockQ5_K>(in, &importance, n, elems, ops, bytes);
      return true;
    case DType::kQ6_K:
      encode_runs<BlockQ6_K>(in, &importance, n, elems, ops, bytes);
      return true;
    case DType::kIQ1_S:
      encode_blocks<BlockIQ1_S>(in, importance, n, elems, bytes);
      return true;
    case DType::kIQ1_M:
      encode_blocks<BlockIQ1_M>(in, importance, n, elems, bytes);
      return true;
    case DType::kIQ2_XXS:
      encode_blocks<BlockIQ2_XXS>(in, importance, n, elems, bytes);
      return true;
    case DType::kIQ2_XS:
      encode_blocks<BlockIQ2_XS>(in, importance, n, elems, bytes);
      return true;
    case DType::kIQ2_S:
      encode_blocks<BlockIQ2_S>(in, importance, n, elems, bytes);
      return true;
    case DType::kIQ3_XXS:
      encode_blocks<BlockIQ3_XXS>(in, importance, n, elems, bytes);
      return true;
    case DType::kIQ3_S:
      encode_blocks<BlockIQ3_S>(in, importance, n, elems, bytes);
      return true;
    case DType::kIQ4_NL:
      encode_blocks<BlockIQ4_NL>(in, importance, n, elems, bytes);
      return true;
    case DType::kIQ4_XS:
      encode_blocks<BlockIQ4_XS>(in, importance, n, elems, bytes);
      return true;
    default:
      return false;
  }
}

}  // namespace

void encode_row(DType dtype, const float* in, int64_t n_elems, std::byte* bytes,
                const ScaleSearchOps& ops) {
  const DTypeInfo& type = info(dtype);
  if (!can_encode(dtype)) {
    fail(ErrorKind::kUnsupported, "quant", "encode: expected a type that can be written, got {}",
         type.name);
  }
  QW_CHECK(n_elems >= 0 && n_elems % type.block_elems == 0, "{} elements of {}", n_elems,
           type.name);
  switch (dtype) {
    case DType::kF32:
      return store<float>(in, n_elems, bytes, [](float x) { return x; });
    case DType::kF64:
      return store<double>(in, n_elems, bytes, [](float x) { return double{x}; });
    case DType::kF16:
      return store_f16(in, n_elems, bytes);
    case DType::kBF16:
      return store<uint16_t>(in, n_elems, bytes, f32_to_bf16);
    default:
      break;
  }
  const float most = max_magnitude(dtype, in, n_elems);
  encode_block_row(dtype, in, n_elems / type.block_elems, type.block_elems, ops, bytes);
  if (most > kMaxF16) check_scales(dtype, bytes, n_elems);
}

void encode_row(DType dtype, const float* in, const float* importance, int64_t n_elems,
                std::byte* bytes, const ScaleSearchOps& ops) {
  const DTypeInfo& type = info(dtype);
  if (!is_block(dtype) || !can_encode(dtype)) return encode_row(dtype, in, n_elems, bytes, ops);
  QW_CHECK(n_elems >= 0 && n_elems % type.block_elems == 0, "{} elements of {}", n_elems,
           type.name);
  const float most = max_magnitude(dtype, in, n_elems);
  const float mean_square =
      n_elems == 0
          ? 0.0F
          : ggml::sum_of_squares({in, static_cast<size_t>(n_elems)}) / static_cast<float>(n_elems);
  if (!encode_block_row(dtype, in, ggml::Importance{importance, mean_square},
                        n_elems / type.block_elems, type.block_elems, ops, bytes))
    return encode_row(dtype, in, n_elems, bytes, ops);
  if (most > kMaxF16) check_scales(dtype, bytes, n_elems);
}

void set_block_scale(DType dtype, uint16_t d, std::byte* block) {
  QW_CHECK(is_grid_type(dtype), "{}", name_of(dtype));
  if (dtype != DType::kIQ1_M) {
    std::memcpy(block, &d, sizeof d);
    return;
  }
  auto fields = load_block<BlockIQ1_M>(block);
  for (size_t i = 0; i < 4; ++i) {
    fields.scales[i] =
        static_cast<uint16_t>((fields.scales[i] & 0x0FFF) | (d >> (4 * i) & 15) << 12);
  }
  std::memcpy(block, &fields, sizeof fields);
}

}  // namespace qw
