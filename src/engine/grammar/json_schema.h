// JSON schemas as grammars: the commonly used part of draft 2020-12.
//
// Level 6 (engine/grammar). Everything that the grammar generates is an instance, and every
// instance can be generated, in the one spelling that the schema's order of properties and
// JsonFormat give (docs/constrained-decoding.md says what else has one spelling only). A keyword
// that is not supported is an error with its JSON pointer; nothing is ignored but annotations.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "engine/grammar/grammar.h"

namespace qw::grammar {

/// Errors: invalid_argument (not JSON, too large).
nlohmann::ordered_json parse_schema(std::string_view text);

/// Adds the rules of `schema` to `builder`; returns the call of its instances. Errors:
/// invalid_argument (a keyword's value is wrong), unsupported (a keyword, or a combination).
Node json_schema_node(const nlohmann::ordered_json& schema, const JsonFormat& format,
                      GrammarBuilder& builder);

}  // namespace qw::grammar
