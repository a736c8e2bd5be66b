// safetensors: a JSON header of names, types, shapes and byte ranges, then the bytes.
//
// Level 3 (checkpoint). Source: the format description of huggingface/safetensors. Layout:
// u64 header length (little-endian), header, data. Only the header is read; tensors are views.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "base/mapped_file.h"
#include "tensor/raw_tensor.h"

namespace qw {

struct SafetensorsFile {
  std::vector<RawTensor> tensors;                             // in order of their bytes
  std::vector<std::pair<std::string, std::string>> metadata;  // `__metadata__`, file order
};

/// Reads the header and makes one view per tensor. The format's own rules are enforced: the byte
/// ranges tile the data exactly (no gap, no overlap, nothing left over), every range is as long
/// as shape and type say, names are unique. Errors: corrupt; unsupported for a type or rank that
/// we do not hold (naming the tensor).
SafetensorsFile read_safetensors(const std::shared_ptr<const MappedFile>& file);

/// A tensor to be written.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;  // a plain type; the format has no block types
  Shape shape;
};

/// Writes a file tensor by tensor, without holding more than one chunk in memory:
///   SafetensorsWriter out(path, entries);
///   for (...) out.write(bytes);   // the tensors' bytes, in the order of `entries`, in any chunks
///   out.finish();                 // syncs and renames over `path`
/// Destroyed without finish(), it leaves nothing behind. Errors: io; invalid_argument for a
/// block type, a repeated name, text that is not UTF-8, or too many / too few bytes.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::string& path, const std::vector<SafetensorsEntry>& entries,
                    const std::vector<std::pair<std::string, std::string>>& metadata = {});
  void write(std::span<const std::byte> bytes);
  void finish();

 private:
  AtomicFile file_;
  uint64_t expected_bytes_ = 0;  // of all tensors
  uint64_t written_bytes_ = 0;
};

}  // namespace qw
