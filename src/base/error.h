// Errors: one exception type for what users and files can cause, one check for what we can.
//
// Level 0 (base). A user or file fault is qw::Error with a kind that the command line maps to
// an exit code and the server to a status. The message is one sentence,
// "[component] what: expected X, got Y (where)". A broken promise of our own code is QW_CHECK,
// on in every build; it throws too (kind internal), so that no input can end the process.
#pragma once

#include <fmt/format.h>

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

/// Throws Error{kind, "[component] " + formatted}. Keep the sentence to the form
/// "what: expected X, got Y (file, tensor, offset)".
template <typename... Args>
[[noreturn]] void fail(ErrorKind kind, std::string_view component,
                       fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind,
              fmt::format("[{}] {}", component, fmt::format(format, std::forward<Args>(args)...)));
}

/// Bytes that came from outside (a file name, a key, a token) made fit for one line of a message:
/// control characters and invalid UTF-8 as \xNN, cut after `max_bytes` with "...".
std::string printable(std::string_view text, size_t max_bytes = 120);

namespace detail {
[[noreturn]] void check_failed(const char* condition, const char* file, int line,
                               std::string_view note);
}

}  // namespace qw

/// Our own invariant: throws Error{kInternal} naming the place. Never for user input.
#define QW_CHECK(condition, ...)                                                                 \
  do {                                                                                           \
    if (!(condition)) [[unlikely]]                                                               \
      ::qw::detail::check_failed(#condition, __FILE__, __LINE__, ::fmt::format("" __VA_ARGS__)); \
  } while (false)
