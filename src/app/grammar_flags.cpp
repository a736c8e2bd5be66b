#include "app/grammar_flags.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include "app/input.h"
#include "app/open.h"
#include "base/error.h"
#include "engine/grammar/grammar_cache.h"

namespace qw::app {
namespace {

/// A flag's own text where it looks like one, otherwise the file that it names ("-": stdin).
std::string text_or_file(const std::string& value, bool is_text) {
  return is_text ? value : read_input(value, size_t{16} << 20);
}

bool looks_like_schema(const std::string& value) {
  const size_t first = value.find_first_not_of(" \t\r\n");
  return first != std::string::npos && (value[first] == '{' || value == "true" || value == "false");
}

}  // namespace

std::shared_ptr<const Grammar> GrammarFlags::compile() const {
  using Kind = GrammarSource::Kind;
  std::optional<GrammarSource> source;
  if (json_schema) {
    source = {.kind = Kind::kJsonSchema,
              .text = text_or_file(*json_schema, looks_like_schema(*json_schema))};
  } else if (json_object) {
    source = {.kind = Kind::kJsonObject};
  } else if (regex) {
    source = {.kind = Kind::kRegex, .text = *regex};
  } else if (grammar) {
    const bool is_text = grammar->find("::=") != std::string::npos;
    source = {.kind = Kind::kGbnf, .text = text_or_file(*grammar, is_text)};
  } else if (!choices.empty()) {
    source = {.kind = Kind::kChoice, .choices = choices};
  }
  if (!source) return nullptr;
  source->json.whitespace_pattern = whitespace;
  return source->compile();
}

std::shared_ptr<GrammarMatcher> matcher_for(const std::shared_ptr<const Grammar>& grammar,
                                            const ModelFiles& files, const std::string& path) {
  if (!grammar) return nullptr;
  return std::make_shared<GrammarMatcher>(
      grammar, std::make_shared<const GrammarVocabulary>(tokenizer_of(files, path)));
}

std::shared_ptr<GrammarFlags> add_grammar_flags(CLI::App& app) {
  auto flags = std::make_shared<GrammarFlags>();
  const std::string group = "Constrained decoding";
  auto* schema = app.add_option("--json-schema", flags->json_schema,
                                "The answer is JSON that fits this schema (a file or the text)");
  auto* object = app.add_flag("--json-object", flags->json_object, "The answer is a JSON object");
  auto* regex = app.add_option("--regex", flags->regex,
                               "The answer fits this regular expression, as a whole");
  auto* grammar = app.add_option("--grammar", flags->grammar,
                                 "The answer fits this GBNF grammar (a file or the text)");
  auto* choice = app.add_option("--choice", flags->choices,
                                "The answer is one of these texts; repeat the flag for each")
                     ->allow_extra_args(false);
  const std::vector<CLI::Option*> all = {schema, object, regex, grammar, choice};
  for (size_t i = 0; i < all.size(); ++i) {
    all[i]->group(group);
    for (size_t k = i + 1; k < all.size(); ++k)
      all[i]->excludes(all[k]);
  }
  schema->type_name("FILE|TEXT");
  grammar->type_name("FILE|TEXT");
  app.add_option("--json-whitespace", flags->whitespace,
                 "A regular expression for white space in JSON; default: as models write it")
      ->type_name("REGEX")
      ->group(group);
  return flags;
}

void constrain(Request& request, const std::shared_ptr<GrammarMatcher>& matcher) {
  if (!matcher) return;
  request.processors.push_back(
      std::make_shared<GrammarProcessor>(matcher, request.config.eos_token_id));
}

}  // namespace qw::app
