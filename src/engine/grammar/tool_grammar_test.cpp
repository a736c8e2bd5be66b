// Answers with tool calls, in the form of every format.
#include "engine/grammar/tool_grammar.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace qw {
namespace {

using nlohmann::ordered_json;

ToolCallStructure weather() {
  ToolCallStructure out;
  out.functions.push_back(
      {"weather", std::make_shared<const ordered_json>(ordered_json::parse(
                      R"({"properties":{"city":{"type":"string"}},"required":["city"],)"
                      R"("additionalProperties":false})"))});
  out.functions.push_back({"weather_now", nullptr});
  out.functions.push_back({"python", nullptr, ToolCallStructure::Arguments::kCodeBlock});
  out.trigger = "✿F:";
  out.open = "✿F: ";
  out.separator = "\n✿A: ";
  out.next = "\n";
  out.end = "\n✿R";
  out.may_repeat = true;
  return out;
}

TEST(ToolGrammar, TextThenCalls) {
  const auto grammar = tool_grammar(weather());
  for (const char* text :
       {"", "Just text, ✿ and ✿F.", "Let me see. ✿F: weather\n✿A: {\"city\": \"Rome\"}",
        "✿F: weather\n✿A: {\"city\":\"Rome\"}\n✿F: weather_now\n✿A: {\"any\":[1]}\n✿R",
        "✿F: python\n✿A: \n```py\nprint(1)\n\n``\n```\n✿R"})
    EXPECT_TRUE(grammar->accepts(text)) << text;
  for (const char* text :
       {"✿F: weathers", "✿F:weather", "✿F: weather\n✿A: {}", "✿F: weather\n✿A: {\"town\"",
        "✿F: weather_now\n✿A: {}\n✿Rx", "✿F: weather_now\n✿A: {} and text"})
    EXPECT_FALSE(grammar->accepts_prefix(text)) << text;
}

TEST(ToolGrammar, ForcedCalls) {
  ToolCallStructure structure = weather();
  structure.must_call = true;
  EXPECT_FALSE(tool_grammar(structure)->accepts("Just text"));
  EXPECT_TRUE(tool_grammar(structure)->accepts("Text ✿F: weather_now\n✿A: {}"));
  structure.text_first = structure.may_repeat = false;
  structure.lead = ": \n";
  const auto grammar = tool_grammar(structure);
  EXPECT_TRUE(grammar->accepts(": \n✿F: weather_now\n✿A: {}\n✿R"));
  EXPECT_FALSE(grammar->accepts_prefix("Text"));
  EXPECT_FALSE(grammar->accepts_prefix(": \n✿F: weather_now\n✿A: {}\n✿F"));
}

TEST(ToolGrammar, WithoutFunctionsTextThatBeginsNoCall) {
  ToolCallStructure structure = weather();
  structure.functions.clear();
  const auto grammar = tool_grammar(structure);
  for (const char* text : {"", "Just text, ✿ and ✿F.", "✿A: ✿R"})
    EXPECT_TRUE(grammar->accepts(text)) << text;
  for (const char* text : {"✿F:", "Text ✿F: weather"})
    EXPECT_FALSE(grammar->accepts_prefix(text)) << text;
}

TEST(ToolGrammar, AnAnswerInAFormOrCalls) {
  ToolCallStructure structure = weather();
  structure.lead = ": ";
  const auto grammar_of = [](const ToolCallStructure& of) {
    GrammarBuilder builder;
    const grammar::Node answer = builder.regex("[0-9]+ degrees");
    return builder.build(tool_grammar_node(of, {}, nullptr, builder, answer));
  };
  const auto grammar = grammar_of(structure);
  EXPECT_TRUE(grammar->accepts(": 21 degrees"));
  EXPECT_TRUE(grammar->accepts(": ✿F: weather_now\n✿A: {}\n✿F: weather_now\n✿A: {}\n✿R"));
  for (const char* text : {": Text", "21 degrees", ": 21 degrees✿", ": 2✿F: weather_now"})
    EXPECT_FALSE(grammar->accepts_prefix(text)) << text;
  structure.must_call = true;
  structure.text_first = false;
  EXPECT_FALSE(grammar_of(structure)->accepts_prefix(": 2"));
}

// A format's marks end the text wherever they stand, so JSON within calls has them as escapes.
TEST(ToolGrammar, MarksWithinArgumentsAreEscaped) {
  ToolCallStructure structure = weather();
  structure.functions[0].parameters = std::make_shared<const ordered_json>(ordered_json::parse(
      R"({"type":"object","properties":{"a":{"enum":["x ✿R y"]},"b":{"type":"string"},
          "c":{"type":"string","pattern":"^.{1,3}$"}},"additionalProperties":false})"));
  const auto grammar = tool_grammar(structure);
  const std::string call = "✿F: weather\n✿A: ";
  EXPECT_TRUE(grammar->accepts(call + R"({"a":"x \u273fR y"})"));
  EXPECT_TRUE(grammar->accepts(call + R"({"b":"\u273f é"})"));
  EXPECT_TRUE(grammar->accepts(call + R"({"c":"\u273f"})"));
  for (const char* text : {R"({"a":"x ✿R y"})", R"({"b":"✿"})", R"({"c":"✿"})"})
    EXPECT_FALSE(grammar->accepts(call + text)) << text;
}

TEST(ToolGrammar, SchemasThatNoGrammarCanSay) {
  ToolCallStructure structure = weather();
  structure.functions[1].parameters =
      std::make_shared<const ordered_json>(ordered_json{{"not", ordered_json::object()}});
  try {
    tool_grammar(structure);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_NE(error.message().find("function weather_now"), std::string::npos) << error.message();
  }
  std::vector<std::string> warnings;
  const auto grammar = tool_grammar(structure, {}, &warnings);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_TRUE(grammar->accepts("✿F: weather_now\n✿A: {\"x\":1}"));
  structure.functions[1].parameters =
      std::make_shared<const ordered_json>(ordered_json{{"type", 3}});
  EXPECT_THROW(tool_grammar(structure, {}, &warnings), Error);
}

TEST(ToolGrammar, EveryFormatsStructure) {
  // What each format says of itself is read back by its own parser.
  for (const std::string_view name : tool_format_names()) {
    ToolCallStructure structure = weather();
    const auto messages = ordered_json::parse(R"([{"role":"user","content":"Weather in Rome?"}])");
    const auto tools = ordered_json::parse(
        R"([{"type":"function","function":{"name":"weather","description":"d","parameters":)"
        R"({"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}])");
    ToolChat chat;
    chat.messages = &messages;
    chat.tools = &tools;
    const ToolFormat& format = tool_format(name);
    const ToolPrompt prompt = format.prompt(chat);
    structure = format.structure(prompt);
    const auto grammar = tool_grammar(structure);
    std::string text = structure.text_first ? "I look. " : structure.lead;
    text += structure.open + "weather" + structure.separator;
    EXPECT_TRUE(grammar->accepts_prefix(text)) << name << ": " << text;
    text += "{\"city\": \"Rome\"}" + structure.close;
    EXPECT_TRUE(grammar->accepts(text)) << name << ": " << text;
    ToolAnswer answer;
    const auto parser = format.parser(prompt);
    answer.add(parser->push(text));
    answer.add(parser->finish());
    ASSERT_EQ(answer.calls.size(), 1u) << name << ": " << text;
    EXPECT_EQ(answer.calls[0].name, "weather");
    EXPECT_TRUE(answer.calls[0].valid);
  }
}

}  // namespace
}  // namespace qw
