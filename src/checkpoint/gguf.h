// GGUF: header, metadata and tensor directory of versions 1 to 3, little- and big-endian.
//
// Level 3 (checkpoint). Source: the GGUF specification (ggml/docs/gguf.md). Every count, length
// and offset of the file is checked against its size before it is used.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/mapped_file.h"
#include "tensor/raw_tensor.h"

namespace qw {

enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

/// A metadata value. Integers and bool are widened to int64/uint64, floats to double; `type` keeps
/// what the file said. Arrays are homogeneous; nested arrays are refused as unsupported.
struct GgufValue {
  GgufType type = GgufType::kU32;
  GgufType element = GgufType::kU32;  // of an array
  std::variant<int64_t, uint64_t, double, bool, std::string, std::vector<int64_t>,
               std::vector<double>, std::vector<std::string>>
      value;
};

class GgufMetadata {
 public:
  uint32_t version = 3;
  bool big_endian = false;
  uint32_t alignment = 32;
  std::string file;
  std::vector<std::pair<std::string, GgufValue>> entries;  // file order

  const GgufValue* find(std::string_view key) const;
  // Typed access. The optional forms give `otherwise` when the key is absent; all throw
  // Error{kCorrupt} naming key, expected and found type when it has another type, and the plain
  // forms throw Error{kCorrupt} when it is absent.
  int64_t integer(std::string_view key) const;
  double real(std::string_view key) const;
  const std::string& string(std::string_view key) const;
  bool boolean_or(std::string_view key, bool otherwise) const;
  int64_t integer_or(std::string_view key, int64_t otherwise) const;
  double real_or(std::string_view key, double otherwise) const;
  std::string string_or(std::string_view key, std::string otherwise) const;
  const std::vector<std::string>* strings(std::string_view key) const;  // null: absent
  const std::vector<int64_t>* integers(std::string_view key) const;     // null: absent
  const std::vector<double>* reals(std::string_view key) const;         // null: absent
};

struct GgufFile {
  std::shared_ptr<const GgufMetadata> metadata;
  std::vector<RawTensor> tensors;  // shapes outermost first; big-endian bytes already swapped
};

/// Reads one file (one part of a split model). Errors: corrupt, unsupported, io.
GgufFile read_gguf(const std::shared_ptr<const MappedFile>& file);

/// What to write: entries in order, then tensors in order.
struct GgufWriter {
  std::vector<std::pair<std::string, GgufValue>> entries;
  struct Tensor {
    std::string name;
    DType dtype;
    Shape shape;  // outermost first
  };
  std::vector<Tensor> tensors;
  uint32_t alignment = 32;
};

}  // namespace qw
