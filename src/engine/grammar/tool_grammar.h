// Answers that may, or must, call tools, as a grammar.
//
// Level 6 (engine). What text/tools says about how a format writes calls, with every function's
// arguments held to its JSON schema.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/grammar/grammar.h"
#include "text/tools/tool_format.h"

namespace qw {

/// The answers of `structure`. The structure's `end` may be left to the end token. warnings: null,
/// or takes a sentence for each function whose schema says something that no grammar can: its
/// arguments are then held to be a JSON object only. Errors: invalid_argument (not a schema),
/// unsupported (without `warnings`), both naming the function.
std::shared_ptr<const Grammar> tool_grammar(const ToolCallStructure& structure,
                                            const JsonFormat& format = {},
                                            std::vector<std::string>* warnings = nullptr);
/// The characters of the marks around calls that JSON within them holds as escapes only: the text
/// is cut at a mark wherever it stands.
grammar::CodePointSet escaped_in_calls(const ToolCallStructure& structure);

/// The same as a part of what `builder` builds. answer: null, or what stands in the place of free
/// text; calls come alone then, and a call that must be made leaves no place for it.
grammar::Node tool_grammar_node(const ToolCallStructure& structure, const JsonFormat& format,
                                std::vector<std::string>* warnings, GrammarBuilder& builder,
                                const grammar::Node& answer = nullptr);

}  // namespace qw
