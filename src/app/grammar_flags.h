// Flags that hold an answer to a grammar: --json-schema, --json-object, --regex, --grammar,
// --choice.
//
// Level 8 (app).
#pragma once

#include <CLI/App.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/bundle.h"
#include "engine/grammar/grammar_processor.h"

namespace qw::app {

struct GrammarFlags {
  std::optional<std::string> json_schema, regex, grammar;
  std::vector<std::string> choices;
  bool json_object = false;
  std::optional<std::string> whitespace;

  /// What the flags ask for; null: nothing. Errors: invalid_argument, unsupported (of the grammar),
  /// not_found (no such file).
  std::shared_ptr<const Grammar> compile() const;
};

/// A grammar over the model's tokens; null without grammar. Errors: not_found (no tokenizer).
std::shared_ptr<GrammarMatcher> matcher_for(const std::shared_ptr<const Grammar>& grammar,
                                            const ModelFiles& files, const std::string& path);

std::shared_ptr<GrammarFlags> add_grammar_flags(CLI::App& app);

/// Holds a request to the grammar; null: leaves it free.
void constrain(Request& request, const std::shared_ptr<GrammarMatcher>& matcher);

}  // namespace qw::app
