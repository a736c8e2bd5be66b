// Encoders of the 32-element types and of the ternary, one- and two-bit and 4-bit float types.
//
// Level 2 (quant). No search: the scale comes from the extreme values, each code is the nearest
// level. Scales meet the values in f32, before they are rounded to f16 for storage, because that is
// how published files were made. Formulas: docs/formats.md.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "base/half.h"
#include "quant/encode_util.h"
#include "quant/ggml_codecs.h"
#include "quant/scale_search.h"
#include "quant/search_lanes.h"

namespace qw::ggml {

namespace {

template <size_t kBytes>
void put_nibbles(size_t j, int low, int high, std::array<uint8_t, kBytes>& qs) noexcept {
  qs[j] = static_cast<uint8_t>((low & 15) | (high & 15) << 4);
}

/// Codes 0..15 of a block of 32.
void put_codes(const uint8_t* codes, std::array<uint8_t, 16>& qs) noexcept {
  for (size_t j = 0; j < 16; ++j)
    put_nibbles(j, codes[j], codes[j + 16], qs);
}

/// Codes 0..31 of a Q5 block: four bits in qs, the fifth in qh.
void put_five_bits(const uint8_t* codes, std::array<uint8_t, 4>& qh,
                   std::array<uint8_t, 16>& qs) noexcept {
  uint32_t fifth = 0;
  put_codes(codes, qs);
  for (size_t j = 0; j < 32; ++j)
    fifth |= static_cast<uint32_t>(codes[j] >> 4 & 1) << j;
  qh = std::bit_cast<std::array<uint8_t, 4>>(fifth);
}

/// The E2M1 code whose value is nearest to x / d; the lower code when two are equally near.
int nearest_e2m1(float x, float d) noexcept {
  int best = 0;
  float best_error = std::fabs(static_cast<float>(kE2m1Doubled[0]) * d - x);
  for (int code = 1; code < 16; ++code) {
    const float error =
        std::fabs(static_cast<float>(kE2m1Doubled[static_cast<size_t>(code)]) * d - x);
    if (error < best_error) {
      best_error = error;
      best = code;
    }
  }
  return best;
}

/// x >= 0 to unsigned E4M3, at most 448: three mantissa bits, rounded by the fourth.
uint8_t to_ue4m3(float x) noexcept {
  if (!(x > 0.0F)) return 0;
  const auto bits = std::bit_cast<uint32_t>(std::min(x, 448.0F));
  const int exponent = static_cast<int>(bits >> 23) - 127 + 7;
  if (exponent <= 0) return static_cast<uint8_t>(std::min(7, to_int(x * 512.0F + 0.5F)));
  // Exponent and mantissa are one number here, so that a carry out of the mantissa lands right.
  const int code =
      (exponent << 3 | static_cast<int>(bits >> 20 & 7)) + static_cast<int>(bits >> 19 & 1);
  return static_cast<uint8_t>(std::min(code, 0x7E));
}

/// Sum of digits[n] * 3^(4 - n), as a fraction of 3^5 = 243 in 256ths, rounded up, which is what
/// makes the decoder's multiplications bring each digit out exactly.
uint8_t pack_trits(const std::array<int, 5>& digits) noexcept {
  int value = 0;
  for (const int digit : digits)
    value = value * 3 + digit;
  return static_cast<uint8_t>((value * 256 + 242) / 243);
}

}  // namespace

namespace {

constexpr size_t kRunCodes = size_t{kSearchGroups} * kNearestBlock;

/// Codes, scales and minimums of up to sixteen blocks.
struct RunCodes {
  std::array<uint8_t, kRunCodes> codes;
  std::array<float, kSearchGroups> scale, min;

  explicit RunCodes(const BlockRun& run) noexcept : run_(run) {}
  NearestBlocks blocks() noexcept {
    return {static_cast<int64_t>(run_.n_blocks), run_.x, scale.data(), min.data(), codes.data()};
  }
  const uint8_t* of(size_t b) const noexcept { return codes.data() + b * kNearestBlock; }

  void symmetric(int half) noexcept {
    if (run_.importance == nullptr) return run_.ops.nearest_symmetric(blocks(), half);
    SearchLanes<kNearestBlock> lanes = weighed();
    run_.ops.symmetric(lanes.groups(), half);
    codes = lanes.codes_from(-half);
    scale = lanes.scale;
  }
  void affine(int max_code) noexcept {
    if (run_.importance == nullptr) return run_.ops.nearest_affine(blocks(), max_code);
    SearchLanes<kNearestBlock> lanes = weighed();
    run_.ops.affine(lanes.groups(), search_with_importance(max_code));
    codes = lanes.codes_from(0);
    scale = lanes.scale;
    for (size_t b = 0; b < run_.n_blocks; ++b)
      min[b] = -lanes.min[b];
  }

 private:
  SearchLanes<kNearestBlock> weighed() const noexcept {
    SearchLanes<kNearestBlock> lanes;
    lanes.load(run_.x, run_.n_blocks);
    lanes.weigh(run_.importance, run_.n_blocks,
                [&](size_t) { return run_.importance->row_mean_square; });
    return lanes;
  }

  const BlockRun& run_;
};

}  // namespace

void encode(const BlockRun& run, BlockQ4_0* blocks) noexcept {
  RunCodes found(run);
  found.symmetric(8);
  for (size_t b = 0; b < run.n_blocks; ++b) {
    blocks[b].d = f32_to_f16(found.scale[b]);
    put_codes(found.of(b), blocks[b].qs);
  }
}

void encode(const BlockRun& run, BlockQ4_1* blocks) noexcept {
  RunCodes found(run);
  found.affine(15);
  for (size_t b = 0; b < run.n_blocks; ++b) {
    blocks[b].d = f32_to_f16(found.scale[b]);
    blocks[b].m = f32_to_f16(found.min[b]);
    put_codes(found.of(b), blocks[b].qs);
  }
}

void encode(const BlockRun& run, BlockQ5_0* blocks) noexcept {
  RunCodes found(run);
  found.symmetric(16);
  for (size_t b = 0; b < run.n_blocks; ++b) {
    blocks[b].d = f32_to_f16(found.scale[b]);
    put_five_bits(found.of(b), blocks[b].qh, blocks[b].qs);
  }
}

void encode(const BlockRun& run, BlockQ5_1* blocks) noexcept {
  RunCodes found(run);
  found.affine(31);
  for (size_t b = 0; b < run.n_blocks; ++b) {
    blocks[b].d = f32_to_f16(found.scale[b]);
    blocks[b].m = f32_to_f16(found.min[b]);
    put_five_bits(found.of(b), blocks[b].qh, blocks[b].qs);
  }
}

void encode(const BlockRun& run, BlockQ8_0* blocks) noexcept {
  RunCodes found(run);
  run.ops.nearest_magnitude(found.blocks());
  for (size_t b = 0; b < run.n_blocks; ++b) {
    blocks[b].d = f32_to_f16(found.scale[b]);
    std::memcpy(blocks[b].qs.data(), found.of(b), kNearestBlock);
  }
}

void encode(const float* x, BlockQ8_1& block) noexcept {
  const float d = largest_magnitude({x, 32}) / 127.0F, id = inverse(d);
  block.d = f32_to_f16(d);
  int sum = 0;
  for (size_t j = 0; j < 32; ++j) {
    block.qs[j] = static_cast<int8_t>(round_away(x[j] * id));
    sum += block.qs[j];
  }
  block.s = f32_to_f16(static_cast<float>(sum) * d);
}

void encode(const float* x, BlockQ8_K& block) noexcept {
  block = {};
  const float max = extreme({x, 256});
  if (max == 0.0F) return;
  const float scale = -127.0F / max;
  for (size_t i = 0; i < 256; ++i) {
    block.qs[i] = static_cast<int8_t>(std::min(127, round_even(scale * x[i])));
    block.bsums[i / 16] = static_cast<int16_t>(block.bsums[i / 16] + block.qs[i]);
  }
  block.d = 1.0F / scale;
}

void encode(const float* x, BlockTQ1_0& block) noexcept {
  const float d = largest_magnitude({x, 256}), id = inverse(d);
  block.d = f32_to_f16(d);
  const auto digit = [&](size_t i) { return round_away(x[i] * id) + 1; };
  const auto pack_five = [&](size_t first, size_t stride) {
    std::array<int, 5> digits;
    for (size_t n = 0; n < 5; ++n)
      digits[n] = digit(first + n * stride);
    return pack_trits(digits);
  };
  for (size_t i = 0; i < 32; ++i)
    block.qs[i] = pack_five(i, 32);
  for (size_t i = 0; i < 16; ++i)
    block.qs[32 + i] = pack_five(160 + i, 16);
  for (size_t i = 0; i < 4; ++i) {
    block.qh[i] = pack_trits({digit(240 + i), digit(244 + i), digit(248 + i), digit(252 + i), 0});
  }
}

void encode(const float* x, BlockTQ2_0& block) noexcept {
  const float d = largest_magnitude({x, 256}), id = inverse(d);
  block.d = f32_to_f16(d);
  block.qs = {};
  for (size_t i = 0; i < 256; ++i) {
    const int code = round_away(x[i] * id) + 1;
    block.qs[i / 128 * 32 + i % 32] |= static_cast<uint8_t>((code & 3) << (2 * (i % 128 / 32)));
  }
}

void encode(const float* x, BlockMXFP4& block) noexcept {
  // The largest E2M1 exponent is 2: the scale is two below the exponent of the largest value.
  const float most = largest_magnitude({x, 32});
  const int exponent = most > 0.0F ? to_int(std::floor(std::log2(most))) - 2 + 127 : 0;
  block.e = static_cast<uint8_t>(std::max(0, exponent));
  const float d = e8m0_half(block.e);
  for (size_t j = 0; j < 16; ++j) {
    put_nibbles(j, nearest_e2m1(x[j], d), nearest_e2m1(x[j + 16], d), block.qs);
  }
}

void encode(const float* x, BlockNVFP4& block) noexcept {
  for (size_t s = 0; s < 4; ++s, x += 16) {
    block.d[s] = to_ue4m3(largest_magnitude({x, 16}) / 6.0F);
    const float d = ue4m3_half(block.d[s]);
    for (size_t i = 0; i < 8; ++i) {
      put_nibbles(8 * s + i, nearest_e2m1(x[i], d), nearest_e2m1(x[i + 8], d), block.qs);
    }
  }
}

void encode(const float* x, BlockQ1_0& block) noexcept {
  float sum = 0.0F;
  for (size_t i = 0; i < 128; ++i)
    sum += std::fabs(x[i]);
  block.d = f32_to_f16(sum / 128.0F);
  block.qs = {};
  for (size_t i = 0; i < 128; ++i) {
    if (x[i] >= 0.0F) block.qs[i / 8] |= static_cast<uint8_t>(1 << i % 8);
  }
}

void encode(const float* x, BlockQ2_0& block) noexcept {
  const float d = largest_magnitude({x, 64}), id = inverse(d);
  block.d = f32_to_f16(d);
  block.qs = {};
  for (size_t i = 0; i < 64; ++i) {
    const int code = std::clamp(round_away(x[i] * id) + 1, 0, 3);
    block.qs[i / 4] |= static_cast<uint8_t>(code << (2 * (i % 4)));
  }
}

}  // namespace qw::ggml
