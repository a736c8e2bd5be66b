// Every element type that a checkpoint may hold, plain and block-quantised, in one table.
//
// Level 1 (tensor). Only names and sizes are here; what the bytes of a block mean is quant/.
// Block types are GGML's (ggml-common.h of August 2026); their file ids are kept in `ggml_id`.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace qw {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kF64,
  kI8,
  kI16,
  kI32,
  kI64,
  kU8,
  kU16,
  kU32,
  kU64,
  kBool,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ8_1,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kQ8_K,
  kIQ1_S,
  kIQ1_M,
  kIQ2_XXS,
  kIQ2_XS,
  kIQ2_S,
  kIQ3_XXS,
  kIQ3_S,
  kIQ4_NL,
  kIQ4_XS,
  kTQ1_0,
  kTQ2_0,
  kMXFP4,
  kNVFP4,
  kQ1_0,
  kQ2_0,
};

struct DTypeInfo {
  DType dtype;
  std::string_view name;  // lower case: "f32", "q4_k"
  int block_elems;        // elements per block; 1 for plain types
  int block_bytes;
  int ggml_id;  // type id in GGUF files, -1: GGUF has none
};

const DTypeInfo& info(DType dtype) noexcept;
inline std::string_view name_of(DType dtype) noexcept {
  return info(dtype).name;
}
inline bool is_block(DType dtype) noexcept {
  return info(dtype).block_elems > 1;
}
inline bool is_float(DType dtype) noexcept {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 ||
         dtype == DType::kF64;
}
std::optional<DType> dtype_from_ggml_id(int64_t id) noexcept;
std::optional<DType> dtype_from_name(std::string_view name) noexcept;  // any case

/// Bytes of a row of n_elems elements. Errors: corrupt when n_elems is not a multiple of the
/// block, or on overflow; names `what` (the tensor) and `where` (the file).
int64_t row_bytes(DType dtype, int64_t n_elems, std::string_view what, std::string_view where = {});

}  // namespace qw
