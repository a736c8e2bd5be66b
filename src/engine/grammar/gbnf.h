// Grammars written down as rules: llama.cpp's GBNF, and the same notation as other servers take it.
//
// Level 6 (engine/grammar). name ::= alternatives of "literal", [class], ., (group), name, each
// with
// *, +, ?, {m}, {m,}, {m,n}; # begins a comment. Line ends mean nothing: a rule ends where the next
// one's `name ::=` begins.
#pragma once

#include <string_view>

#include "engine/grammar/grammar.h"

namespace qw::grammar {

/// Adds the rules of `text` to `builder`; returns the call of `root`. Errors: invalid_argument (not
/// a grammar, rules that are defined twice or not at all), unsupported; with line and column.
Node parse_gbnf(std::string_view text, std::string_view root, GrammarBuilder& builder);

}  // namespace qw::grammar
