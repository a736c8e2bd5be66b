// Any bytes as a PyTorch file. First byte odd: the rest follows a valid beginning of the legacy
// form (zip archives carry a CRC over the pickle, which random changes never meet).
#include <algorithm>
#include <cstdint>
#include <string>

#include "base/error.h"
#include "checkpoint/memory_file.h"
#include "checkpoint/torch_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  using std::string_literals::operator""s;
  static const std::string kBeginning =
      "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  // magic
      "\x80\x02M\xe9\x03."                                         // protocol 1001
      "\x80\x02}."s;                                               // system
  std::string text = (data[0] & 1) != 0 ? kBeginning : std::string();
  text.append(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto file = qw::map_bytes(std::as_bytes(std::span(text)));
  try {
    uint64_t sum = 0;
    for (const qw::RawTensor& tensor : qw::read_torch_file(file)) {
      // Many views may share one storage; a part of each is enough.
      for (const std::byte byte : tensor.bytes.first(std::min<size_t>(tensor.bytes.size(), 64))) {
        sum += std::to_integer<uint64_t>(byte);
      }
      if (!tensor.bytes.empty()) sum += std::to_integer<uint64_t>(tensor.bytes.back());
    }
    volatile uint64_t kept = sum;  // the bytes must be read
    (void)kept;
  } catch (const qw::Error& error) {
    QW_CHECK(error.kind() == qw::ErrorKind::kCorrupt ||
                 error.kind() == qw::ErrorKind::kUnsupported ||
                 error.kind() == qw::ErrorKind::kOutOfMemory,
             "{}", error.message());
  }
  return 0;
}
