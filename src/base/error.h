// Errors: one exception type for what users and files can cause, one check for what we can.
//
// Level 0 (base). A user or file fault is qw::Error with a kind that the command line maps to
// an exit code and the server to a status. The message is one sentence,
// "[component] what: expected X, got Y (where)". A broken promise of our own code is QW_CHECK,
// on in every build; it throws too (kind internal), so that no input can end the process.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

#include "qianwen/error.h"  // ErrorKind and Error are public

namespace qw {

/// Throws Error{kind, "[component] " + formatted}. Keep the sentence to the form
/// "what: expected X, got Y (file, tensor, offset)".
template <typename... Args>
[[noreturn]] void fail(ErrorKind kind, std::string_view component,
                       fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind,
              fmt::format("[{}] {}", component, fmt::format(format, std::forward<Args>(args)...)));
}

/// Bytes that came from outside (a file name, a key, a token) made fit for one line of a message:
/// control characters, line separators and invalid UTF-8 as \xNN, cut after `max_bytes` with "...".
std::string printable(std::string_view text, size_t max_bytes = 120);

/// What an error says, without the component: for a message of the same component's.
std::string_view sentence_of(const Error& error);

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
