#include "quant/packed_codes.h"

#include <algorithm>

#include "base/checked.h"

namespace qw::packed {

namespace {

const RawTensor& require_rank(const RawTensor* tensor, std::string_view module,
                              std::string_view suffix, int rank) {
  if (tensor == nullptr) {
    fail(ErrorKind::kCorrupt, "quant", "{}.{}: expected this tensor, got none", printable(module),
         suffix);
  }
  if (tensor->shape.rank() != rank) {
    fail(ErrorKind::kCorrupt, "quant", "{}.{}: expected {} dimensions, got shape {} ({})",
         printable(module), suffix, rank, tensor->shape.str(), printable(tensor->file));
  }
  const int64_t bytes = checked_mul(
      tensor->shape.n_elems(), static_cast<int64_t>(info(tensor->dtype).block_bytes), tensor->name);
  if (static_cast<uint64_t>(bytes) != tensor->bytes.size()) {
    fail(ErrorKind::kCorrupt, "quant", "{}.{}: expected {} bytes for {} {}, got {} ({})",
         printable(module), suffix, bytes, tensor->shape.str(), name_of(tensor->dtype),
         tensor->bytes.size(), printable(tensor->file));
  }
  return *tensor;
}

}  // namespace

const RawTensor& require(const RawTensor* tensor, std::string_view module, std::string_view suffix,
                         int rank, DType dtype) {
  if (tensor != nullptr && tensor->dtype != dtype) {
    fail(ErrorKind::kCorrupt, "quant", "{}.{}: expected {}, got {} ({})", printable(module), suffix,
         name_of(dtype), name_of(tensor->dtype), printable(tensor->file));
  }
  return require_rank(tensor, module, suffix, rank);
}

FloatTensor require_floats(const RawTensor* tensor, std::string_view module,
                           std::string_view suffix, int rank) {
  if (tensor != nullptr && (!is_float(tensor->dtype) || tensor->dtype == DType::kF64)) {
    fail(ErrorKind::kCorrupt, "quant", "{}.{}: expected f16, bf16 or f32, got {} ({})",
         printable(module), suffix, name_of(tensor->dtype), printable(tensor->file));
  }
  const RawTensor& found = require_rank(tensor, module, suffix, rank);
  return {found.bytes.data(), found.dtype, found.owner};
}

void require_size(const RawTensor& tensor, std::string_view module, std::string_view suffix,
                  int axis, int64_t least, int64_t most) {
  const int64_t size = tensor.shape[axis];
  if (size >= least && size <= most) return;
  const std::string expected =
      least == most ? fmt::format("{}", least) : fmt::format("{} to {}", least, most);
  fail(ErrorKind::kCorrupt, "quant", "{}.{}: expected size {} on axis {}, got shape {} ({})",
       printable(module), suffix, expected, axis, tensor.shape.str(), printable(tensor.file));
}

Grouping group_columns(int64_t k, int64_t group_size, std::string_view module) {
  if (group_size < -1 || group_size == 0) {
    fail(ErrorKind::kCorrupt, "quant", "{}: expected a group size of -1 or more than 0, got {}",
         printable(module), group_size);
  }
  const int64_t size = group_size == -1 ? k : std::min(group_size, k);
  return {size, size == 0 ? 0 : ceil_div(k, size)};
}

}  // namespace qw::packed
