#include "checkpoint/byte_order.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace qw {

namespace {

// `count` fields of `width` bytes, one after the other, from `offset` bytes into the block.
struct Field {
  int offset = 0;
  int width = 0;
  int count = 1;
};

struct BlockFields {
  DType dtype;
  std::array<Field, 2> fields;  // width 0: none
};

using enum DType;

// Types without a row here are plain (one field, the element) or made of bytes only.
constexpr std::array kBlockFields = {
    BlockFields{kQ4_0, {{{0, 2}}}},
    BlockFields{kQ4_1, {{{0, 2, 2}}}},
    BlockFields{kQ5_0, {{{0, 2}, {2, 4}}}},     // d; qh, 32 high bits written as one word
    BlockFields{kQ5_1, {{{0, 2, 2}, {4, 4}}}},  // d, m; qh
    BlockFields{kQ8_0, {{{0, 2}}}},
    BlockFields{kQ8_1, {{{0, 2, 2}}}},
    BlockFields{kQ2_K, {{{80, 2, 2}}}},
    BlockFields{kQ3_K, {{{108, 2}}}},
    BlockFields{kQ4_K, {{{0, 2, 2}}}},
    BlockFields{kQ5_K, {{{0, 2, 2}}}},
    BlockFields{kQ6_K, {{{208, 2}}}},
    BlockFields{kQ8_K, {{{0, 4}, {260, 2, 16}}}},  // d (f32); sums of groups
    BlockFields{kIQ1_S, {{{0, 2}, {34, 2, 8}}}},   // d; qh
    BlockFields{kIQ1_M, {{{48, 2, 4}}}},           // scales, with the bits of d among them
    BlockFields{kIQ2_XS, {{{0, 2, 33}}}},          // d, then 32 words of grid index and signs
    BlockFields{kIQ2_S, {{{0, 2}}}},
    BlockFields{kIQ3_S, {{{0, 2}}}},
    BlockFields{kIQ4_NL, {{{0, 2}}}},
    BlockFields{kIQ4_XS, {{{0, 2, 2}}}},  // d; scales_h
    BlockFields{kTQ1_0, {{{52, 2}}}},
    BlockFields{kTQ2_0, {{{64, 2}}}},
    BlockFields{kQ1_0, {{{0, 2}}}},
    BlockFields{kQ2_0, {{{0, 2}}}},
};

void swap_fields(std::span<std::byte> bytes, size_t stride, const Field& field) {
  const auto width = static_cast<size_t>(field.width);
  for (size_t block = 0; block < bytes.size(); block += stride) {
    for (int i = 0; i < field.count; ++i) {
      std::ranges::reverse(
          bytes.subspan(block + static_cast<size_t>(field.offset + i * field.width), width));
    }
  }
}

}  // namespace

void swap_byte_order(DType dtype, std::span<std::byte> bytes, std::string_view what) {
  if (dtype == kIQ2_XXS || dtype == kIQ3_XXS) {
    fail(ErrorKind::kUnsupported, "gguf",
         "{}: expected a type with a defined big-endian form, got {}", what, name_of(dtype));
  }
  const DTypeInfo& type = info(dtype);
  const auto stride = static_cast<size_t>(type.block_bytes);
  QW_CHECK(bytes.size() % stride == 0, "{} bytes of {}", bytes.size(), type.name);
  if (!is_block(dtype)) {
    if (type.block_bytes > 1) swap_fields(bytes, stride, {0, type.block_bytes});
    return;
  }
  const auto row = std::ranges::find(kBlockFields, dtype, &BlockFields::dtype);
  if (row == kBlockFields.end()) return;
  for (const Field& field : row->fields) {
    if (field.width > 0) swap_fields(bytes, stride, field);
  }
}

}  // namespace qw
