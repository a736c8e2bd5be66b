// The two containers that make_model writes.
//
// A tool.
#pragma once

#include <cstdint>
#include <string>

#include "make_model/shapes.h"

namespace qw::make_model {

struct Options {
  std::string size = "0.5B", format = "q4_k_m", output;
  int layers = 0;  // 0: the shape's own
  int64_t vocab = 0;
  uint64_t seed = 1;
  int64_t group_size = 128;
};

/// One GGUF file: `format` is a GGML type or a mix as llama-quantize makes it (q4_k_m).
/// Errors: invalid_argument (unknown format), io.
void make_gguf(const Options& options, const ModelShape& shape);

/// Whether make_directory knows the format.
bool is_directory_format(const std::string& format);

/// A Hugging Face directory with one safetensors file: plain floats, GPTQ or AWQ.
/// Errors: invalid_argument (a group size that does not divide), io.
void make_directory(const Options& options, const ModelShape& shape);

}  // namespace qw::make_model
