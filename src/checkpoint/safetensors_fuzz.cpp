// Any bytes as a safetensors file: an Error or tensors inside the file, nothing else.
#include <cstdint>

#include "base/error.h"
#include "checkpoint/memory_file.h"
#include "checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = qw::map_bytes(std::as_bytes(std::span(data, size)));
  try {
    uint64_t sum = 0;
    for (const qw::RawTensor& tensor : qw::read_safetensors(file).tensors) {
      for (const std::byte byte : tensor.bytes)
        sum += std::to_integer<uint64_t>(byte);
    }
    volatile uint64_t kept = sum;  // the bytes must be read
    (void)kept;
  } catch (const qw::Error& error) {
    QW_CHECK(error.kind() == qw::ErrorKind::kCorrupt || error.kind() == qw::ErrorKind::kUnsupported,
             "{}", error.message());
  }
  return 0;
}
