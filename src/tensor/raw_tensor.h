// A named tensor as a file holds it: type, shape, bytes, and where they came from.
//
// Level 1 (tensor). A view: `owner` keeps the mapping (or a converted copy) alive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "tensor/dtype.h"
#include "tensor/shape.h"

namespace qw {

struct RawTensor {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;                        // outermost first; the last axis is contiguous
  std::span<const std::byte> bytes;   // little-endian, row-major, without gaps; any alignment
  std::shared_ptr<const void> owner;  // whatever keeps `bytes` alive
  std::string file;                   // for messages
  uint64_t offset_bytes = 0;          // of the first byte in that file
};

}  // namespace qw
