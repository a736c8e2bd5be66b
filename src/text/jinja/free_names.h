// Which variables a template takes from outside.
//
// Level 3 (text). As Jinja's meta.find_undeclared_variables: by the syntax tree, so what stands in
// a text or a comment is no variable.
#pragma once

#include <functional>
#include <set>
#include <string>

#include "text/jinja/ast.h"

namespace qw::jinja {

/// Names that `body` looks up where nothing within it is sure to have bound them: not loops' and
/// macros' own names, nor what `set` has bound before in the same scope. Global functions that it
/// calls are among them, since variables go before them.
std::set<std::string, std::less<>> free_names(const Body& body);

}  // namespace qw::jinja
