// JSON Schema's `format` as languages.
//
// Level 6 (engine/grammar). Each is a subset of what its standard allows, and the whole of it but
// for what schema_formats.cpp says beside it.
#pragma once

#include <optional>
#include <string_view>

#include "engine/grammar/expression.h"

namespace qw::grammar {

/// The strings of a format; nullopt: not known.
std::optional<Node> string_format(std::string_view name);
/// For errors and documentation, separated by commas.
std::string_view string_format_names();

}  // namespace qw::grammar
