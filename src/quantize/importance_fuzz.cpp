// Any bytes as importances: an Error or entries whose sizes go together, nothing else.
#include <cstdint>

#include "base/error.h"
#include "checkpoint/memory_file.h"
#include "quantize/importance.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using qw::ErrorKind;
  const auto file = qw::map_bytes(std::as_bytes(std::span(data, size)));
  try {
    const qw::quantize::ImportanceMatrix matrix = qw::quantize::read_importance(file);
    for (const auto& [name, entry] : matrix.entries) {
      const auto n = static_cast<int64_t>(entry.counts.size());
      const int64_t k = static_cast<int64_t>(entry.sums.size()) / n;
      for (int64_t i = 0; i < n; ++i)
        QW_CHECK(std::ssize(matrix.weights(name, i, n, k)) == k, "{}", name);
    }
  } catch (const qw::Error& error) {
    QW_CHECK(error.kind() == ErrorKind::kCorrupt || error.kind() == ErrorKind::kUnsupported, "{}",
             error.message());
  }
  return 0;
}
