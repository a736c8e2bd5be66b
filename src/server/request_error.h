// What is wrong with a client's request, with the field that is at fault.
//
// Level 7 (server). Dialects write it in their own form; the status follows the kind.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace qw::server {

class RequestError : public Error {
 public:
  RequestError(ErrorKind kind, std::string message, std::string field = "", int status = 0)
      : Error(kind, std::move(message)), field_(std::move(field)), status_(status) {}
  const std::string& field() const noexcept { return field_; }
  /// HTTP status; 0: what the kind says.
  int status() const noexcept { return status_; }

 private:
  std::string field_;
  int status_;
};

/// Throws RequestError "[request] field: expected ..., got ...".
template <typename... Args>
[[noreturn]] void refuse_field(std::string_view field, fmt::format_string<Args...> format,
                               Args&&... args) {
  throw RequestError(
      ErrorKind::kInvalidArgument,
      fmt::format("[request] {}: {}", field, fmt::format(format, std::forward<Args>(args)...)),
      std::string(field));
}

/// The HTTP status that tells a client whose fault an error is.
int http_status(const Error& error) noexcept;

}  // namespace qw::server
