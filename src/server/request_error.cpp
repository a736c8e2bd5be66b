#include "server/request_error.h"

namespace qw::server {

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
