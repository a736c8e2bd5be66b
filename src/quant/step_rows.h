// Weights as integers on steps: what GPTQ, AWQ and GGML's blocks with one scale have in common, and
// what lets codes go from one format to another without being rounded again.
//
// Level 2 (quant). A group of 128 inputs in GPTQ is four blocks of Q4_0 with the same f16 scale and
// the same codes; docs/transcoding.md has the table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quant/linear_source.h"
#include "quant/scale_search_ops.h"

namespace qw {

/// Rows [n_rows, k] of W[o, i] = round(step[o, i] * value[o, i]) + offset[o, i], two roundings at
/// most; the decoder of the format gives the same numbers.
struct StepRows {
  int64_t n_rows = 0, k = 0;
  std::vector<int16_t> values;
  std::vector<float> steps, offsets;
};

/// Whether the weights are integers on steps: GPTQ, AWQ, and the block types with one scale (Q4_0,
/// Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, TQ1_0, TQ2_0, Q1_0, Q2_0); not floats, nor nf4, nor types whose
/// scales are quantised themselves.
bool has_steps(const LinearSource& source);

/// Rows [row, row + n_rows). `source` must have steps. Thread safe.
void read_steps(const LinearSource& source, int64_t row, int64_t n_rows, StepRows& out);

/// Whether `encode_steps` writes the type: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
bool takes_steps(DType dtype) noexcept;

/// Whether row r fits blocks of `dtype` with no weight changed: `decoded`, the row in f32, equals
/// what those blocks decode to (-0 and 0 are the same weight). k must be a multiple of 32.
bool steps_fit(DType dtype, const StepRows& rows, int64_t r, const float* decoded);

/// Row r as blocks of `dtype`: the codes as they are wherever they are in range, with scale and
/// minimum rounded to f16, which is less than any search would change; the other blocks rounded as
/// encode_row does. `importance` (may be null): as for encode_row. Errors: those of encode_row.
void encode_steps(DType dtype, const StepRows& rows, int64_t r, const float* decoded,
                  const float* importance, std::byte* bytes,
                  const ScaleSearchOps& ops = scalar_search_ops());

/// Rows [row, row + n_rows) in `dtype`: by encode_steps where the rows have steps and the type
/// takes them, else decoded and encoded. out: n_rows rows; decoded[r * k + i] becomes the rows in
/// f32. `importance` (may be null) and `ops`: as for encode_row. Errors: those of encode_row, with
/// the row.
/// Thread safe.
void encode_rows(const LinearSource& source, int64_t row, int64_t n_rows, DType dtype,
                 const float* importance, float* decoded, std::byte* out,
                 const ScaleSearchOps& ops = scalar_search_ops());

}  // namespace qw
