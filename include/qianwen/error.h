// Errors of Qianwen: one exception type with a kind.
//
// Part of the public API; std types only.
#pragma once

#include <exception>
#include <string>
#include <string_view>
#include <utility>

namespace qw {

enum class ErrorKind {
  kInternal,         // exit 1: our fault
  kInvalidArgument,  // exit 2: wrong usage, absurd parameter, bad request
  kNotFound,         // exit 3: no such file, model, tensor
  kCorrupt,          // exit 4: a file that breaks its own format
  kUnsupported,      // exit 5: well-formed, but not something we can run
  kOutOfMemory,      // exit 6: would not fit, refused before allocating
  kIo,               // exit 7: the system failed to read or write
  kCancelled,        // exit 130: interrupted by the user
};

/// The process exit code for an error of this kind (the contract of the command line).
int exit_code(ErrorKind kind) noexcept;
/// The kind's name in snake_case, as in machine-readable output.
std::string_view name_of(ErrorKind kind) noexcept;

/// Everything that Qianwen throws on purpose. The message is one sentence of the form
/// "[component] what: expected X, got Y (where)".
class Error : public std::exception {
 public:
  Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}
  ErrorKind kind() const noexcept { return kind_; }
  const std::string& message() const noexcept { return message_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  ErrorKind kind_;
  std::string message_;
};

}  // namespace qw
