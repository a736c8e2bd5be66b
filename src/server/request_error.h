// What is wrong with a client's request, with the field that is at fault.
//
// Level 7 (server). Dialects write it in their own form; the status follows the kind.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace qw::server {

/// The code of what does not fit the context.
inline constexpr const char* kContextExceeded = "context_length_exceeded";

class RequestError : public Error {
 public:
  RequestError(ErrorKind kind, std::string message, std::string field = "", int status = 0,
               int64_t retry_after_s = 1)
      : Error(kind, std::move(message)),
        field_(std::move(field)),
        status_(status),
        retry_after_s_(retry_after_s) {}
  /// A word of OpenAI's for what is wrong, which clients branch on; "": none.
  RequestError&& with_code(std::string code) && {
    code_ = std::move(code);
    return std::move(*this);
  }
  const std::string& code() const noexcept { return code_; }
  const std::string& field() const noexcept { return field_; }
  /// HTTP status; 0: what the kind says.
  int status() const noexcept { return status_; }
  /// Seconds after which to try again, where trying again helps (429, 503).
  int64_t retry_after_s() const noexcept { return retry_after_s_; }

 private:
  std::string field_, code_;
  int status_;
  int64_t retry_after_s_;
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

/// What "[component] what: ..." is about; "": it has no such form.
std::string_view subject_of(std::string_view message);

/// A part of a request in the form that the dialects share ("messages[1].content") by the name that
/// the client knows it by ("input[2].output").
struct ClientName {
  std::string ours, theirs;
};
/// The same error, about what the client sent: its subject begins with the longest of our names
/// that it begins with. A subject of several words is no field.
RequestError in_client_names(const std::vector<ClientName>& names, const Error& error);

/// Seconds until a place in a full line comes free, at a guess: `n_ahead` requests have to end
/// before, `n_slots` are computed at a time, and one takes `typical_s`. At least 1, at most 10
/// minutes.
int64_t seconds_until_room(int64_t n_ahead, int64_t n_slots, double typical_s) noexcept;

/// The HTTP status that tells a client whose fault an error is.
int http_status(const Error& error) noexcept;

}  // namespace qw::server
