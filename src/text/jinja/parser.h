// Template text to syntax tree.
//
// Level 3 (text). Source: Jinja 3.1's grammar with the loop controls extension and the `generation`
// block of Transformers. Not supported, and refused: import, include, extends, trans, do, debug.
#pragma once

#include <string_view>

#include "text/jinja/ast.h"

namespace qw::jinja {

/// Parses a whole template (valid UTF-8). Errors: TemplateError of kind syntax, also for filters
/// and tests that do not exist (outside conditions), and for nesting past 500 levels.
Body parse(std::string_view source);

}  // namespace qw::jinja
