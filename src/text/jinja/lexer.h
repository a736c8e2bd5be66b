// A template's text as tokens, with white space control done.
//
// Level 3 (text). Source: Jinja's lexer, in the environment of Transformers' chat templates:
// trim_blocks, lstrip_blocks, no trailing newline, default delimiters.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/template_error.h"
#include "text/jinja/value.h"

namespace qw::jinja {

enum class TokenKind {
  kData,  // text between tags
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,  // text: the value, escapes resolved
  kInteger,
  kFloat,
  kOperator,  // text: the operator itself
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;
  int line = 1;
  Int integer = 0;
  double real = 0.0;

  bool is(TokenKind k, std::string_view t) const { return kind == k && text == t; }
  bool is_name(std::string_view name) const { return is(TokenKind::kName, name); }
  bool is_op(std::string_view op) const { return is(TokenKind::kOperator, op); }
};

/// All tokens, the last of kind kEnd. `source` must be valid UTF-8. Errors: TemplateError syntax.
std::vector<Token> tokenize(std::string_view source);

/// Throws a syntax error at `line`.
template <typename... Args>
[[noreturn]] void syntax_error(int line, fmt::format_string<Args...> format, Args&&... args) {
  throw TemplateError(TemplateErrorKind::kSyntax, fmt::format(format, std::forward<Args>(args)...),
                      line);
}

}  // namespace qw::jinja
