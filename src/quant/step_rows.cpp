#include "quant/step_rows.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "base/error.h"
#include "base/half.h"
#include "quant/ggml_blocks.h"
#include "quant/ggml_codecs.h"

namespace qw {

namespace {

constexpr int64_t kBlock = 32;  // elements of the types that are written
constexpr uint16_t kOne = 0x3C00;

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

// ---- reading -----------------------------------------------------------------------------------

template <typename Block>
constexpr bool kHasMin = requires(Block block) {
  block.m;
};

/// Calls visit(Block()) for a type of blocks with one scale; false: `dtype` is none.
template <typename Visit>
bool visit_block(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::kQ4_0:
      visit(BlockQ4_0());
      return true;
    case DType::kQ4_1:
      visit(BlockQ4_1());
      return true;
    case DType::kQ5_0:
      visit(BlockQ5_0());
      return true;
    case DType::kQ5_1:
      visit(BlockQ5_1());
      return true;
    case DType::kQ8_0:
      visit(BlockQ8_0());
      return true;
    case DType::kIQ4_NL:
      visit(BlockIQ4_NL());
      return true;
    case DType::kTQ1_0:
      visit(BlockTQ1_0());
      return true;
    case DType::kTQ2_0:
      visit(BlockTQ2_0());
      return true;
    case DType::kQ1_0:
      visit(BlockQ1_0());
      return true;
    case DType::kQ2_0:
      visit(BlockQ2_0());
      return true;
    default:
      return false;
  }
}

/// A block with a scale of one and no minimum decodes to its integers.
template <typename Block>
void read_block(const std::byte* bytes, int64_t n_elems, int16_t* values, float* steps,
                float* offsets) {
  auto block = load_block<Block>(bytes);
  std::fill_n(steps, n_elems, f16_to_f32(block.d));
  block.d = kOne;
  float offset = 0;
  if constexpr (kHasMin<Block>) {
    offset = f16_to_f32(block.m);
    block.m = 0;
  }
  std::fill_n(offsets, n_elems, offset);
  std::array<float, kSuperBlock> integers;
  ggml::decode(block, integers.data());
  for (int64_t i = 0; i < n_elems; ++i)
    values[i] = static_cast<int16_t>(integers[at(i)]);
}

void read_blocks(const BlockRows& blocks, int64_t row, StepRows& out) {
  const DTypeInfo& type = info(blocks.dtype);
  for (int64_t r = 0; r < out.n_rows; ++r) {
    const std::byte* bytes = blocks.data + (row + r) * blocks.row_bytes;
    for (int64_t i = 0; i < out.k; i += type.block_elems, bytes += type.block_bytes) {
      const size_t to = at(r * out.k + i);
      visit_block(blocks.dtype, [&](auto block) {
        read_block<decltype(block)>(bytes, type.block_elems, &out.values[to], &out.steps[to],
                                    &out.offsets[to]);
      });
    }
  }
}

void read_groups(const GroupAffine& source, int64_t row, StepRows& out) {
  const int64_t n_groups = source.n_groups, k = out.k;
  std::vector<uint8_t> codes(at(out.n_rows * k));
  std::vector<float> scales(at(out.n_rows * n_groups)), zeros(scales.size());
  source.codes(row, out.n_rows, codes.data());
  source.scales(row, out.n_rows, scales.data());
  source.zeros(row, out.n_rows, zeros.data());
  const bool has_offsets = source.form == GroupAffine::Form::kOffset;
  for (int64_t r = 0; r < out.n_rows; ++r) {
    for (int64_t i = 0; i < k; ++i) {
      const int64_t group =
          source.group_of.empty() ? i / source.group_size : int64_t{source.group_of[at(i)]};
      const size_t from = at(r * n_groups + group), to = at(r * k + i);
      out.steps[to] = scales[from];
      out.offsets[to] = has_offsets ? zeros[from] : 0;
      out.values[to] =
          static_cast<int16_t>(codes[to] - (has_offsets ? 0 : static_cast<int>(zeros[from])));
    }
  }
}

// ---- writing -----------------------------------------------------------------------------------

/// Integers that a block's codes stand for.
struct Range {
  int low = 0, high = 0;
  bool has_min = false;
};

Range range_of(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0:
      return {-8, 7};
    case DType::kQ5_0:
      return {-16, 15};
    case DType::kQ8_0:
      return {-128, 127};
    case DType::kQ4_1:
      return {0, 15, true};
    case DType::kQ5_1:
      return {0, 31, true};
    default:
      break;
  }
  QW_CHECK(false, "{} takes no steps", name_of(dtype));
  return {};
}

/// A block's content before it is packed.
struct Content {
  uint16_t d = 0, m = 0;
  std::array<int, kBlock> values{};
};

void pack_nibbles(const std::array<int, kBlock>& codes, std::array<uint8_t, 16>& qs) {
  for (size_t j = 0; j < 16; ++j)
    qs[j] = static_cast<uint8_t>((codes[j] & 15) | (codes[j + 16] & 15) << 4);
}

void pack_fifth_bits(const std::array<int, kBlock>& codes, std::array<uint8_t, 4>& qh) {
  uint32_t bits = 0;
  for (size_t j = 0; j < codes.size(); ++j)
    bits |= static_cast<uint32_t>(codes[j] >> 4 & 1) << j;
  qh = std::bit_cast<std::array<uint8_t, 4>>(bits);
}

template <typename Block>
void pack(const Content& content, Block& block) {
  block.d = content.d;
  if constexpr (kHasMin<Block>) block.m = content.m;
  if constexpr (requires { block.qh; }) pack_fifth_bits(content.values, block.qh);
  pack_nibbles(content.values, block.qs);
}

template <>
void pack(const Content& content, BlockQ8_0& block) {
  block.d = content.d;
  for (size_t j = 0; j < block.qs.size(); ++j)
    block.qs[j] = static_cast<int8_t>(content.values[j]);
}

void pack(DType dtype, Content content, const Range& range, std::byte* bytes) {
  if (dtype != DType::kQ8_0) {
    for (int& value : content.values)
      value -= range.low;
  }
  const auto write = [&](auto block) {
    pack(content, block);
    std::memcpy(bytes, &block, sizeof block);
  };
  switch (dtype) {
    case DType::kQ4_0:
      return write(BlockQ4_0());
    case DType::kQ4_1:
      return write(BlockQ4_1());
    case DType::kQ5_0:
      return write(BlockQ5_0());
    case DType::kQ5_1:
      return write(BlockQ5_1());
    default:
      return write(BlockQ8_0());
  }
}

/// A block of a row: integers, and the step and offset that all of them have.
struct Steps {
  const int16_t* values = nullptr;
  float step = 0, offset = 0;
};

std::optional<Steps> uniform(const StepRows& rows, size_t begin) {
  const float* steps = rows.steps.data() + begin;
  const float* offsets = rows.offsets.data() + begin;
  for (int64_t i = 1; i < kBlock; ++i) {
    if (steps[i] != steps[0] || offsets[i] != offsets[0]) return std::nullopt;
  }
  return Steps{rows.values.data() + begin, steps[0], offsets[0]};
}

std::optional<uint16_t> half_of(double value) {
  const uint16_t half = f32_to_f16(static_cast<float>(value));
  if (!std::isfinite(f16_to_f32(half))) return std::nullopt;
  return half;
}

/// Without a minimum: an offset that is whole steps goes into the integers, and a range that is
/// longer below 0 than above fits with the step negated, too.
std::optional<Content> place_symmetric(const Steps& in, const Range& range) {
  int shift = 0;
  if (in.offset != 0) {
    const double steps = static_cast<double>(in.offset) / static_cast<double>(in.step);
    if (!(std::fabs(steps) <= 256) || steps != std::floor(steps)) return std::nullopt;
    shift = static_cast<int>(steps);
  }
  const auto [low, high] = std::minmax_element(in.values, in.values + kBlock);
  const int lowest = *low + shift, highest = *high + shift;
  const bool fits = lowest >= range.low && highest <= range.high;
  if (!fits && (-highest < range.low || -lowest > range.high)) return std::nullopt;
  const std::optional<uint16_t> d = half_of(fits ? in.step : -in.step);
  if (!d) return std::nullopt;
  Content out{*d, 0, {}};
  for (size_t i = 0; i < out.values.size(); ++i)
    out.values[i] = fits ? in.values[i] + shift : -(in.values[i] + shift);
  return out;
}

/// With a minimum m = offset + base * step: of all bases that leave codes in range the one whose m
/// is nearest to what f16 holds (a power of two is exact, and so are all where the block has its
/// own minimum already).
std::optional<Content> place_affine(const Steps& in, const Range& range) {
  const auto [low, high] = std::minmax_element(in.values, in.values + kBlock);
  const std::optional<uint16_t> d = half_of(in.step);
  if (!d || *high - *low > range.high) return std::nullopt;
  double least = std::numeric_limits<double>::infinity();
  Content out{*d, 0, {}};
  int chosen = 0;
  for (int base = *low; base >= *high - range.high; --base) {
    const double m = static_cast<double>(in.offset) + double{in.step} * base;
    const std::optional<uint16_t> half = half_of(m);
    const double error = half ? std::fabs(double{f16_to_f32(*half)} - m) : least;
    if (error >= least) continue;
    least = error;
    out.m = *half;
    chosen = base;
  }
  if (!std::isfinite(least)) return std::nullopt;
  for (size_t i = 0; i < out.values.size(); ++i)
    out.values[i] = in.values[i] - chosen;
  return out;
}

/// Writes a block from the codes as they are; false: they do not fit.
bool transcode_block(DType dtype, const StepRows& rows, size_t begin, std::byte* bytes) {
  const std::optional<Steps> steps = uniform(rows, begin);
  if (!steps) return false;
  const Range range = range_of(dtype);
  const std::optional<Content> content =
      range.has_min ? place_affine(*steps, range) : place_symmetric(*steps, range);
  if (!content) return false;
  pack(dtype, *content, range, bytes);
  return true;
}

bool decodes_to(DType dtype, const std::byte* bytes, const float* x) {
  std::array<float, kBlock> got;
  decode_row(dtype, bytes, kBlock, got.data());
  return std::equal(got.begin(), got.end(), x);
}

}  // namespace

bool has_steps(const LinearSource& source) {
  if (const auto* blocks = std::get_if<BlockRows>(&source.data))
    return visit_block(blocks->dtype, [](auto) {});
  return std::holds_alternative<std::shared_ptr<const GroupAffine>>(source.data);
}

void read_steps(const LinearSource& source, int64_t row, int64_t n_rows, StepRows& out) {
  QW_CHECK(row >= 0 && n_rows >= 0 && row <= source.n - n_rows, "rows {}+{} of {}", row, n_rows,
           source.n);
  out.n_rows = n_rows;
  out.k = source.k;
  out.values.resize(at(n_rows * source.k));
  out.steps.resize(out.values.size());
  out.offsets.resize(out.values.size());
  if (const auto* blocks = std::get_if<BlockRows>(&source.data))
    return read_blocks(*blocks, row, out);
  read_groups(*std::get<std::shared_ptr<const GroupAffine>>(source.data), source.row_begin + row,
              out);
}

bool takes_steps(DType dtype) noexcept {
  return dtype == DType::kQ4_0 || dtype == DType::kQ4_1 || dtype == DType::kQ5_0 ||
         dtype == DType::kQ5_1 || dtype == DType::kQ8_0;
}

bool steps_fit(DType dtype, const StepRows& rows, int64_t r, const float* decoded) {
  std::array<std::byte, sizeof(BlockQ8_0)> bytes;
  for (int64_t i = 0; i < rows.k; i += kBlock) {
    if (!transcode_block(dtype, rows, at(r * rows.k + i), bytes.data())) return false;
    if (!decodes_to(dtype, bytes.data(), decoded + i)) return false;
  }
  return true;
}

void encode_steps(DType dtype, const StepRows& rows, int64_t r, const float* decoded,
                  const float* importance, std::byte* bytes, const ScaleSearchOps& ops) {
  const int64_t block_bytes = info(dtype).block_bytes;
  std::vector<std::byte> rounded;
  for (int64_t i = 0; i < rows.k; i += kBlock, bytes += block_bytes) {
    if (transcode_block(dtype, rows, at(r * rows.k + i), bytes)) continue;
    if (rounded.empty()) {  // as a whole: with importances the search looks at the whole row
      rounded.resize(at(rows.k / kBlock * block_bytes));
      importance == nullptr ? encode_row(dtype, decoded, rows.k, rounded.data(), ops)
                            : encode_row(dtype, decoded, importance, rows.k, rounded.data(), ops);
    }
    std::memcpy(bytes, rounded.data() + i / kBlock * block_bytes, at(block_bytes));
  }
}

void encode_rows(const LinearSource& source, int64_t row, int64_t n_rows, DType dtype,
                 const float* importance, float* decoded, std::byte* out,
                 const ScaleSearchOps& ops) {
  const int64_t k = source.k, bytes_per_row = row_bytes(dtype, k, source.name);
  const bool keeps_codes = takes_steps(dtype) && has_steps(source);
  StepRows steps;
  source.decode_rows(row, n_rows, decoded);
  if (keeps_codes) read_steps(source, row, n_rows, steps);
  for (int64_t r = 0; r < n_rows; ++r, out += bytes_per_row) {
    const float* values = decoded + r * k;
    try {
      if (keeps_codes) {
        encode_steps(dtype, steps, r, values, importance, out, ops);
      } else {
        importance == nullptr ? encode_row(dtype, values, k, out, ops)
                              : encode_row(dtype, values, importance, k, out, ops);
      }
    } catch (const Error& error) {
      throw Error(error.kind(), fmt::format("{} (row {} of {})", error.message(), row + r,
                                            printable(source.name)));
    }
  }
}

}  // namespace qw
