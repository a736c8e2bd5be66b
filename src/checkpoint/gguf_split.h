// A GGUF model in several files, as llama-gguf-split lays them out.
//
// Level 3 (checkpoint). Source: llama.cpp's gguf-split.cpp (August 2026), restated. Files are
// called NAME-00001-of-0000N.gguf; the metadata is in the first, and all have split.no,
// split.tensors.count and split.count.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
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

/// write_gguf() into a file that the caller commits, which has the first `n_written` tensors
/// already. `on_tensor(n)`: n tensors were written.
void write_gguf(AtomicFile& file, const GgufWriter& content,
                FunctionRef<void(size_t, GgufSink)> produce, size_t n_written = 0,
                const std::function<void(size_t)>& on_tensor = {});

/// What write_gguf writes before the tensors. Errors: as write_gguf.
std::vector<std::byte> gguf_header(const GgufWriter& content);

/// What write_gguf writes, padding included, up to the end of the first `n_tensors` tensors; of
/// none nothing. Errors: as write_gguf.
int64_t gguf_file_bytes(const GgufWriter& content, size_t n_tensors);
int64_t gguf_file_bytes(const GgufWriter& content);

/// Files of a model that are written in more than one run.
struct GgufStage {
  std::string directory;  // where they lie until all are whole, on the output's file system
  size_t n_written = 0;   // tensors of the model that are there
  /// n tensors are there and on the disk; called after those that take the last ones' time.
  std::function<void(size_t n_tensors)> note;
  /// What is computed in a shorter time is computed again rather than synced one by one.
  std::chrono::milliseconds pace = std::chrono::seconds(10);
};

/// write_gguf(), in files of these limits; one file is written as if there were none. All files are
/// whole and synced before the first appears under its name, and the first of the model, which has
/// the metadata, appears last. With a `stage` tensors that it has are not produced again. Errors:
/// those of write_gguf and gguf_split_paths.
void write_split_gguf(const std::string& path, const GgufWriter& content,
                      const GgufSplitLimits& limits, FunctionRef<void(size_t, GgufSink)> produce,
                      const GgufStage* stage = nullptr);

}  // namespace qw
