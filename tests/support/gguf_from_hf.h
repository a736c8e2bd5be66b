// A GGUF file made from a Hugging Face directory, so that tests can compare the two.
//
// Only what tests need: a dense Qwen2 model with tied embeddings and a byte-level tokenizer.
#pragma once

#include <string>

#include "tensor/dtype.h"

namespace qw::test {

/// Writes `directory` as `path`; matrices in `dtype` (any type that encode_row can write and whose
/// block divides the rows), vectors in f32.
void write_gguf_from_hf(const std::string& directory, const std::string& path, DType dtype);

}  // namespace qw::test
