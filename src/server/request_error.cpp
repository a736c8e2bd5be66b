#include "server/request_error.h"

#include <algorithm>
#include <cmath>

namespace qw::server {

int64_t seconds_until_room(int64_t n_ahead, int64_t n_slots, double typical_s) noexcept {
  const double seconds =
      typical_s * static_cast<double>(n_ahead) / static_cast<double>(std::max<int64_t>(n_slots, 1));
  return static_cast<int64_t>(std::ceil(std::clamp(seconds, 1.0, 600.0)));
}

int http_status(const Error& error) noexcept {
  if (const auto* own = dynamic_cast<const RequestError*>(&error); own && own->status() != 0)
    return own->status();
  switch (error.kind()) {
    case ErrorKind::kInvalidArgument:
    case ErrorKind::kUnsupported:
      return 400;
    case ErrorKind::kNotFound:
      return 404;
    case ErrorKind::kOutOfMemory:
    case ErrorKind::kCancelled:
      return 503;
    case ErrorKind::kCorrupt:
    case ErrorKind::kIo:
    case ErrorKind::kInternal:
      return 500;
  }
  return 500;
}

}  // namespace qw::server
