// A GGUF model in several files, as llama-gguf-split lays them out.
//
// Level 3 (checkpoint). Source: llama.cpp's gguf-split.cpp (August 2026), restated. Files are
// called NAME-00001-of-0000N.gguf; the metadata is in the first, and all have split.no,
// split.tensors.count and split.count.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/gguf.h"

namespace qw {

class AtomicFile;

/// 0: no limit.
struct GgufSplitLimits {
  int64_t max_bytes = 0;    // of a file's tensors with their padding; a larger tensor is alone
  int64_t max_tensors = 0;  // of a file
};

/// The files that tensors fall into, in order: how many tensors each holds. Never an empty file,
/// except the only one of a model without tensors.
std::vector<size_t> split_gguf(std::span<const GgufWriter::Tensor> tensors,
                               const GgufSplitLimits& limits);

/// "DIR/NAME.gguf" in `count` files: DIR/NAME-00001-of-0000N.gguf and so on; of one file its own
/// name. Errors: invalid_argument, when there are more files than split.count can say.
std::vector<std::string> gguf_split_paths(const std::string& path, size_t count);

/// write_gguf() into a file that the caller commits.
void write_gguf(AtomicFile& file, const GgufWriter& content,
                FunctionRef<void(size_t, GgufSink)> produce);

/// What write_gguf writes, padding included. Errors: as write_gguf.
int64_t gguf_file_bytes(const GgufWriter& content);

/// write_gguf(), in files of these limits; one file is written as if there were none. All files are
/// whole and synced before the first appears under its name, and the first of the model, which has
/// the metadata, appears last. Errors: those of write_gguf and gguf_split_paths.
void write_split_gguf(const std::string& path, const GgufWriter& content,
                      const GgufSplitLimits& limits, FunctionRef<void(size_t, GgufSink)> produce);

}  // namespace qw
