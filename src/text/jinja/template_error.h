// What can go wrong in a chat template, by kind.
//
// Level 3 (text). The kinds are those that Python's Jinja distinguishes by exception class, because
// callers treat them differently: a template's own `raise_exception` is a message for the user, an
// undefined value is usually a message without a field, a syntax error is a broken checkpoint.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace qw {

enum class TemplateErrorKind {
  kRaiseException,  // the template called raise_exception: its own words
  kUndefined,       // an undefined value was used for more than printing and testing
  kPython,          // what Python answers with TypeError, ValueError, KeyError and the like
  kSecurity,        // an access that the immutable sandbox forbids
  kSyntax,          // the template does not parse, or names an unknown filter or test
  kLimit,           // too many steps, too much output, too deep
};

/// "raise_exception", "undefined", "python", "security", "syntax", "limit".
std::string_view name_of(TemplateErrorKind kind) noexcept;

/// The error of a template. `detail()` is the bare sentence (for raise_exception the template's own
/// words, byte for byte); what() adds the component, the kind and the template line (from 1).
class TemplateError : public Error {
 public:
  TemplateError(TemplateErrorKind kind, std::string detail, int line);

  TemplateErrorKind template_kind() const noexcept { return template_kind_; }
  const std::string& detail() const noexcept { return detail_; }
  /// The line of the template where it happened; 0 when there is none.
  int line() const noexcept { return line_; }

 private:
  TemplateErrorKind template_kind_;
  std::string detail_;
  int line_;
};

namespace jinja {

/// Throws a TemplateError without a line; the interpreter adds the line it was at.
template <typename... Args>
[[noreturn]] void raise(TemplateErrorKind kind, fmt::format_string<Args...> format,
                        Args&&... args) {
  throw TemplateError(kind, fmt::format(format, std::forward<Args>(args)...), 0);
}

/// The commonest case: what Python would answer with TypeError or ValueError.
template <typename... Args>
[[noreturn]] void python_error(fmt::format_string<Args...> format, Args&&... args) {
  throw TemplateError(TemplateErrorKind::kPython, fmt::format(format, std::forward<Args>(args)...),
                      0);
}

}  // namespace jinja
}  // namespace qw
