// Fields that constrain an answer, under the names that OpenAI's and vLLM's clients use.
//
// Level 7 (server).
#pragma once

#include "server/fields.h"
#include "server/generation/task.h"

namespace qw::server {

/// Sets what the answers may be; a second such field is an error.
void set_grammar(GenerationTask& task, const std::string& field, GrammarSource source);
/// OpenAI's response_format: text, json_object or json_schema.
void read_response_format(const std::string& field, const Json& value, GenerationTask& task);
/// What that may be, and its members.
Json response_format_schema();
ShapePtr response_format_shape();
/// A JSON schema, as an object or as its text.
std::string to_schema(const std::string& field, const Json& value);

/// A field of a constraint, but "" is refused: who names a constraint means one, and an answer
/// without any would look like its work.
template <typename Task>
Field<Task> not_empty(Field<Task> field) {
  field.read = [name = field.name, read = std::move(field.read)](const Json& value, Task& task) {
    if (value == "")
      refuse_field(name, "expected what the answer may be, got an empty text (null: anything)");
    read(value, task);
  };
  field.schema = {{"allOf", Json::array({field.schema, {{"not", {{"const", ""}}}}})}};
  return field;
}

/// A field whose value is the text of a grammar of that kind; "" asks for none.
template <typename Task>
Field<Task> grammar_field(std::string name, GrammarSource::Kind kind, std::string note = "") {
  auto read = [name, kind](const Json& value, Task& task) {
    const std::string text = to_string(name, value);
    if (!text.empty()) set_grammar(task, name, {kind, text});
  };
  return honoured<Task>(name, std::move(read), std::move(note)).as(types::string());
}
/// A field whose value is a JSON schema, as an object or as its text; "" asks for none.
template <typename Task>
Field<Task> schema_field(std::string name, std::string note = "") {
  auto read = [name](const Json& value, Task& task) {
    if (value != "")
      set_grammar(task, name, {GrammarSource::Kind::kJsonSchema, to_schema(name, value)});
  };
  return honoured<Task>(name, std::move(read), std::move(note)).as(types::json_schema());
}

template <typename Task>
void add_grammar_fields(FieldTable<Task>& table) {
  table.push_back(honoured<Task>(
                      "response_format",
                      [](const Json& value, Task& task) {
                        read_response_format("response_format", value, task);
                      },
                      "text, json_object or json_schema, whose parts are listed in the docs")
                      .as(response_format_schema())
                      .with(response_format_shape()));
  // vLLM's newer fields, and those of its earlier versions.
  for (const std::string form : {"structured_outputs.", "guided_"}) {
    table.push_back(not_empty(schema_field<Task>(form + "json")));
    table.push_back(not_empty(grammar_field<Task>(form + "regex", GrammarSource::Kind::kRegex)));
    table.push_back(not_empty(grammar_field<Task>(form + "grammar", GrammarSource::Kind::kGbnf)));
    const std::string choice = form + "choice";
    table.push_back(honoured<Task>(choice, [choice](const Json& value, Task& task) {
                      GrammarSource source;
                      source.kind = GrammarSource::Kind::kChoice;
                      source.choices = to_strings(choice, value);
                      set_grammar(task, choice, std::move(source));
                    }).as(types::strings()));
    const std::string pattern = form + "whitespace_pattern";
    table.push_back(honoured<Task>(pattern, [pattern](const Json& value, Task& task) {
                      task.whitespace_pattern = to_string(pattern, value);
                      task.whitespace_field = pattern;
                    }).as(types::string()));
  }
  const std::string object = "structured_outputs.json_object";
  table.push_back(honoured<Task>(object, [object](const Json& value, Task& task) {
                    GrammarSource source;
                    source.kind = GrammarSource::Kind::kJsonObject;
                    if (to_bool(object, value)) set_grammar(task, object, std::move(source));
                  }).as(types::boolean()));
  for (const char* name :
       {"disable_fallback", "disable_any_whitespace", "disable_additional_properties"})
    table.push_back(ignored<Task>(std::string("structured_outputs.") + name, "the schema says it"));
  table.push_back(refused<Task>("structured_outputs.structural_tag",
                                "use tools, or structured_outputs.grammar"));
  table.push_back(ignored<Task>("guided_decoding_backend", "there is one"));
  table.push_back(refused<Task>("structural_tag", "use tools, or guided_grammar"));
}

}  // namespace qw::server
