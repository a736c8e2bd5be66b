#include "text/jinja/template_error.h"

namespace qw {
namespace {

ErrorKind exit_kind(TemplateErrorKind kind) {
  // A template that does not parse is a broken file; everything else depends on the messages too.
  return kind == TemplateErrorKind::kSyntax ? ErrorKind::kCorrupt : ErrorKind::kInvalidArgument;
}

/// What went wrong, and what would have been right.
std::string_view expectation(TemplateErrorKind kind) {
  switch (kind) {
    case TemplateErrorKind::kRaiseException:
      return "messages: expected what the template accepts";
    case TemplateErrorKind::kUndefined:
      return "expression: expected a defined value";
    case TemplateErrorKind::kPython:
      return "expression: expected what Python can evaluate";
    case TemplateErrorKind::kSecurity:
      return "expression: expected what the sandbox permits";
    case TemplateErrorKind::kSyntax:
      return "source: expected a Jinja template";
    case TemplateErrorKind::kLimit:
      return "template: expected to stay within its limits";
  }
  return "template: expected to render";
}

std::string sentence(TemplateErrorKind kind, const std::string& detail, int line) {
  constexpr size_t kShownBytes = 2000;
  return fmt::format("[chat_template] {}, got: {} ({} error{})", expectation(kind),
                     printable(detail, kShownBytes), name_of(kind),
                     line > 0 ? fmt::format(", template line {}", line) : "");
}

}  // namespace

std::string_view name_of(TemplateErrorKind kind) noexcept {
  switch (kind) {
    case TemplateErrorKind::kRaiseException:
      return "raise_exception";
    case TemplateErrorKind::kUndefined:
      return "undefined";
    case TemplateErrorKind::kPython:
      return "python";
    case TemplateErrorKind::kSecurity:
      return "security";
    case TemplateErrorKind::kSyntax:
      return "syntax";
    case TemplateErrorKind::kLimit:
      return "limit";
  }
  return "python";
}

TemplateError::TemplateError(TemplateErrorKind kind, std::string detail, int line)
    : Error(exit_kind(kind), sentence(kind, detail, line)),
      template_kind_(kind),
      detail_(std::move(detail)),
      line_(line) {}

}  // namespace qw
