#include "text/jinja/template_error.h"

namespace qw {
namespace {

ErrorKind exit_kind(TemplateErrorKind kind) {
  // A template that does not parse is a broken file; everything else depends on the messages too.
  return kind == TemplateErrorKind::kSyntax ? ErrorKind::kCorrupt : ErrorKind::kInvalidArgument;
}

std::string sentence(TemplateErrorKind kind, const std::string& detail, int line) {
  constexpr size_t kShownBytes = 2000;
  std::string text =
      fmt::format("[chat_template] {} error: {}", name_of(kind), printable(detail, kShownBytes));
  if (line > 0) text += fmt::format(" (template line {})", line);
  return text;
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
