// GGUF: header, metadata and tensor directory of versions 1 to 3, little- and big-endian.
//
// Level 3 (checkpoint). Source: the GGUF specification (ggml/docs/gguf.md). Every count, length
// and offset of the file is checked against its size before it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/function_ref.h"
#include "base/mapped_file.h"
#include "tensor/raw_tensor.h"

namespace qw {

// clang-format off
enum class GgufType : uint32_t {
  kU8 = 0, kI8 = 1, kU16 = 2, kI16 = 3, kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7,
  kString = 8, kArray = 9, kU64 = 10, kI64 = 11, kF64 = 12,
};
// clang-format on

/// "u32", "string", ...; "?" for a number that is no type.
std::string_view name_of(GgufType type) noexcept;

/// A metadata value. Unsigned integers are widened to uint64, signed ones to int64, floats to
/// double; `type` keeps what the file said. Arrays are homogeneous: integers and booleans (0 or 1)
/// as int64, floats as double, strings. Nested arrays are refused as unsupported.
struct GgufValue {
  GgufType type = GgufType::kU32;
  GgufType element = GgufType::kU32;  // of an array
  std::variant<int64_t, uint64_t, double, bool, std::string, std::vector<int64_t>,
               std::vector<double>, std::vector<std::string>>
      value;

  // For writers.
  static GgufValue u32(uint32_t value) { return {GgufType::kU32, {}, uint64_t{value}}; }
  static GgufValue i32(int32_t value) { return {GgufType::kI32, {}, int64_t{value}}; }
  static GgufValue u16(uint16_t value) { return {GgufType::kU16, {}, uint64_t{value}}; }
  static GgufValue u64(uint64_t value) { return {GgufType::kU64, {}, value}; }
  static GgufValue f32(float value) { return {GgufType::kF32, {}, double{value}}; }
  static GgufValue boolean(bool value) { return {GgufType::kBool, {}, value}; }
  static GgufValue string(std::string value) { return {GgufType::kString, {}, std::move(value)}; }
  static GgufValue strings(std::vector<std::string> values) {
    return {GgufType::kArray, GgufType::kString, std::move(values)};
  }
  static GgufValue i32s(std::vector<int64_t> values) {
    return {GgufType::kArray, GgufType::kI32, std::move(values)};
  }
  static GgufValue f32s(std::vector<double> values) {
    return {GgufType::kArray, GgufType::kF32, std::move(values)};
  }
};

class GgufMetadata {
 public:
  uint32_t version = 3;
  bool big_endian = false;
  uint32_t alignment = 32;
  std::string file;
  std::vector<std::pair<std::string, GgufValue>> entries;  // file order, keys unique

  const GgufValue* find(std::string_view key) const;
  // Typed access. The optional forms give `otherwise` when the key is absent; all throw
  // Error{kCorrupt} naming key, expected and found type when it has another type, and the plain
  // forms throw Error{kCorrupt} when it is absent. A real may be stored as an integer.
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

 private:
  const GgufValue& required(std::string_view key, std::string_view expected) const;
  [[noreturn]] void wrong_type(std::string_view key, std::string_view expected,
                               const GgufValue& got) const;
  int64_t to_integer(std::string_view key, const GgufValue& value) const;
  double to_real(std::string_view key, const GgufValue& value) const;
};

struct GgufFile {
  std::shared_ptr<const GgufMetadata> metadata;
  std::vector<RawTensor> tensors;  // shapes outermost first; big-endian bytes already swapped
  std::shared_ptr<const MappedFile> mapping;
};

/// Reads one file (one part of a split model). Tensors are views of the mapping, or copies when
/// the file is big-endian. Errors: corrupt; unsupported (version, tensor type, nested array); io.
GgufFile read_gguf(const std::shared_ptr<const MappedFile>& file);

/// Reads a whole model from its file or from any part of a split one, parts in order.
/// Parts are found by name (NAME-00001-of-0000N.gguf) and checked against split.no, split.count
/// and split.tensors.count. `open` maps a file: MappedFile::open or a stricter one.
/// Errors: as read_gguf; not_found naming the missing part.
std::vector<GgufFile> read_gguf_model(
    const std::string& path,
    FunctionRef<std::shared_ptr<const MappedFile>(const std::string&)> open);

/// What to write: entries in order, then tensors in order.
struct GgufWriter {
  std::vector<std::pair<std::string, GgufValue>> entries;
  struct Tensor {
    std::string name;
    DType dtype;
    Shape shape;  // outermost first
  };
  std::vector<Tensor> tensors;
  uint32_t alignment = 32;  // a power of two; general.alignment is added when it is not 32
};

/// Receives the next bytes of a tensor.
using GgufSink = FunctionRef<void(std::span<const std::byte>)>;

/// Writes a little-endian file of version 3. produce(i, sink) is called once per tensor, in order,
/// and pushes the bytes of tensor i in any number of chunks. The file appears under `path` when it
/// is whole. Errors: io; invalid_argument for a type that GGUF lacks, a value whose type does not
/// fit its alternative, a repeated name, or a wrong number of bytes.
void write_gguf(const std::string& path, const GgufWriter& content,
                FunctionRef<void(size_t, GgufSink)> produce);

}  // namespace qw
