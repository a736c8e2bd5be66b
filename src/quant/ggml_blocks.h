// GGML block formats: what the bytes of a row mean, as scalar reference code.
//
// Level 2 (quant). Same order of f32 operations as ggml's dequantize_row_*, one rounding each,
// so that decoded values are bit-equal to its. Block sizes are in tensor/dtype.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/scale_search_ops.h"
#include "tensor/dtype.h"

namespace qw {

/// out[i] = value of element i of a row of n_elems (a multiple of the block) at `bytes`
/// (unaligned). Any float or block type. Errors: unsupported for integer types.
void decode_row(DType dtype, const std::byte* bytes, int64_t n_elems, float* out);

/// True for types that encode_row can write.
bool can_encode(DType dtype) noexcept;

/// True for IQ1, IQ2 and IQ3, whose codes are points of a grid: any bits mean something, and
/// finding good ones takes a search.
bool is_grid_type(DType dtype) noexcept;

/// Round-to-nearest encoding of a row (the rule of ggml's quantize_row_*_ref, without
/// importance weights) into row_bytes(dtype, n_elems) bytes. Errors: unsupported for a
/// type that cannot be written; invalid_argument for what it cannot hold: infinity or NaN in a
/// block type, a number beyond f16 or beyond the scales of the block type.
/// `ops` changes no bit.
void encode_row(DType dtype, const float* in, int64_t n_elems, std::byte* bytes,
                const ScaleSearchOps& ops = scalar_search_ops());

/// The same with importance[i] >= 0, how much an error of element i counts (the mean square of the
/// input that it is multiplied with, say). Types without a search take no notice of it.
void encode_row(DType dtype, const float* in, const float* importance, int64_t n_elems,
                std::byte* bytes, const ScaleSearchOps& ops = scalar_search_ops());

/// Sets d, the f16 scale of a block of a grid type, and leaves its codes: so random weights are
/// made in no time.
void set_block_scale(DType dtype, uint16_t d, std::byte* block);

}  // namespace qw
