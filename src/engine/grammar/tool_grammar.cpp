#include "engine/grammar/tool_grammar.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/utf8.h"

namespace qw {
namespace {

using grammar::Node;
using nlohmann::ordered_json;

/// A function's parameters as the schema of an object, which arguments always are.
ordered_json object_schema(const ToolCallStructure::Function& function) {
  if (!function.parameters || function.parameters->is_null()) return {{"type", "object"}};
  ordered_json out = *function.parameters;
  if (out.is_boolean() && out.get<bool>()) return {{"type", "object"}};
  if (out.is_object() && !out.contains("type")) out["type"] = "object";
  return out;
}

/// Code up to its last fence. What ends an answer would end it here, too.
Node code_block(const ToolCallStructure& structure) {
  std::vector<grammar::Trigger> marks = {{"\n```", nullptr}};
  for (const std::string& stop : structure.stops)
    marks.push_back({stop, grammar::never()});
  return grammar::sequence({grammar::literal("\n```py\n"), grammar::free_text(marks, false)});
}

/// Free text of a structure, up to and with the mark `last`, which is one of its own; "": to its
/// end.
Node text_up_to(const ToolCallStructure& structure, std::string_view last) {
  std::vector<grammar::Trigger> marks;
  const auto add = [&](const std::string& mark) {
    if (!mark.empty()) marks.push_back({mark, mark == last ? nullptr : grammar::never()});
  };
  add(structure.trigger);
  add(structure.final_mark);
  if (structure.must_call) {
    for (const std::string& stop : structure.stops)
      add(stop);
  }
  grammar::TextStart start;
  if (structure.starts_line) {
    start.read = "\n";
    for (const char c : {' ', '\t', '\r', '\n'})
      start.skipped.add(static_cast<uint32_t>(c));
  }
  return grammar::free_text(marks, last.empty(), start);
}

Node arguments_node(const ToolCallStructure& structure, const ToolCallStructure::Function& function,
                    const JsonFormat& format, GrammarBuilder& builder,
                    std::vector<std::string>* warnings) {
  if (function.arguments == ToolCallStructure::Arguments::kCodeBlock) return code_block(structure);
  try {
    // A builder of its own: what a schema that is refused has begun must leave no rules.
    GrammarBuilder trial;
    trial.json_schema(object_schema(function), format);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUnsupported || warnings == nullptr) {
      throw Error(error.kind(), fmt::format("{} (parameters of function {})", error.message(),
                                            printable(function.name)));
    }
    warnings->push_back(fmt::format("arguments of {} are held to be a JSON object only: {}",
                                    printable(function.name), error.message()));
    return builder.json_object(format);
  }
  return builder.json_schema(object_schema(function), format);
}

}  // namespace

grammar::CodePointSet escaped_in_calls(const ToolCallStructure& structure) {
  grammar::CodePointSet out;
  for (const std::string* mark : {&structure.trigger, &structure.open, &structure.separator,
                                  &structure.close, &structure.next, &structure.end}) {
    for (std::string_view rest = *mark; !rest.empty();) {
      const Utf8Step step = decode_utf8(rest);
      // Marks of ASCII hold a line end, which JSON strings have as an escape anyway.
      if (step.code_point > 0x7F) out.add(step.code_point);
      rest.remove_prefix(step.length);
    }
  }
  return out;
}

grammar::Node tool_grammar_node(const ToolCallStructure& structure, const JsonFormat& given,
                                std::vector<std::string>* warnings, GrammarBuilder& builder,
                                const Node& answer) {
  if (structure.functions.empty()) return grammar::text_without(structure.trigger);
  JsonFormat format = given;
  format.escaped.add(escaped_in_calls(structure));
  std::vector<Node> functions;
  for (const ToolCallStructure::Function& function : structure.functions) {
    functions.push_back(
        grammar::sequence({grammar::literal(function.name), grammar::literal(structure.separator),
                           arguments_node(structure, function, format, builder, warnings)}));
  }
  // What follows `open`, which free text may have begun.
  const Node call =
      builder.add("call", grammar::sequence({grammar::alternation(std::move(functions)),
                                             grammar::literal(structure.close)}));
  const Node more =
      grammar::sequence({grammar::literal(structure.next), grammar::literal(structure.open), call});
  const Node end = structure.end.empty() ? grammar::nothing()
                                         : grammar::optional(grammar::literal(structure.end));
  const Node calls = grammar::sequence(
      {call, structure.may_repeat ? grammar::any_number_of(more) : grammar::nothing(), end});
  const Node lead = grammar::literal(structure.lead);
  const Node calls_alone = grammar::sequence({lead, grammar::literal(structure.open), calls});
  if (structure.must_call && !structure.text_first) return calls_alone;
  if (answer && !structure.must_call)
    return grammar::alternation({grammar::sequence({lead, answer}), calls_alone});
  QW_CHECK(structure.open.starts_with(structure.trigger), "{} opens calls, {} ends text",
           structure.open, structure.trigger);
  const Node text_calls =
      grammar::sequence({text_up_to(structure, structure.trigger),
                         grammar::literal(structure.open.substr(structure.trigger.size())), calls});
  if (structure.must_call) return text_calls;
  std::vector<Node> answers = {text_up_to(structure, ""), text_calls};
  if (!structure.final_mark.empty()) {
    answers.push_back(
        grammar::sequence({text_up_to(structure, structure.final_mark), grammar::any_text()}));
  }
  return grammar::alternation(std::move(answers));
}

std::shared_ptr<const Grammar> tool_grammar(const ToolCallStructure& structure,
                                            const JsonFormat& format,
                                            std::vector<std::string>* warnings) {
  GrammarBuilder builder;
  const Node root = tool_grammar_node(structure, format, warnings, builder);
  return builder.build(root);
}

}  // namespace qw
