#include "tensor/dtype.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "base/checked.h"

namespace qw {

namespace {

using enum DType;

constexpr std::array kTable = {
    DTypeInfo{kF32, "f32", 1, 4, 0},
    DTypeInfo{kF16, "f16", 1, 2, 1},
    DTypeInfo{kBF16, "bf16", 1, 2, 30},
    DTypeInfo{kF64, "f64", 1, 8, 28},
    DTypeInfo{kI8, "i8", 1, 1, 24},
    DTypeInfo{kI16, "i16", 1, 2, 25},
    DTypeInfo{kI32, "i32", 1, 4, 26},
    DTypeInfo{kI64, "i64", 1, 8, 27},
    DTypeInfo{kU8, "u8", 1, 1, -1},
    DTypeInfo{kU16, "u16", 1, 2, -1},
    DTypeInfo{kU32, "u32", 1, 4, -1},
    DTypeInfo{kU64, "u64", 1, 8, -1},
    DTypeInfo{kBool, "bool", 1, 1, -1},
    DTypeInfo{kQ4_0, "q4_0", 32, 18, 2},
    DTypeInfo{kQ4_1, "q4_1", 32, 20, 3},
    DTypeInfo{kQ5_0, "q5_0", 32, 22, 6},
    DTypeInfo{kQ5_1, "q5_1", 32, 24, 7},
    DTypeInfo{kQ8_0, "q8_0", 32, 34, 8},
    DTypeInfo{kQ8_1, "q8_1", 32, 36, 9},
    DTypeInfo{kQ2_K, "q2_k", 256, 84, 10},
    DTypeInfo{kQ3_K, "q3_k", 256, 110, 11},
    DTypeInfo{kQ4_K, "q4_k", 256, 144, 12},
    DTypeInfo{kQ5_K, "q5_k", 256, 176, 13},
    DTypeInfo{kQ6_K, "q6_k", 256, 210, 14},
    DTypeInfo{kQ8_K, "q8_k", 256, 292, 15},
    DTypeInfo{kIQ1_S, "iq1_s", 256, 50, 19},
    DTypeInfo{kIQ1_M, "iq1_m", 256, 56, 29},
    DTypeInfo{kIQ2_XXS, "iq2_xxs", 256, 66, 16},
    DTypeInfo{kIQ2_XS, "iq2_xs", 256, 74, 17},
    DTypeInfo{kIQ2_S, "iq2_s", 256, 82, 22},
    DTypeInfo{kIQ3_XXS, "iq3_xxs", 256, 98, 18},
    DTypeInfo{kIQ3_S, "iq3_s", 256, 110, 21},
    DTypeInfo{kIQ4_NL, "iq4_nl", 32, 18, 20},
    DTypeInfo{kIQ4_XS, "iq4_xs", 256, 136, 23},
    DTypeInfo{kTQ1_0, "tq1_0", 256, 54, 34},
    DTypeInfo{kTQ2_0, "tq2_0", 256, 66, 35},
    DTypeInfo{kMXFP4, "mxfp4", 32, 17, 39},
    DTypeInfo{kNVFP4, "nvfp4", 64, 36, 40},
    DTypeInfo{kQ1_0, "q1_0", 128, 18, 41},
    DTypeInfo{kQ2_0, "q2_0", 64, 18, 42},
};

constexpr bool in_order() {
  for (size_t i = 0; i < kTable.size(); ++i) {
    if (static_cast<size_t>(kTable[i].dtype) != i) return false;
  }
  return true;
}
static_assert(in_order(), "the table is indexed by the enumerator");

}  // namespace

const DTypeInfo& info(DType dtype) noexcept {
  return kTable[static_cast<size_t>(dtype)];
}

std::optional<DType> dtype_from_ggml_id(int64_t id) noexcept {
  for (const DTypeInfo& row : kTable) {
    if (row.ggml_id >= 0 && row.ggml_id == id) return row.dtype;
  }
  return std::nullopt;
}

std::optional<DType> dtype_from_name(std::string_view name) noexcept {
  const auto same = [](char a, char b) { return a == std::tolower(static_cast<unsigned char>(b)); };
  for (const DTypeInfo& row : kTable) {
    if (std::equal(row.name.begin(), row.name.end(), name.begin(), name.end(), same))
      return row.dtype;
  }
  return std::nullopt;
}

int64_t row_bytes(DType dtype, int64_t n_elems, std::string_view what, std::string_view where) {
  const DTypeInfo& type = info(dtype);
  if (n_elems % type.block_elems != 0) {
    fail(ErrorKind::kCorrupt, "tensor",
         "{}: expected a row of a multiple of {} elements for {}, got {}{}", printable(what),
         type.block_elems, type.name, n_elems, detail::in_brackets(where));
  }
  return checked_mul<int64_t>(n_elems / type.block_elems, type.block_bytes, what, where);
}

}  // namespace qw
