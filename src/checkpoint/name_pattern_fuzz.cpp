// Any bytes as a pattern of names, and the rest of them as a name: an Error or an answer, soon.
#include <cstdint>

#include "base/error.h"
#include "checkpoint/name_pattern.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t end = text.find('\n');
  const std::string_view name = end == std::string_view::npos ? "" : text.substr(end + 1, 200);
  try {
    const qw::NamePattern pattern(text.substr(0, end), "config.json");
    (void)pattern.matches_start(name);
    QW_CHECK(pattern.n_steps() <= qw::NamePattern::kMaxSteps + 1, "{} steps", pattern.n_steps());
  } catch (const qw::Error& error) {
    QW_CHECK(error.kind() == qw::ErrorKind::kCorrupt || error.kind() == qw::ErrorKind::kUnsupported,
             "{}", error.message());
  }
  return 0;
}
